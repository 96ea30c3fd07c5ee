#!/usr/bin/env bash
# Starts Ray on a node: `start.sh head`, or `start.sh worker ADDRESS_OF_HEAD`.
#
# Only the ports that nodes need from each other are opened, always the same ones; the dashboard, and
# everything else that people look at, listens on localhost. Ray asks everybody for the token.
#   ISOFLOP_NODE_ADDRESS   what the other nodes call this one (set by the launcher)
#   ISOFLOP_RAY            more options for `ray start`
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
PATH="$PWD/.venv/bin:$PATH"

role="$1"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_worker_niceness=0 # by default training gives way to everything else on its node
umask 077
ulimit -n 65535 2>/dev/null || true

if [ ! -s "$HOME/.ray/auth_token" ]; then
  echo "start: ~/.ray/auth_token is missing; without it anybody could run code here" >&2
  exit 1
fi
chmod 600 "$HOME/.ray/auth_token"

if [ -n "${ISOFLOP_NETWORK:-}" ]; then # private, tailscale: the node alone knows its address
  ISOFLOP_NODE_ADDRESS="$(python -m cluster.network "$ISOFLOP_NETWORK" "${@:2}")"
  export ISOFLOP_NODE_ADDRESS
fi
if [ -n "${ISOFLOP_SLOT:-}" ]; then # provider.network: overlay
  bash cluster/wireguard.sh
fi

# gloo and NCCL look for an interface by the host's name, which on rented machines often is the
# loopback's: they are told the one that has this node's address. None has it behind a translation.
if [ -z "${GLOO_SOCKET_IFNAME:-}" ] && command -v ip >/dev/null; then
  interface="$(ip -o addr show | awk -v own="$ISOFLOP_NODE_ADDRESS" \
    '{split($4, part, "/"); if (part[1] == own) {print $2; exit}}')"
  if [ -n "$interface" ]; then
    export GLOO_SOCKET_IFNAME="$interface" NCCL_SOCKET_IFNAME="$interface"
  fi
fi

options=(
  "--node-ip-address=$ISOFLOP_NODE_ADDRESS"
  --node-manager-port=6380
  --object-manager-port=6381
  --metrics-export-port=6382
  --dashboard-agent-grpc-port=6383
  --dashboard-agent-listen-port=6384
  --runtime-env-agent-port=6385
  --min-worker-port=10002
  --max-worker-port=10999
  --disable-usage-stats
)
read -ra more <<<"${ISOFLOP_RAY:-}"

# Two servers of numbers that nobody here asks for would listen at every address. Ray cannot be told
# to leave them out; with a port that there is not, each writes an error to its log, once.
export AUTOSCALER_METRIC_PORT=-1 DASHBOARD_METRIC_PORT=-1

ray_start() { # without the server of Ray Client, which is started wherever gRPC is installed
  python -c '
import ray.scripts.scripts as ray
ray.get_ray_client_dependency_error = lambda: ImportError("not wanted")
ray.main()' start "$@"
}

ray stop >/dev/null
if [ "$role" = head ]; then
  ray_start --head --port=6379 --include-dashboard=true --dashboard-host=127.0.0.1 \
    --dashboard-port=8265 --autoscaling-config="$HOME/ray_bootstrap_config.yaml" \
    "${options[@]}" "${more[@]}"
  bash cluster/mlflow.sh start
  python -m cluster.prime.watch --detach
else
  ray start --address="$2:6379" "${options[@]}" "${more[@]}"
fi
