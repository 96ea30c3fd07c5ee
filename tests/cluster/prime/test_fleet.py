"""Is a node ever lost, or bought twice? Every way an API can fail, in any order."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from cluster.ledger import Ledger
from cluster.prime.account import Account
from cluster.prime.api import Client
from cluster.prime.errors import ApiError
from cluster.prime.fake import KEY, Fault, Market, offer, serving
from cluster.prime.fleet import Fleet, Patience, Refused
from cluster.prime.money import Limits
from cluster.prime.offers import wish

GPU = wish({"gpu": "H100_80GB", "price": 3})
LIMITS = Limits(dollars_per_hour=7, dollars=1000, hours=1000)
PATIENCE = Patience(looks=(0, 0))


@pytest.fixture
def make(client: Client, market: Market, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    begun = market.clock()
    market.clock = lambda: begun

    def fleet(name: str = "ledger.json", **changes: Any) -> Fleet:
        values = {"patience": PATIENCE, "clock": lambda: market.clock(), "sleep": lambda _: None}
        limits = changes.pop("limits", LIMITS)
        return Fleet(client, Ledger(tmp_path / name), "lab", limits, **{**values, **changes})

    yield fleet


def later(market: Market, seconds: float) -> None:
    now = market.clock() + seconds
    market.clock = lambda: now


def test_out_of_stock_goes_on_to_the_next_offer_and_then_says_why(
    make: Callable[..., Fleet], market: Market
) -> None:
    market.offers = [offer("a", price=1.0, region="canada"), offer("b", price=2.0)]
    market.stock = {"a": 0}
    fleet = make()
    assert fleet.buy(GPU, "worker", "gpu", {}).price == 2.0
    market.stock = {"a": 0, "b": 0}
    with pytest.raises(Refused, match=r"canada: .*out of stock; .*eu_north: .*out of stock") as no:
        fleet.buy(GPU, "worker", "gpu", {})
    assert no.value.category == "OutOfStock"
    market.offers = [offer("a", price=3.5)]
    with pytest.raises(Refused, match=r"1: above 3 \$/h"):
        fleet.buy(GPU, "worker", "gpu", {})


def test_a_lost_answer_is_looked_for_and_nothing_is_bought_meanwhile(
    make: Callable[..., Fleet], market: Market
) -> None:
    fleet = make()
    market.fail("POST", "/pods/", Fault(done=True, cut=True))
    found = fleet.buy(GPU, "worker", "gpu", {"a": "b"})
    assert list(market.pods) == [found.id]
    market.fail("POST", "/pods/", Fault(late=True))
    with pytest.raises(Refused, match="no answer whether"):
        fleet.buy(GPU, "worker", "gpu", {})
    with pytest.raises(Refused, match="not known yet"):
        make().buy(GPU, "worker", "gpu", {})  # another process asks: the same answer
    market.settle()
    assert len(fleet.look()) == len(market.pods) == 2
    fleet.buy(GPU, "worker", "gpu", {})
    assert market.asked.count("POST /pods/") == 3


def test_an_order_that_was_never_carried_out_is_given_up_after_a_while(
    make: Callable[..., Fleet], market: Market
) -> None:
    fleet = make()
    market.fail("POST", "/pods/", Fault(status=502))
    with pytest.raises(Refused) as doubt:
        fleet.buy(GPU, "worker", "gpu", {})
    assert doubt.value.category == "InDoubt"
    later(market, PATIENCE.doubt + 1)
    assert fleet.buy(GPU, "worker", "gpu", {}).id in market.pods


def test_limits_refuse_before_anything_is_ordered(
    make: Callable[..., Fleet], market: Market
) -> None:
    fleet = make(limits=Limits(dollars_per_hour=4.5, dollars=10, hours=8))
    fleet.buy(GPU, "head", "head", {})
    fleet.buy(GPU, "worker", "gpu", {})
    with pytest.raises(Refused, match="dollars_per_hour"):
        fleet.buy(GPU, "worker", "gpu", {})
    fleet.end(next(iter(fleet.look())))
    market.balance = 3
    with pytest.raises(Refused, match="wallet"):
        fleet.buy(GPU, "worker", "gpu", {})
    market.balance = 100
    later(market, 3600 * 5.5)
    with pytest.raises(Refused, match="dollars is 10"):
        fleet.buy(GPU, "worker", "gpu", {})
    with pytest.raises(Refused, match="closed for today"):
        fleet.close("closed for today")
        fleet.buy(GPU, "worker", "gpu", {})
    assert market.asked.count("POST /pods/") == 2


def test_a_key_that_may_not_see_the_wallet_may_rent(
    make: Callable[..., Fleet], market: Market
) -> None:
    market.fail("GET", "/billing/wallet", Fault(status=403))
    assert make().buy(GPU, "worker", "gpu", {}).id in market.pods
    market.balance = 0.5
    market.fail("GET", "/billing/wallet", Fault(status=403))
    with pytest.raises(Refused) as refused:
        make().buy(GPU, "worker", "gpu", {})
    assert refused.value.category == "NoFunds"


def test_nodes_that_are_of_no_use_are_given_back(
    make: Callable[..., Fleet], market: Market
) -> None:
    market.automatic = False
    fleet = make(limits=Limits(dollars_per_hour=100, dollars=1000, hours=1000))
    pods = [fleet.buy(GPU, "worker", "gpu", {}).id for _ in range(5)]
    market.pods[pods[0]]["status"] = "STOPPED"
    market.pods[pods[1]]["status"] = "ERROR"
    market.pods[pods[2]]["installationStatus"] = "ERROR"
    for _ in range(2):
        market.advance(market.pods[pods[3]])
    market.pods[pods[3]]["primePortMapping"] = [{"internal": 22, "external": 40123}]
    assert list(fleet.look()) == [pods[4]] == list(market.pods)
    later(market, PATIENCE.start + 1)
    assert fleet.look() == {} == market.pods


def test_one_order_carried_out_twice_keeps_one_node(
    make: Callable[..., Fleet], market: Market
) -> None:
    fleet = make()
    pod = fleet.buy(GPU, "worker", "gpu", {})
    market.create(market.bodies[pod.id])
    assert list(fleet.look()) == [pod.id] == list(market.pods)


def test_a_price_that_rose_is_not_paid(make: Callable[..., Fleet], market: Market) -> None:
    fleet = make()
    stand = market._stand
    market._stand = lambda body, item, price: stand(body, item, 30.0)  # type: ignore[method-assign]
    with pytest.raises(Refused, match=r"30\.0 \$/h"):
        fleet.buy(GPU, "worker", "gpu", {})
    assert market.pods == {}


def test_somebody_elses_nodes_are_left_alone(make: Callable[..., Fleet], market: Market) -> None:
    names = ["mine", "isoflop-lab2-h-head-0123456789", "isoflop-lab-x-h-head-0123456789"]
    for name in names:
        market.create({"pod": {"name": name, "cloudId": "h100-1", "gpuType": "", "socket": "",
                               "gpuCount": 1, "maxPrice": 3}})  # fmt: skip
    for pod in market.pods.values():
        pod["status"] = "STOPPED"
    assert make().look() == {}
    assert len(market.pods) == 3


BAD_POSTS = [
    Fault(done=True, cut=True),
    Fault(cut=True),
    Fault(late=True),
    Fault(status=500),
    Fault(status=502, done=True),
    Fault(status=429),
    Fault(status=400, body=b'{"detail": "No capacity"}'),
    Fault(status=422, body=b'{"errors": [{"param": "x", "details": "y"}]}'),
    Fault(status=402),
    Fault(status=200, body=b"{}", done=True),
    Fault(status=200, body=b"garbage", done=True),
]
BAD_READS = [
    Fault(status=500),
    Fault(status=401),
    Fault(cut=True),
    Fault(status=200, body=b"[]"),
    Fault(status=200, body=b'{"items": 1}'),
]
BAD_ENDS = [Fault(status=500), Fault(status=500, done=True), Fault(cut=True, done=True)]


class Renting(RuleBasedStateMachine):
    """Random orders, ends, crashes and faults against one market."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.market = Market([offer("cheap"), offer("dear", price=2.5)])
        self.now = 1e9
        self.market.clock = lambda: self.now
        address = self.stack.enter_context(serving(self.market))
        account = Account(key=KEY, address=address)
        self.client = Client(account, timeout=5, repeats=1, pause=0)
        self.asked = 0
        self.put_off = 0.0  # when an order was last put off
        self.restart()

    def teardown(self) -> None:
        self.stack.close()

    @rule()
    def restart(self) -> None:
        """The process dies, and another one starts with what is on disk."""
        self.fleet = Fleet(
            self.client,
            Ledger(self.folder / "ledger.json"),
            "lab",
            LIMITS,
            patience=PATIENCE,
            clock=lambda: self.now,
            sleep=lambda _: None,
        )

    @rule(fault=st.sampled_from(BAD_POSTS), times=st.integers(1, 2))
    def orders_fail(self, fault: Fault, times: int) -> None:
        self.market.fail("POST", "/pods/", fault, times)

    @rule(
        fault=st.sampled_from(BAD_READS), where=st.sampled_from(["/pods/", "/avail.*", "/bill.*"])
    )
    def reads_fail(self, fault: Fault, where: str) -> None:
        self.market.fail("GET", where, fault, 2)

    @rule(fault=st.sampled_from(BAD_ENDS))
    def ends_fail(self, fault: Fault) -> None:
        self.market.fail("DELETE", "/pods/.*", fault, 2)

    @rule(data=st.data())
    @precondition(lambda self: self.market.pods)
    def list_skips_one_that_is_known(self, data: st.DataObject) -> None:
        known = {e.id for e in self.fleet.ledger.read().nodes.values()}
        pods = [dict(pod) for pod in self.market.pods.values()]
        skipped = data.draw(st.sampled_from(pods))
        if skipped["id"] in known:
            rest = [pod for pod in pods if pod is not skipped]
            body = json.dumps({"data": rest, "total_count": len(rest)}).encode()
            self.market.fail("GET", "/pods/", Fault(status=200, body=body))
            self.check_look()

    @rule(data=st.data(), status=st.sampled_from(["STOPPED", "ERROR", "gone", "UNKNOWN"]))
    @precondition(lambda self: self.market.pods)
    def preempted(self, data: st.DataObject, status: str) -> None:
        identity = data.draw(st.sampled_from(sorted(self.market.pods)))
        if status == "gone":
            self.market.delete(identity)
        else:
            self.market.pods[identity]["status"] = status

    @rule(seconds=st.sampled_from([5, 60, 300]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def settle(self) -> None:
        self.market.settle()

    @rule()
    def buy(self) -> None:
        before = self.market._made + len(self.market.late)
        open_orders = bool(self.market.late) and self.now - self.put_off < PATIENCE.doubt
        refused = ""
        try:
            found = self.fleet.buy(GPU, "worker", "gpu", {})
            assert found.id in self.market.pods
        except Refused as refusal:
            refused = refusal.category
        self.asked += 1
        carried_out = self.market._made + len(self.market.late) - before
        assert carried_out <= 1, "one request bought two nodes"
        assert not carried_out or refused in ("", "InDoubt"), "bought, and denied"
        assert not carried_out or not open_orders, "bought while another order was open"
        if len(self.market.late) and carried_out:
            self.put_off = self.now

    @rule(data=st.data())
    @precondition(lambda self: self.market.pods)
    def end(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.market.pods)))
        try:
            self.fleet.end(identity)
            assert identity not in self.market.pods
        except ApiError:
            pass

    @rule()
    def check_look(self) -> None:
        """Everything of use is seen, or an error says that it is not known."""
        try:
            seen = self.fleet.look()
        except ApiError:
            return
        useless = ("STOPPED", "ERROR")
        pods = self.market.pods.items()
        assert set(seen) == {i for i, pod in pods if pod["status"] not in useless}

    @rule()
    def weather_clears(self) -> None:
        """Without faults nothing is lost: what stands is seen, and what is useless is gone."""
        self.market.faults.clear()
        assert set(self.fleet.look()) == set(self.market.pods)
        assert self.market._made + len(self.market.late) <= self.asked
        total = sum(pod["priceHr"] for pod in self.market.pods.values())
        assert total <= LIMITS.dollars_per_hour


TestRenting = Renting.TestCase
TestRenting.settings = settings(
    max_examples=40,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
