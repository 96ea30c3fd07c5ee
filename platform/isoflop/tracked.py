"""What has MLflow recorded? Its runs as a table, and the way of each, for laws and for curves.

SQLite files are read by SQL, without mlflow; everything else through its client.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.tracking import Record, check, shown

if TYPE_CHECKING:
    import pandas as pd

PAGE = 1_000  # runs per page of a search


def experiment(address: str, name: str) -> pd.DataFrame:
    """Every run of an experiment that is not deleted: status, params (numbers where they all are)
    and last metrics, a row each.

    A SQLite file is read by SQL, without mlflow: some thirty times faster than its search, which
    takes seconds for 2,000 runs. Raises ValueError where nothing can be read, or there is no such
    experiment.
    """
    import pandas as pd

    if address.startswith("sqlite:///"):
        runs, values = _by_sql(address.removeprefix("sqlite:///"), name)
    else:
        check(address)
        runs, values = _by_search(address, name)
    table = pd.DataFrame(runs).set_index("id")
    for kind in ("params", "metrics"):
        rows = pd.DataFrame(values[kind], columns=["id", "key", "value"])
        wide = rows.pivot(index="id", columns="key", values="value")
        # A name that is a param and a metric, or how the run is called here, keeps both.
        wide = wide.rename(columns={k: f"{kind}.{k}" for k in wide if k in table})
        table = table.join(wide.apply(_numbers))
    if table["kind"].notna().any():  # a study's own runs, without the one that holds its report
        table = table[table["kind"] == "run"]
    return table.drop(columns="kind").reset_index(drop=True)


def histories(address: str, name: str) -> dict[str, list[Record]]:
    """What each run of an experiment stood at whenever its held-out loss was taken, by identity:
    records with "step", "tokens", "flops", "val/loss" and "learning_rate", as this project logs
    them. Empty for experiments of others, whose names are not known. Raises ValueError."""
    import pandas as pd

    if address.startswith("sqlite:///"):
        rows = _steps_by_sql(address.removeprefix("sqlite:///"), name)
    else:
        rows = _steps_by_client(address, name)
    found: dict[str, list[Record]] = {}
    for run, group in pd.DataFrame(rows, columns=["run", "step", "key", "value"]).groupby("run"):
        # Older stores, and those of others, may hold a step twice.
        wide = group.drop_duplicates(["step", "key"], keep="last").pivot(
            index="step", columns="key", values="value"
        )
        wide = wide.rename(columns={shown(key): key for key in CURVE}).reset_index()
        found[str(run)] = [
            {str(key): float(value) for key, value in row.items() if value == value}
            for row in wide.to_dict("records")
        ]
    return found


CURVE = ("val/loss", "tokens", "flops", "learning_rate")
Step = tuple[str, int, str, float]  # run, step, key, value


def _steps_by_sql(path: str, name: str) -> list[Step]:
    marks = ", ".join("?" * len(CURVE))
    query = (
        "SELECT t.value, m.step, m.key, m.value FROM metrics m "
        "JOIN runs r ON r.run_uuid = m.run_uuid "
        "JOIN experiments e ON e.experiment_id = r.experiment_id "
        "JOIN tags t ON t.run_uuid = m.run_uuid AND t.key = 'isoflop.identity' "
        "WHERE r.lifecycle_stage = 'active' AND m.is_nan = 0 AND e.name = ? "
        f"AND m.key IN ({marks}) ORDER BY m.timestamp"
    )
    with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as store:
        return store.execute(query, (name, *map(shown, CURVE))).fetchall()


def _steps_by_client(address: str, name: str) -> list[Step]:
    """One call for each run and metric: minutes for thousands of runs behind a slow line."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=address)
    heads, _ = _by_search(address, name)
    return [
        (str(head["run"]), point.step, key, point.value)
        for head in heads
        if head["kind"] == "run"
        for key in map(shown, CURVE)
        for point in client.get_metric_history(head["id"], key)
        if point.value == point.value
    ]


def _numbers(column: pd.Series) -> pd.Series:
    import pandas as pd

    try:
        return pd.to_numeric(column)
    except (ValueError, TypeError):
        return column


Values = dict[str, list[tuple[str, str, Any]]]
WORDS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


def _by_sql(path: str, name: str) -> tuple[list[dict[str, Any]], Values]:
    """From MLflow's own tables, opened for reading only."""
    file = Path(path).absolute()
    if not file.is_file():
        raise ValueError(f"there is no MLflow database {file}")
    inside = "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active' AND experiment_id = ?"
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as store:
        try:
            names = dict(store.execute("SELECT name, experiment_id FROM experiments").fetchall())
            key = (_chosen(names, name),)
            tags = f"SELECT run_uuid, key, value FROM tags WHERE run_uuid IN ({inside})"
            tagged: dict[str, dict[str, str]] = {}
            for run, tag, value in store.execute(tags, key):
                tagged.setdefault(run, {})[tag] = value
            heads = store.execute(f"SELECT run_uuid, name, status FROM runs WHERE run_uuid IN "
                                  f"({inside})", key).fetchall()  # fmt: skip
            params = f"SELECT run_uuid, key, value FROM params WHERE run_uuid IN ({inside})"
            metrics = ("SELECT run_uuid, key, CASE is_nan WHEN 1 THEN NULL ELSE value END "
                       f"FROM latest_metrics WHERE run_uuid IN ({inside})")  # fmt: skip
            values = {"params": store.execute(params, key).fetchall(),
                      "metrics": store.execute(metrics, key).fetchall()}  # fmt: skip
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{file} is no MLflow database: {error}") from error
    known = [_head(run, label, status, tagged.get(run, {}).get) for run, label, status in heads]
    return known, values


def _chosen(names: Mapping[str, Any], name: str) -> Any:
    if name not in names:
        have = ", ".join(sorted(names)) or "none"
        raise ValueError(f"there is no experiment {name!r}; there are: {have}")
    return names[name]


def _head(run: str, label: str, status: str, tag: Callable[[str], str | None]) -> dict[str, Any]:
    return {
        "id": run,
        "run": tag("isoflop.identity") or run,
        "label": label,
        "status": WORDS.get(status, status.lower()),
        "kind": tag("isoflop.kind"),
    }


def _by_search(address: str, name: str) -> tuple[list[dict[str, Any]], Values]:
    """Through MLflow's client, page by page."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=address)
    known = {each.name: each.experiment_id for each in client.search_experiments()}
    experiment_id = str(_chosen(known, name))
    heads: list[dict[str, Any]] = []
    values: Values = {"params": [], "metrics": []}
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], max_results=PAGE, page_token=token)
        for run in page:
            key = run.info.run_id
            heads.append(_head(key, run.info.run_name, run.info.status, run.data.tags.get))
            values["params"] += [(key, k, v) for k, v in run.data.params.items()]
            values["metrics"] += [(key, k, v) for k, v in run.data.metrics.items()]
        token = page.token
        if not token:
            return heads, values
