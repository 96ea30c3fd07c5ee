"""What do the cluster's tests share? A market of their own, and a client that does not wait."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.prime.account import Account
from cluster.prime.api import Client
from cluster.prime.fake import KEY, Market, serving

# Ray's own code reads the mode once in a process. Its launcher would have it read as "disabled",
# and a cluster that another test then starts here, with a token, could not be talked to.
os.environ.setdefault("RAY_AUTH_MODE", "token")


@pytest.fixture
def market() -> Market:
    return Market()


@pytest.fixture
def address(market: Market) -> Iterator[str]:
    with serving(market) as address:
        yield address


@pytest.fixture
def client(address: str) -> Client:
    return Client(Account(key=KEY, address=address), timeout=1, repeats=3, pause=0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the home, or the account, of whoever runs it."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("PRIME_API_KEY", "PRIME_TEAM_ID", "PRIME_API_BASE_URL", "PRIME_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder
