"""Is the right account used, and is its key kept?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.prime.account import account, checked
from cluster.prime.records import endpoint, pod


def save(home: Path, **values: object) -> None:
    (home / ".prime").mkdir()
    (home / ".prime" / "config.json").write_text(json.dumps(values))


def test_the_environment_wins_over_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(home, api_key="filed", team_id="t", base_url="https://elsewhere.test/api/v1", other=3)
    found = account(home)
    assert (found.key, found.team, found.address) == ("filed", "t", "https://elsewhere.test")
    monkeypatch.setenv("PRIME_API_KEY", "given")
    monkeypatch.setenv("PRIME_API_BASE_URL", "http://127.0.0.1:80")
    assert (account(home).key, account(home).address) == ("given", "http://127.0.0.1:80")


def test_without_a_key_it_is_said_where_one_goes(home: Path) -> None:
    with pytest.raises(ValueError, match="PRIME_API_KEY"):
        account(home)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_file_is_named(home: Path, text: str) -> None:
    save(home)
    (home / ".prime" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        account(home)


def test_a_key_with_a_line_end_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIME_API_KEY", "key\n")
    with pytest.raises(ValueError, match="line end"):
        account(home)


@pytest.mark.parametrize(
    "address", ["http://api.test", "ftp://a", "api.test", "", "http://8.8.8.8"]
)
def test_the_key_does_not_travel_in_the_open(address: str) -> None:
    with pytest.raises(ValueError, match="https"):
        checked(address)


@pytest.mark.parametrize("text", ["root@1.2.3.4 -p 22 -o Proxy=x", "1.2.3.4", "-l@h", "a@-h"])
def test_an_ssh_address_is_only_an_address(text: str) -> None:
    with pytest.raises(ValueError, match="sshConnection"):
        endpoint(text)


def test_a_pod_of_several_machines_is_ready_when_all_are() -> None:
    values = {"id": "a", "status": "active", "ip": ["1.1.1.1", None]}
    starting = pod({**values, "sshConnection": ["root@1.1.1.1", None]})
    assert not starting.ready and len(starting.endpoints) == 2
    assert pod({**values, "sshConnection": ["root@1.1.1.1", "ubuntu@1.1.1.2 -p 22"]}).ready
    assert not pod({**values, "sshConnection": [None]}).ready
    assert not pod({**values, "sshConnection": "a@b", "installationStatus": "PENDING"}).ready


def test_a_stopped_pod_costs_its_full_price_unless_it_has_another() -> None:
    values = {"id": "a", "status": "STOPPED", "priceHr": 2}
    assert pod(values).price == 2
    assert pod({**values, "stoppedPriceHr": 0.5}).price == 0.5
