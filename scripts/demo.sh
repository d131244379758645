#!/usr/bin/env bash
# Deploys dockercoins, waits until coins are found, and says where to look.
set -euo pipefail
cd "$(dirname "$0")/.."
NAME=${NAME:-default}
kubeconfig=$(mktemp)
trap 'rm -f "$kubeconfig"' EXIT
target/release/skiff kubeconfig --name "$NAME" > "$kubeconfig"
export KUBECONFIG=$kubeconfig
if ! command -v kubectl >/dev/null 2>&1; then
  echo "installing kubectl"
  apt-get update -qq && apt-get install -y -qq --no-install-recommends kubernetes-client >/dev/null
fi
kubectl apply -f charts/dockercoins.yaml
for deployment in redis rng hasher worker webui; do
  kubectl rollout status "deployment/$deployment" --timeout 120s
done
node=$(kubectl get nodes -o jsonpath='{.items[0].status.addresses[?(@.type=="InternalIP")].address}')
port=$(kubectl get service webui -o jsonpath='{.spec.ports[0].nodePort}')
url="http://$node:$port"
printf 'mining'
for _ in $(seq 120); do
  coins=$(curl -fsS --max-time 2 "$url/json" 2>/dev/null | sed -n 's/.*"coins":\([0-9]*\).*/\1/p')
  if [ "${coins:-0}" -gt 0 ]; then
    printf '\n%s coins found. Watch the chart at %s\n' "$coins" "$url"
    echo "Scale it:   kubectl scale deployment worker --replicas 10"
    exit 0
  fi
  printf .
  sleep 1
done
echo; echo "no coin in two minutes: kubectl get pods; kubectl logs deploy/worker" >&2
exit 1
