"""Do two drivers on two machines keep out of each other's way where a study is kept at a URL?"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from isoflop.design import UserError
from isoflop.orchestration import lease as room
from isoflop.orchestration import mirror as copies
from isoflop.orchestration.lease import FILE, Lease, leased
from isoflop.orchestration.mirror import Mirror
from isoflop.watching import alone


@pytest.fixture(params=["file", "memory"])
def mirror(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Mirror:
    monkeypatch.setattr(copies, "_copies", lambda: tmp_path / "here")
    monkeypatch.setattr(room, "SETTLE", 0.01)
    monkeypatch.setattr(room, "RENEW", 0.02)
    name = "memory://" + uuid4().hex if request.param == "memory" else f"file://{tmp_path / 'at'}"
    return Mirror.of(name)


def elsewhere(mirror: Mirror) -> Lease:
    """The note of a driver of another machine."""
    other = Lease(mirror, mirror.local / "study")
    other.who = {"host": "another", "process": 7, "since": 1.0}
    return other


def test_the_second_is_told_who_is_at_work(mirror: Mirror) -> None:
    elsewhere(mirror).take()
    with (
        pytest.raises(UserError, match="process 7 on another is running this study at"),
        alone(_folder(mirror), mirror),
    ):
        pytest.fail("two drivers")


def test_a_note_goes_with_its_driver_and_is_renewed_until_then(mirror: Mirror) -> None:
    folder = _folder(mirror)
    with alone(folder, mirror):
        first = mirror.read(folder / FILE)
        deadline = time.monotonic() + 10
        while mirror.read(folder / FILE) in (first, None) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert mirror.read(folder / FILE) != first, "renewed"
        with pytest.raises(ValueError, match="is running this study"):
            elsewhere(mirror).take()
    assert mirror.read(folder / FILE) is None
    elsewhere(mirror).take()


def test_a_note_that_is_being_written_is_somebodys(mirror: Mirror) -> None:
    mine = Lease(mirror, mirror.local / "study")
    mirror.write(mine.path, "")  # as a disk shows it between opening and writing
    writing = threading.Timer(0.15, elsewhere(mirror).renew)
    writing.start()
    try:
        with pytest.raises(ValueError, match="process 7 on another"):
            mine.take()
    finally:
        writing.join()


def test_a_note_that_stays_half_written_keeps_nobody_out(mirror: Mirror) -> None:
    mine = Lease(mirror, mirror.local / "study")
    mirror.write(mine.path, '{"host": "anoth')
    mine.take()
    assert mine.other() is None


def test_of_two_at_the_same_moment_one_stays(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writes while this one waits to read its own note again."""
    mine, other = Lease(mirror, mirror.local / "study"), elsewhere(mirror)
    monkeypatch.setattr(time, "sleep", lambda seconds: other.renew())
    with pytest.raises(ValueError, match="process 7 on another"):
        mine.take()
    assert other.other() is None, "the later one's note stands"


def test_who_was_lost_is_waited_for_no_longer_than_the_note_is_good(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "VALID", 0.05)
    elsewhere(mirror).take()
    time.sleep(0.1)
    Lease(mirror, mirror.local / "study").take()


def test_a_process_of_this_machine_that_has_ended_is_not_waited_for(mirror: Mirror) -> None:
    killed = Lease(mirror, mirror.local / "study")
    killed.who["process"] = 2**22 + 1  # beyond what Linux gives
    killed.take()
    Lease(mirror, mirror.local / "study").take()


def test_a_driver_that_was_thought_lost_stops(mirror: Mirror) -> None:
    folder, told = _folder(mirror), list[str]()
    with leased(mirror, folder, told.append):
        elsewhere(mirror).renew()
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
    assert told == ["process 7 on another has taken the study over"]
    assert mirror.read(folder / FILE) is not None, "the other's note is left alone"


def test_on_a_disk_there_is_no_note(tmp_path: Path) -> None:
    with alone(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def _folder(mirror: Mirror) -> Path:
    folder = mirror.local / "study"
    folder.mkdir(parents=True)
    return folder
