#!/usr/bin/env bash
# Makes a rented node ready for isoflop. Run it as often as you like: what is there is kept.
#
#   ISOFLOP_PYTHON    version of Python (default 3.11)
#   ISOFLOP_TORCH     index of torch wheels, if not the one that fits the driver
#   ISOFLOP_VENV      a virtual environment that the image has, with all packages: none is made
#   ISOFLOP_EXTRAS    of pyproject.toml, as s3,hf
#   ISOFLOP_FLASH     1: also flash-attn, from the wheel that fits (wheels.py); or the URL of a wheel
#   ISOFLOP_DATA      a script of the repository that fetches data, run at the end
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

venv="$PWD/.venv"
version="${ISOFLOP_PYTHON:-3.11}"

say() { printf 'setup: %s\n' "$*"; }

root() { # as root, with sudo where this user is not
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

packages() { # only what is missing
  local missing=()
  command -v curl >/dev/null || missing+=(curl)
  command -v rsync >/dev/null || missing+=(rsync)
  command -v git >/dev/null || missing+=(git)
  [ "${#missing[@]}" = 0 ] && return
  say "installing ${missing[*]}"
  root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive root apt-get install -y -qq "${missing[@]}" >/dev/null
}

install_uv() {
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null && return
  say "installing uv"
  curl -LsSf https://astral.sh/uv/install.sh | sh >/dev/null
}

index_of_driver() { # torch's wheels for the CUDA that the driver speaks; CPU without one
  local cuda
  cuda="$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: \([0-9]*\)\.\([0-9]*\).*/\1\2/p' || true)"
  case "$cuda" in
    "") echo cpu ;;
    12[0-7]) echo cu126 ;;
    12[89]) echo cu128 ;;
    *) if [ "$cuda" -ge 130 ]; then echo cu130; else echo cu126; fi ;;
  esac
}

install_project() {
  [ -x "$venv/bin/python" ] || uv venv -q --python "$version" "$venv"
  local torch="${ISOFLOP_TORCH:-https://download.pytorch.org/whl/$(index_of_driver)}"
  local want
  want="$(cksum pyproject.toml) $torch ${ISOFLOP_EXTRAS:-}"
  if [ "$(cat "$venv/.isoflop" 2>/dev/null)" = "$want" ]; then
    say "project is installed"
    return
  fi
  say "installing the project, torch from ${torch##*/}"
  uv pip install -q --python "$venv/bin/python" --index "$torch" \
    --index-strategy unsafe-best-match -e ".${ISOFLOP_EXTRAS:+[$ISOFLOP_EXTRAS]}"
  printf '%s' "$want" >"$venv/.isoflop"
}

install_flash() { # a wheel that fits, or a sentence: never an hour's compiling
  local wheel="${ISOFLOP_FLASH:-0}" python="$venv/bin/python"
  [ "$wheel" != 0 ] || return 0
  "$python" -c 'import flash_attn' 2>/dev/null && return 0
  [ "$wheel" != 1 ] || wheel="$("$python" -m cluster.wheels)" || wheel=""
  if [ -n "$wheel" ] && uv pip install -q --python "$python" "flash-attn @ $wheel" &&
    "$python" -c 'import flash_attn'; then
    say "flash-attn from ${wheel##*/}"
    return 0
  fi
  uv pip uninstall -q --python "$python" flash-attn 2>/dev/null || true
  say "without flash-attn: torch's own attention is used (ISOFLOP_FLASH=URL names another wheel)"
}

use_environment() { # of the image: linked, and told where this code is
  ln -sfn "$ISOFLOP_VENV" "$venv"
  "$venv/bin/python" -c 'import ray, torch'
  say "environment of the image: $ISOFLOP_VENV"
}

on_path() { # for Ray's launcher and for people, whose shells read this file
  local line="export PATH=\"$venv/bin:\$HOME/.local/bin:\$PATH\" RAY_AUTH_MODE=token"
  [ -z "${ISOFLOP_VENV:-}" ] || line+=" PYTHONPATH=\"$PWD/platform:$PWD\""
  touch "$HOME/.bashrc"
  grep -qxF "$line" "$HOME/.bashrc" && return
  printf '%s\n' "$line" | cat - "$HOME/.bashrc" >"$HOME/.bashrc.new"
  mv "$HOME/.bashrc.new" "$HOME/.bashrc"
}

packages
if [ -n "${ISOFLOP_VENV:-}" ]; then
  use_environment
else
  install_uv
  install_project
  install_flash
fi
on_path
if [ -n "${ISOFLOP_DATA:-}" ]; then
  "$venv/bin/python" "$ISOFLOP_DATA"
fi
say "ready: $("$venv/bin/python" -c 'import torch; print("torch", torch.__version__, torch.cuda.device_count(), "GPUs")')"
