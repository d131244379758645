#!/usr/bin/env bash
# Builds the images of dockercoins into the local Docker engine, from nothing but static binaries and Debian's redis:
#   dockercoins/{rng,hasher,worker,webui,redis}:$TAG
# Images that are there already, of the same content, are left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
TAG=${TAG:-0.1.0}
TARGET=$(rustc -vV | sed -n 's/^host: //p')

RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --release -p dockercoins --target "$TARGET"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Imports a directory as an image, unless an image of that content is there. $1 name, $2 directory, $3... changes
import() {
  local name=dockercoins/$1:$TAG dir=$2 sum
  shift 2
  sum=$(cd "$dir" && { find . -type f -print0 | sort -z | xargs -0 sha256sum; echo "$*"; } | sha256sum | cut -d' ' -f1)
  if [ "$(docker image inspect --format '{{ index .Config.Labels "content" }}' "$name" 2>/dev/null)" = "$sum" ]; then
    echo "$name is up to date"
    return
  fi
  tar -C "$dir" --owner=0 --group=0 -c . | docker import --change "LABEL content=$sum" "$@" - "$name" >/dev/null
  echo "$name built"
}

for program in rng hasher worker webui; do
  mkdir -p "$work/$program/etc"
  cp "target/$TARGET/release/$program" "$work/$program/$program"
  import "$program" "$work/$program" --change "ENTRYPOINT [\"/$program\"]" --change 'EXPOSE 80'
done

# The real redis, from Debian's package, with the libraries that it is linked to.
if ! docker image inspect "dockercoins/redis:$TAG" >/dev/null 2>&1; then
  mkdir -p "$work/deb" "$work/redis/data"
  (cd "$work/deb" && apt-get download -qq redis-tools redis-server 2>/dev/null)
  for deb in "$work"/deb/*.deb; do dpkg -x "$deb" "$work/unpacked"; done
  packages=$(dpkg-deb -f "$work"/deb/redis-tools_*.deb Depends | tr ',' '\n' | sed 's/[|(].*//; s/ //g' | grep '^lib' || true)
  (cd "$work/deb" && rm -f ./*.deb && apt-get download -qq $packages 2>/dev/null)
  for deb in "$work"/deb/*.deb; do dpkg -x "$deb" "$work/unpacked"; done
  # systemd's library (for readiness messages) brings a few of its own.
  for needed in libcap2 libgcrypt20 liblz4-1 liblzma5 libzstd1 libgpg-error0 libgcc-s1 libstdc++6; do
    (cd "$work/deb" && rm -f ./*.deb && apt-get download -qq "$needed" 2>/dev/null && dpkg -x ./*.deb "$work/unpacked")
  done
  export LD_LIBRARY_PATH="$work/unpacked/usr/lib/x86_64-linux-gnu:$work/unpacked/lib/x86_64-linux-gnu"
  binary=$(find "$work/unpacked/usr/bin" -name redis-server -o -name redis-check-rdb | head -1)
  binary=$(readlink -f "$binary")
  mkdir -p "$work/redis/usr/bin"
  cp "$binary" "$work/redis/usr/bin/redis-server"
  ldd "$binary" | grep -o '/[^ ]*' | sort -u | while read -r library; do
    to="$work/redis${library#"$work/unpacked"}"
    mkdir -p "$(dirname "$to")"
    cp -L "$library" "$to"
  done
  unset LD_LIBRARY_PATH
  import redis "$work/redis" --change 'ENTRYPOINT ["/usr/bin/redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", "/data"]' --change 'EXPOSE 6379'
fi
