"""Does the benchmark of orchestration train the grid that it times?"""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.benchmarks import contestants
from isoflop.benchmarks.orchestration import Took
from isoflop.campaign import Machine
from isoflop.cli import main
from isoflop.orchestration.job import result


@pytest.mark.slow
@pytest.mark.parametrize("way", ["plain", "joblib"])
def test_every_way_trains_every_run(way: str, tmp_path: Path) -> None:
    contestants.main(way, str(tmp_path), "2", "8192", "2")
    made = contestants.campaign(2, 8192, Machine(storage=tmp_path))
    results = [result(job.folder) or {} for job in made.jobs]
    assert [values["status"] for values in results] == ["finished", "finished"]


def test_overhead_is_what_the_runs_do_not_explain() -> None:
    """Two processes, four runs of 2 s, the first at 3 s, gaps of half a second."""
    took = Took(trained=7.5, ended=9.0, processes=2, spans=[(3, 5), (3, 5), (5.5, 7.5), (5.5, 7.5)])
    assert took.training == 4.0
    assert took.further == pytest.approx(0.25)
    assert took.of(4) == took.trained
    assert took.of(8) == pytest.approx(7.5 + 4 * 2.25 / 2)


def test_impossible_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "orchestration", "--points", "1"])
    assert "--points 1" in capsys.readouterr().err
