"""Does everything end when it should, the head last, whatever the API does meanwhile?"""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.ledger import Ledger
from cluster.prime.api import Client
from cluster.prime.fake import Fault, Market
from cluster.prime.fleet import Fleet, Refused
from cluster.prime.money import Limits, limits
from cluster.prime.offers import wish
from cluster.prime.watch import Watch

LIMITS = Limits(dollars_per_hour=20, dollars=10, hours=4, idle_minutes=30)
GPU = wish({"gpu": "H100_80GB", "price": 3})


class Lab:
    """A cluster with a head and two workers, and time that passes when it is told to."""

    def __init__(
        self, client: Client, market: Market, folder: Path, limits: Limits = LIMITS
    ) -> None:
        self.now = market.clock()
        self.market = market
        self.busy = True
        market.clock = lambda: self.now
        self.fleet = Fleet(client, Ledger(folder / "l.json"), "lab", limits, clock=market.clock)
        self.head = self.fleet.buy(GPU, "head", "head", {}).id
        for _ in range(2):
            self.fleet.buy(GPU, "worker", "gpu", {})
        while not all(pod.ready for pod in self.fleet.look().values()):
            pass
        self.watch = Watch(
            self.fleet, lambda: self.busy, self.head, clock=market.clock, sleep=self.passes
        )

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def lab(client: Client, market: Market, tmp_path: Path) -> Lab:
    return Lab(client, market, tmp_path)


def test_idle_time_counts_from_the_last_work(lab: Lab) -> None:
    lab.passes(1700)
    assert lab.watch.look() == ""
    lab.busy = False
    lab.passes(1700)
    assert lab.watch.look() == ""
    lab.passes(120)
    assert lab.watch.look() == "nothing has run for 30 minutes"


def test_its_log_says_when_the_cluster_falls_idle(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cluster.watch")
    for busy in (True, True, False, False, True):
        lab.busy = busy
        lab.watch.look()
    said = [record.getMessage() for record in caplog.records if record.name == "cluster.watch"]
    quiet = "nothing runs: the cluster ends in 30 minutes, unless something does"
    assert said == ["something runs", quiet, "something runs"]


def test_dollars_and_hours_end_even_what_works(lab: Lab) -> None:
    lab.passes(3600 * 1.5)
    assert lab.watch.look() == ""  # 9 $
    lab.passes(3600 * 0.2)
    assert "10.20 $ spent" in lab.watch.look()
    for pod in list(lab.market.pods):
        if pod != lab.head:
            lab.fleet.end(pod)
    assert "10.20 $ spent" in lab.watch.look()  # what has ended was paid all the same


def test_hours_end_what_is_cheap(client: Client, market: Market, tmp_path: Path) -> None:
    lab = Lab(client, market, tmp_path, Limits(dollars_per_hour=20, dollars=1000, hours=4))
    lab.passes(3600 * 4.1)
    assert "4.1 hours old" in lab.watch.look()


def test_an_api_that_is_away_does_not_stop_the_clock(lab: Lab) -> None:
    lab.busy = False
    lab.passes(1799)
    lab.market.fail("GET", "/pods/", Fault(status=503), times=4)
    assert lab.watch.look() == ""
    lab.passes(2)
    assert lab.watch.look()


def test_the_head_goes_last_and_nothing_is_bought_afterwards(lab: Lab) -> None:
    gone: list[str] = []
    lab.market.stopped = lambda pod: gone.append(pod["id"])
    lab.market.fail("DELETE", "/pods/.*", Fault(status=500), times=9)
    lab.market.fail("GET", "/pods/", Fault(cut=True), times=4)
    lab.watch.end("enough")
    assert lab.market.pods == {}
    assert len(gone) == 3 and gone[-1] == lab.head
    with pytest.raises(Refused, match="enough"):
        lab.fleet.buy(GPU, "worker", "gpu", {})


def test_a_stopped_worker_keeps_the_head_until_it_is_gone(lab: Lab) -> None:
    worker = next(pod for pod in lab.market.pods if pod != lab.head)
    lab.market.pods[worker]["status"] = "STOPPED"
    lab.market.fail("DELETE", f"/pods/{worker}", Fault(status=500), times=8)
    lab.watch.end("enough")
    assert lab.market.pods == {}


def test_what_cannot_be_put_away_does_not_keep_the_cluster(lab: Lab) -> None:
    def fails() -> None:
        raise OSError("disk full")

    lab.watch._farewell = fails
    lab.watch.end("enough")
    assert lab.market.pods == {}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (None, "dollars_per_hour, dollars, hours must be given"),
        ({"dollars_per_hour": 1, "dollars": 1, "hours": 0}, "hours 0"),
        ({"dollars_per_hour": 1, "dollars": "1", "hours": 1}, "dollars '1'"),
        ({"dollars_per_hour": 1, "dollars": 1, "hours": float("inf")}, "inf"),
        ({"dollars_per_hour": 1, "dollars": 1, "hours": 1, "days": 1}, "days unknown"),
    ],
)
def test_nobody_rents_without_limits(values: dict[str, object] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        limits(values)
