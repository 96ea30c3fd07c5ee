"""Is progress told often enough, and not too often?"""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from isoflop.data import meter
from isoflop.data.meter import Lines, shown


def test_a_line_has_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(meter.time, "monotonic", lambda: now)
    told: list[str] = []
    lines = Lines(told.append, every=10)
    lines.begin("encoding", 100_000_000)
    for _ in range(20):
        now += 1
        lines.advance(2_000_000)
    assert told == [
        "encoding 20.0 MB of 100.0 MB, 2.0 MB/s, 40 s left",
        "encoding 40.0 MB of 100.0 MB, 2.0 MB/s, 30 s left",
    ]
    lines.say("at once")
    assert told[-1] == "at once"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_shows_it(terminal: bool) -> None:
    stream = StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with shown(console) as told:
        told.begin("encoding", 10**6)
        told.advance(10**6)
        told.say("[not markup]")
    assert "[not markup]" in stream.getvalue()
    assert ("encoding" in stream.getvalue()) is terminal  # plain lines come every ten seconds
