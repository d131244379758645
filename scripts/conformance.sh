#!/usr/bin/env bash
# Upstream's own end-to-end tests against a cluster on Docker that is made for them and goes with them.
#   conformance.sh E2E_TEST KUBECTL [FOCUS [SKIP]]
# E2E_TEST and KUBECTL are upstream's binaries of the same minor version. The images that the tests use must be there for
# Docker. FOCUS and SKIP are regular expressions of test names; without them the conformance tests of the API run.
set -euo pipefail
e2e=$1 kubectl=$2
focus=${3:-'\[sig-(api-machinery|auth|cli|architecture|instrumentation)\].*\[Conformance\]'} skip=${4:-nothing at all}
skiff=${SKIFF:-$(dirname "$0")/../target/release/skiff}
dir=$(mktemp -d /tmp/skiff-conformance.XXXXXX)
"$skiff" up --name conformance --no-merge --runtime docker --nodes 2 --pod-cidr 10.245.0.0/16 --service-cidr 10.97.0.0/16 \
  --listen "${LISTEN:-127.0.0.1:16443}" --data-dir "$dir/data" --kubeconfig "$dir/kubeconfig" > "$dir/log" 2>&1 &
cluster=$!
trap 'kill $cluster 2>/dev/null; wait $cluster || true; echo "logs: $dir"' EXIT
for _ in $(seq 300); do
  kill -0 $cluster 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
  [ -s "$dir/kubeconfig" ] && "$kubectl" --kubeconfig "$dir/kubeconfig" wait --for=condition=Ready node --all --timeout=1s >/dev/null 2>&1 && break
  sleep 0.2
done
"$e2e" -kubeconfig="$dir/kubeconfig" -kubectl-path="$kubectl" -provider=skeleton -ginkgo.no-color -ginkgo.timeout=3h \
  -ginkgo.focus="$focus" -ginkgo.skip="$skip" > "$dir/report" 2>&1 || true
grep -aE '^\[sig-.*\[It\]' "$dir/report" || true
grep -aE '^(SUCCESS|FAIL)!' "$dir/report"
