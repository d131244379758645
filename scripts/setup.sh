#!/usr/bin/env bash
# Makes the machine ready: installs from Debian what is missing of the packages named, and starts Docker when asked to.
#   setup.sh run      what `make up` needs: Docker and nftables
#   setup.sh test     what `make test` needs besides: etcd, kubectl, a busybox for test images
# Without root nothing is installed: what is missing is said, and what needs it will say so too.
set -euo pipefail

need=()
want() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || need+=("$2"); }
want dockerd docker.io
want nft nftables
want iptables iptables
want protoc protobuf-compiler
want curl curl
if [ "${1:-run}" = test ]; then
  want etcd etcd-server
  want kubectl kubernetes-client
  want busybox busybox-static
  want ip iproute2
fi
if [ ${#need[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "missing, and not root to install: ${need[*]}" >&2
  else
    echo "installing ${need[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Services are started by us, where they are needed, and not by the installation.
    printf '#!/bin/sh\nexit 101\n' > /tmp/policy-rc.d.$$ && chmod +x /tmp/policy-rc.d.$$
    if [ ! -e /usr/sbin/policy-rc.d ]; then mv /tmp/policy-rc.d.$$ /usr/sbin/policy-rc.d && trap 'rm -f /usr/sbin/policy-rc.d' EXIT; else rm -f /tmp/policy-rc.d.$$; fi
    apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
  fi
fi

# Docker: used when it answers, started when it doesn't and we may.
if ! docker version >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v dockerd >/dev/null 2>&1; then
  echo "starting dockerd"
  nohup setsid dockerd >/var/log/skiff-dockerd.log 2>&1 </dev/null &
  echo $! > "${SKIFF_DOCKERD_PID:-/run/skiff-dockerd.pid}"
  for _ in $(seq 150); do
    docker version >/dev/null 2>&1 && break
    sleep 0.2
  done
  docker version >/dev/null 2>&1 || { echo "dockerd doesn't come up: see /var/log/skiff-dockerd.log" >&2; exit 1; }
fi
