#!/usr/bin/env bash
# Runs every test, and counts. Tests that can't run here print a line `SKIPPED: name: reason`; they are listed at the end.
# The last line is `N passed, N failed, N skipped`.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
own_dockerd=$(mktemp -u)
cleanup() {
  rm -f "$log"
  # What was started here is ended here.
  if [ -f "$own_dockerd" ]; then kill "$(cat "$own_dockerd")" 2>/dev/null; rm -f "$own_dockerd"; fi
}
trap cleanup EXIT

SKIFF_DOCKERD_PID=$own_dockerd scripts/setup.sh test || echo "setup is incomplete: some tests will be skipped"
cargo build --workspace --tests --bins 2>&1 || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }
cargo test --workspace --no-fail-fast -- --show-output 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

passed=$(grep -cE '^test .* \.\.\. ok$' "$log")
failed=$(grep -cE '^test .* \.\.\. FAILED$' "$log")
skipped=$(grep -cE '^SKIPPED: ' "$log")
# A test that skipped itself ended well, but passed nothing.
passed=$((passed - skipped))
[ "$status" != 0 ] && [ "$failed" = 0 ] && failed=1
echo
grep -E '^SKIPPED: ' "$log" | sort -u
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$status" = 0 ]
