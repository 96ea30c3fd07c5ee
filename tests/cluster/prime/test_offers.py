"""Is the right offer taken, and is a refusal explained?"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.prime.offers import choices, explain, order, refusal, wish
from cluster.prime.records import Offer

BASE: dict[str, Any] = {
    "cloud_id": "c", "gpu_type": "H100_80GB", "gpu_count": 1, "gpu_memory": 80, "price": 2.0,
    "provider": "datacrunch", "region": "eu_north", "country": "FI", "data_center": "FIN-01",
    "security": "secure_cloud", "socket": "SXM5", "images": ("ubuntu_22_cuda_12",),
}  # fmt: skip
WISH: dict[str, Any] = {"gpu": "H100_80GB", "price": 3}


def item(**changes: Any) -> Offer:
    return Offer(**{**BASE, **changes})


REFUSED = [
    ({"gpu_type": "A100_80GB"}, {}, "not H100_80GB"),
    ({"gpu_count": 8}, {}, "not 1 GPUs"),
    ({"price": 3.01}, {}, "above 3 $/h"),
    ({"price": 0.0}, {}, "above"),
    ({"price": float("nan")}, {}, "above"),
    ({"prepaid_hours": 24}, {}, "in advance"),
    ({"spot": True}, {}, "spot"),
    ({}, {"spot": "only"}, "not spot"),
    ({"stock": "Out of stock"}, {}, "out of stock"),
    ({}, {"regions": ["canada"]}, "region"),
    ({}, {"countries": ["US"]}, "country"),
    ({}, {"data_centers": "X"}, "data center"),
    ({}, {"providers": "nebius"}, "provider"),
    ({}, {"not_providers": "datacrunch"}, "left out"),
    ({}, {"security": "community_cloud"}, "community_cloud"),
    ({}, {"sockets": "PCIe"}, "socket"),
    ({}, {"memory": 141}, "141 GB"),
    ({}, {"image": "custom_template"}, "no image"),
    ({"provider": "runpod"}, {}, "port map"),
]


@pytest.mark.parametrize(("offered", "wished", "reason"), REFUSED)
def test_every_filter_refuses_and_says_so(
    offered: dict[str, Any], wished: dict[str, Any], reason: str
) -> None:
    wanted = wish({**WISH, **wished})
    assert refusal(item(), wish(WISH), several=True) == ""
    assert reason in refusal(item(**offered), wanted, several=True)
    assert choices([item(**offered)], wanted, several=True) == []
    assert reason in explain([item(**offered)], wanted, several=True)


def test_a_container_will_do_where_it_is_alone() -> None:
    assert choices([item(provider="runpod")], wish(WISH), several=False)


def test_prepaid_and_spot_only_when_asked_for() -> None:
    both = [item(prepaid_hours=24), item(spot=True)]
    assert choices(both, wish({**WISH, "prepaid": True, "spot": "allowed"}), several=True) == both


def test_a_processor_node_has_no_count_of_gpus() -> None:
    head = wish({"gpu": "CPU_NODE", "price": 1})
    assert not refusal(item(gpu_type="CPU_NODE", gpu_count=0, price=0.1), head, several=True)


def test_the_refusals_that_matter_are_shown() -> None:
    offers = [item(gpu_type="A100_80GB")] * 40 + [item(price=9.0)] * 2
    assert explain(offers, wish(WISH), several=True) == "of what is for rent, 2: above 3 $/h"
    assert explain([], wish(WISH), several=True) == "nothing is for rent"


@given(st.lists(st.tuples(st.floats(0.01, 5), st.sampled_from(["Low", "Available"]))))
def test_the_cheapest_that_fits_is_first_whatever_the_order(
    prices: list[tuple[float, str]],
) -> None:
    offers = [item(price=p, stock=s, cloud_id=str(i)) for i, (p, s) in enumerate(prices)]
    found = choices(offers, wish(WISH), several=True)
    assert [o.price for o in found] == sorted(p for p, _ in prices if p <= 3)
    assert found == choices(offers[::-1], wish(WISH), several=True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gpu": "H100_80GB"}, "price must be given"),
        ({**WISH, "prise": 3}, "prise unknown"),
        ({**WISH, "price": "3"}, "price '3' must be of type float"),
        ({**WISH, "price": True}, "must be of type float"),
        ({**WISH, "price": 0}, "above 0"),
        ({**WISH, "gpu": []}, "at least one"),
        ({**WISH, "gpu": 3}, "list of names"),
        ({**WISH, "spot": "maybe"}, "never, allowed, only"),
    ],
)
def test_a_wrong_wish_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wish(values)


def test_an_order_always_has_a_highest_price() -> None:
    body = order(item(), wish({**WISH, "disks": "d1"}), name="n", team="t", ssh_key=None)
    assert body["pod"]["maxPrice"] == 3 and body["pod"]["autoRestart"] is False
    assert body["provider"] == {"type": "datacrunch"}
    assert (body["disks"], body["team"]) == (["d1"], {"teamId": "t"})
    assert "sshKeyId" not in body["pod"]
