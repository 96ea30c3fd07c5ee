#!/usr/bin/env bash
# Brings up this node's side of the overlay network; see wireguard.py. Again is no harm.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

install() {
  root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive root apt-get install -y -qq "$@" >/dev/null
}

kernel() { # whether it has WireGuard; wg-quick takes the slower wireguard-go where it has not
  root ip link add isoflop-try type wireguard 2>/dev/null || return 1
  root ip link delete isoflop-try
}

command -v wg-quick >/dev/null || install wireguard-tools iproute2
kernel || command -v wireguard-go >/dev/null || install wireguard-go || true

file=/etc/wireguard/isoflop0.conf
root mkdir -p /etc/wireguard
PATH="$PWD/.venv/bin:$PATH"
(umask 077 && python -m cluster.wireguard | root tee "$file.new" >/dev/null)
root chmod 600 "$file.new"
if root ip link show isoflop0 >/dev/null 2>&1; then
  root wg-quick down isoflop0 >/dev/null 2>&1 || root ip link delete isoflop0
fi
root mv "$file.new" "$file"
if ! root wg-quick up isoflop0; then
  echo "wireguard: this node cannot have a network of its own, as containers often cannot: rent" \
    "virtual machines (provider.network: overlay needs them), or one node only" >&2
  exit 1
fi
