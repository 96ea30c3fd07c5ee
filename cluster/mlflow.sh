#!/usr/bin/env bash
# MLflow on the head: `mlflow.sh start`, `stop`, `backup`. It listens on localhost only.
#
#   ISOFLOP_STORE     where runs are kept: a database URL (default: SQLite in ~/mlflow). A password
#                     belongs in ~/.pgpass, not in the URL: command lines are for all to read
#   ISOFLOP_STORAGE   a folder or s3://... of artifacts and backups (default: ~/mlflow/artifacts,
#                     which is lost with the head); a new head takes up the runs that it finds there
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
PATH="$PWD/.venv/bin:$PATH"
umask 077

home="$HOME/mlflow"
mkdir -p "$home"
store="${ISOFLOP_STORE:-sqlite:///$home/mlflow.db}"
storage="${ISOFLOP_STORAGE:-$home/artifacts}"
port="${ISOFLOP_MLFLOW_PORT:-5000}"
case "$store" in
  sqlite:///*) database="${store#sqlite:///}" ;;
  *) database="" ;; # a server's, with backups of its own
esac
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true # no runners of jobs

alive() { [ -s "$home/pid" ] && kill -0 "$(cat "$home/pid")" 2>/dev/null; }

driver() { # what SQLAlchemy opens a server's database with: which one, its version decides
  local module
  module="$(STORE="$store" python -c '
import os, sqlalchemy
try:
    sqlalchemy.create_engine(os.environ["STORE"])
except ModuleNotFoundError as error:
    print(error.name)')"
  case "$module" in
    "") return ;;
    psycopg) module="psycopg[binary]" ;;
    psycopg2) module="psycopg2-binary" ;;
    *) : ;;
  esac
  PATH="$HOME/.local/bin:$PATH" uv pip install -q --python "$(command -v python)" "$module"
}

start() {
  alive && return
  case "$store" in
    *://*:*@*) echo "mlflow: the password in ISOFLOP_STORE belongs in ~/.pgpass" >&2; return 1 ;;
  esac
  driver
  [ -z "$database" ] || python -m cluster.backup --restore "$database" "$storage"
  python -m mlflow db upgrade "$store" >"$home/server.log" 2>&1 # one process makes the tables, before others
  nohup python -m mlflow server --backend-store-uri "$store" --artifacts-destination "$storage" \
    --serve-artifacts --host 127.0.0.1 --port "$port" --workers 1 \
    >>"$home/server.log" 2>&1 </dev/null &
  echo $! >"$home/pid"
  nohup bash cluster/mlflow.sh loop >>"$home/server.log" 2>&1 </dev/null &
}

backup() { # a consistent copy of the SQLite file, beside the artifacts
  [ -n "$database" ] || return 0
  touch "$home/saving"
  python -m cluster.backup "$database" "$storage" && mv "$home/saving" "$home/saved"
}

changed() { # since the last copy
  local file
  for file in "$database" "$database-wal"; do
    [ "$file" -nt "$home/saved" ] && return
  done
  return 1
}

loop() { # every minute in which runs were written to, for as long as the server lives
  while alive; do
    sleep 60
    ! changed || backup || echo "mlflow: the backup failed; it is tried again in a minute" >&2
  done
}

stop() {
  backup
  alive && kill "$(cat "$home/pid")"
  rm -f "$home/pid"
}

case "${1:-}" in
  start | stop | backup | loop) "$1" ;;
  *) echo "usage: mlflow.sh start|stop|backup" >&2; exit 2 ;;
esac
