#!/usr/bin/env bash
# MLflow on the head: `mlflow.sh start`, `stop`, `backup`. It listens on localhost only.
#
#   ISOFLOP_STORE     where runs are kept: a database URL (default: SQLite in ~/mlflow). A password
#                     belongs in ~/.pgpass, not in the URL: command lines are for all to read
#   ISOFLOP_STORAGE   a folder or s3://... of artifacts and backups (default: ~/mlflow/artifacts)
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
PATH="$PWD/.venv/bin:$PATH"
umask 077

home="$HOME/mlflow"
mkdir -p "$home"
store="${ISOFLOP_STORE:-sqlite:///$home/mlflow.db}"
storage="${ISOFLOP_STORAGE:-$home/artifacts}"
port="${ISOFLOP_MLFLOW_PORT:-5000}"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true # no runners of jobs

alive() { [ -s "$home/pid" ] && kill -0 "$(cat "$home/pid")" 2>/dev/null; }

driver() { # what SQLAlchemy opens a server's database with
  case "$store" in
    postgresql*) python -c 'import psycopg2' 2>/dev/null || PATH="$HOME/.local/bin:$PATH" \
      uv pip install -q --python "$PWD/.venv/bin/python" psycopg2-binary ;;
    *) : ;;
  esac
}

start() {
  alive && return
  case "$store" in
    *://*:*@*) echo "mlflow: the password in ISOFLOP_STORE belongs in ~/.pgpass" >&2; return 1 ;;
  esac
  driver
  mlflow db upgrade "$store" >"$home/server.log" 2>&1 # one process makes the tables, before others
  nohup mlflow server --backend-store-uri "$store" --artifacts-destination "$storage" \
    --serve-artifacts --host 127.0.0.1 --port "$port" --workers 1 \
    >>"$home/server.log" 2>&1 </dev/null &
  echo $! >"$home/pid"
  nohup bash cluster/mlflow.sh loop >>"$home/server.log" 2>&1 </dev/null &
}

backup() { # a consistent copy of the SQLite file, beside the artifacts
  case "$store" in
    sqlite:///*) python -m cluster.backup "${store#sqlite:///}" "$storage" ;;
    *) : ;; # a database server has backups of its own
  esac
}

loop() { # every ten minutes, for as long as the server lives
  while alive; do
    sleep 600
    backup || echo "mlflow: the backup failed; it is tried again in ten minutes" >&2
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
