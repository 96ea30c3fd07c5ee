"""Does every answer of the API, and every missing one, mean what it should?"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

import pytest

from cluster.prime import errors
from cluster.prime.account import Account
from cluster.prime.api import Client
from cluster.prime.fake import KEY, Fault, Market, offer, serving

WISH = {"pod": {"name": "n", "cloudId": "h100-1", "gpuType": "H100_80GB", "socket": "SXM5",
                "gpuCount": 1, "maxPrice": 3}, "provider": {"type": "datacrunch"}}  # fmt: skip


def test_a_pod_from_the_order_to_the_bill(client: Client, market: Market) -> None:
    bought = client.create_pod(WISH)
    assert (bought.status, bought.ready, bought.price) == ("PROVISIONING", False, 2.0)
    client.pods()
    (seen,) = client.pods()
    assert seen.id == bought.id and seen.ready
    assert seen.endpoints[0] is not None and seen.endpoints[0].port == 2201
    begun = market.clock()
    market.clock = lambda: begun + 3600
    client.delete_pod(seen.id)
    client.delete_pod(seen.id)  # has ended: no error
    assert client.pods() == []
    (bill,) = client.history()
    assert bill.dollars == pytest.approx(2.0, rel=0.01)
    with pytest.raises(errors.NotFound):
        client.pod(seen.id)


def test_every_page_is_read_and_a_moving_list_gives_nothing_twice(
    client: Client, market: Market
) -> None:
    market.offers = [offer(f"c{i}") for i in range(250)]
    assert len(client.offers()) == 250
    for i in range(201):
        market.create({"pod": {**WISH["pod"], "cloudId": "c0", "name": f"n{i}"}})
    assert len({pod.id for pod in client.pods()}) == len(client.pods()) == 201
    first = market.pods["pod0001"]
    twice = json.dumps({"data": [first, first], "total_count": 2}).encode()
    market.fail("GET", "/pods/", Fault(status=200, body=twice))
    assert len(client.pods()) == 1


STATUSES = [
    (400, "Bad request", errors.Invalid),
    (400, "No capacity left in this region", errors.NoCapacity),
    (400, "Insufficient funds", errors.NoFunds),
    (401, "bad key", errors.Unauthorized),
    (402, "pay", errors.NoFunds),
    (403, "scope", errors.Unauthorized),
    (404, "offer gone", errors.NoCapacity),
    (409, "GPU is no longer available", errors.NoCapacity),
    (422, "cloudId: missing", errors.Invalid),
    (429, "slow down", errors.RateLimited),
    (500, "oops", errors.ServerError),
    (502, "gateway", errors.ServerError),
    (503, "maintenance", errors.ServerError),
]


@pytest.mark.parametrize(("status", "text", "kind"), STATUSES)
def test_an_order_is_sent_once_whatever_comes_back(
    client: Client, market: Market, status: int, text: str, kind: type[errors.ApiError]
) -> None:
    body = json.dumps({"detail": text}).encode()
    market.fail("POST", "/pods/", Fault(status=status, body=body, headers={"Retry-After": "0"}))
    with pytest.raises(errors.ApiError, match=text) as caught:
        client.create_pod(WISH)
    assert type(caught.value) is kind
    assert caught.value.uncertain == (status >= 500)
    assert market.asked.count("POST /pods/") == 1


READS = [  # only of an order can a sentence say that nothing is left
    (400, errors.Invalid), (401, errors.Unauthorized), (402, errors.NoFunds),
    (403, errors.Unauthorized), (409, errors.Invalid), (422, errors.Invalid),
    (429, errors.RateLimited), (500, errors.ServerError), (503, errors.ServerError),
]  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), READS)
def test_a_failed_reading_never_looks_like_nothing(
    client: Client, market: Market, status: int, kind: type[errors.ApiError]
) -> None:
    """Of pods, offers, keys, bills, the wallet; nor does an end look like one that happened."""
    asked: list[Callable[[], object]] = [
        client.pods, client.offers, client.ssh_keys, lambda: list(client.history()),
        client.balance, lambda: client.pod("pod1"), lambda: client.delete_pod("pod1"),
    ]  # fmt: skip
    for method in ("GET", "DELETE"):
        market.fail(method, ".*", Fault(status=status, body=b"No capacity"), times=99)
    for ask in asked:
        with pytest.raises(errors.ApiError) as caught:
            ask()
        assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"detail": "text"}', "text"),
        (b'{"detail": [{"loc": ["body", "pod"], "msg": "wrong"}]}', "body.pod: wrong"),
        (b'{"errors": [{"param": "gpuCount", "details": "too many"}]}', "gpuCount: too many"),
        (b"<html>\n  teapot</html>", "<html> teapot</html>"),
        (b'["a"]', "a"),
        (b"", ""),
    ],
)
def test_every_shape_of_an_error_is_understood(body: bytes, shown: str) -> None:
    assert shown in errors.explanation(body)


def test_reading_is_repeated_and_waits_as_it_is_told(client: Client, market: Market) -> None:
    for status in (429, 500, 503):
        market.fail("GET", "/pods/", Fault(status=status, headers={"Retry-After": "0"}))
    assert client.pods() == []
    assert market.asked == ["GET /pods/"] * 4
    market.fail("GET", "/pods/", Fault(status=429, headers={"Retry-After": "1"}))
    begun = time.monotonic()
    assert client.pods() == []
    assert time.monotonic() - begun >= 1
    market.fail("GET", "/pods/", Fault(status=429), times=4)
    with pytest.raises(errors.RateLimited):
        client.pods()


@pytest.mark.parametrize("fault", [Fault(cut=True, done=True), Fault(seconds=0.3, done=True)])
def test_a_lost_answer_is_no_refusal(market: Market, address: str, fault: Fault) -> None:
    client = Client(Account(key=KEY, address=address), timeout=0.1, repeats=0, pause=0)
    market.fail("POST", "/pods/", fault)
    with pytest.raises(errors.LostAnswer) as caught:
        client.create_pod(WISH)
    assert caught.value.uncertain
    end = time.monotonic() + 10  # a slow server buys after we have given up
    while not market.pods and time.monotonic() < end:
        time.sleep(0.01)
    assert len(market.pods) == market.asked.count("POST /pods/") == 1


def test_a_slow_server_is_asked_again(market: Market, address: str) -> None:
    client = Client(Account(key=KEY, address=address), timeout=0.2, repeats=1, pause=0)
    market.fail("GET", "/pods/", Fault(seconds=0.6, status=200, body=b'{"data": []}'))
    assert client.pods() == []
    market.fail("GET", "/pods/", Fault(seconds=0.6, status=200, body=b'{"data": []}'), times=2)
    with pytest.raises(errors.LostAnswer, match="no answer"):
        client.pods()


@pytest.mark.parametrize("body", [b"not json", b"[]", b'{"total_count": 0}', b'{"data": null}'])
def test_an_answer_without_its_list_is_not_an_empty_list(
    client: Client, market: Market, body: bytes
) -> None:
    market.fail("GET", "/pods/", Fault(status=200, body=body))
    with pytest.raises(errors.LostAnswer):
        client.pods()


def test_redirects_stay_on_the_server_that_has_the_key(client: Client, market: Market) -> None:
    moved = Fault(status=307, headers={"Location": "/api/v1/pods/"})
    market.fail("POST", "/pods/", moved)
    assert client.create_pod(WISH).name == "n"
    with serving(Market()) as other:
        market.fail("GET", "/pods/", Fault(status=302, headers={"Location": f"{other}/steal"}))
        with pytest.raises(errors.ApiError, match="not given the key"):
            client.pods()
    market.fail("GET", "/pods/", moved, times=5)
    with pytest.raises(errors.ApiError, match="307"):
        client.pods()


def test_a_server_that_is_away(address: str) -> None:
    client = Client(Account(key=KEY, address="http://127.0.0.1:9"), repeats=1, pause=0)
    with pytest.raises(errors.Unreachable) as caught:
        client.create_pod(WISH)
    assert not caught.value.uncertain


def test_the_key_is_never_shown(
    market: Market, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "pit_0123456789"
    account = Account(key=secret, address=address)
    assert secret not in repr(account)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(errors.Unauthorized) as caught:
        Client(account, repeats=0).pods()
    assert secret not in str(caught.value)
    text = errors.explanation(Client(account)._hidden(f'{{"detail": "{secret}?"}}'.encode()))
    assert text == "...?"
    assert secret not in caplog.text


def test_unknown_words_of_the_api_are_kept(client: Client, market: Market) -> None:
    market.offers = [offer("new", provider="nobody", region="moon", stockStatus="Plenty")]
    (found,) = client.offers()
    assert (found.provider, found.region, found.stock) == ("nobody", "moon", "Plenty")
    market.offers = [offer("unpriced", prices={})]
    assert client.offers() == []
