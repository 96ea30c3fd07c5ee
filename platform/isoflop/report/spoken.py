"""How does every metric of what the models of a study wrote move with scale? `isoflop rollouts
STUDY --laws`: the report's table for the telling ones, here for all of them.

Laws of a hundred metrics take a minute or two, so no report waits for them.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from isoflop.report import written
from isoflop.rollouts.report import store

FILE = "metric-laws.csv"


def show(study: Path) -> int:
    """Print a block for each metric and write the numbers beside the study's runs; 1 where no
    metric differs between runs. Raises ValueError where the folder has no run table or rollouts."""
    source = study / "runs.parquet"
    if not source.exists():
        raise ValueError(f"{study} has no runs.parquet: give the folder of a study that has run")
    table = pd.read_parquet(source)
    found = written.laws(table, every=True)
    for line in written.lines(table, found, references(study)):
        print(f"{line.name}   held-out text {line.reference or 'has none'}")
        print(f"  order of runs by it and by loss: {line.agreement}")
        print("".join(f"  {law}\n" for law in line.laws), end="")
    if not len(found):
        print("no metric differs between the finished runs")
        return 1
    found.to_csv(study / FILE, index=False)
    print(f"{found['metric'].nunique()} metrics: {study / FILE}")
    return 0


def references(study: Path) -> dict[str, dict[str, float]]:
    """What each metric is on held-out text, by its column in the run table, then by run."""
    found: dict[str, dict[str, float]] = {}
    for run in store.runs(study):
        for name, (value, _, _) in run.references.items():
            found.setdefault(f"rollout/{name}", {})[run.run] = value
    return found
