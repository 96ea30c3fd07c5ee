"""Is a driver on another machine at work on the same study? A lock on a disk cannot tell where a
study is kept at a URL, so a driver keeps a note there, and renews it.

A note that was not renewed for `VALID` seconds is nobody's; nor is that of a process of this
machine that has ended. Object stores take no locks: of two who write at the same moment the later
one stays, and the other sees that when it reads again. Clocks may differ by some seconds.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isoflop.orchestration.mirror import Mirror

FILE = "driver.json"
VALID = 90.0
RENEW = 20.0
SETTLE = 1.0  # seconds for a note written at the same moment to be seen
READINGS, AGAIN = 10, 0.05  # of a note that is half written, and the seconds between them


class Lease:
    """One driver's note in the folder of a study."""

    def __init__(self, mirror: Mirror, folder: Path) -> None:
        self.mirror, self.path = mirror, folder / FILE
        self.who = {"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}

    def take(self) -> None:
        """Raises ValueError if the study is another's."""
        for pause in (SETTLE, 0.0):
            other = self.other()
            if other is not None:
                raise ValueError(
                    f"process {other['process']} on {other['host']} is running this study at "
                    f"{self.mirror.url}; wait for it (if it was lost, for {VALID:.0f} s)"
                )
            if pause:
                self.renew()
                time.sleep(pause)

    def renew(self) -> None:
        self.mirror.write(self.path, json.dumps({**self.who, "until": time.time() + VALID}))

    def other(self) -> dict[str, Any] | None:
        """Whose study it is, if another's."""
        note = self._note()
        if note is None or {name: note.get(name) for name in self.who} == self.who:
            return None
        gone = note["host"] == self.who["host"] and not _runs(note["process"])
        return None if gone or note["until"] < time.time() else note

    def give(self) -> None:
        if self.other() is None:
            self.mirror.remove(self.path)

    def _note(self) -> dict[str, Any] | None:
        for _ in range(READINGS):
            text = self.mirror.read(self.path)
            if text is None:
                return None
            try:
                note = json.loads(text)
            except ValueError:  # it is being written: disks show files that are not whole
                time.sleep(AGAIN)
                continue
            return note if isinstance(note, dict) else None
        return None  # whoever wrote it came no further


@contextmanager
def leased(mirror: Mirror | None, folder: Path, lost: Callable[[str], None]) -> Iterator[None]:
    """Keep the study for this driver. `lost` is told why it is not any more. Raises ValueError if
    it is another's. Nothing where it is kept on a disk."""
    if mirror is None:
        yield
        return
    lease, done = Lease(mirror, folder), threading.Event()
    lease.take()

    def keep() -> None:
        while not done.wait(RENEW):
            try:
                other = lease.other()
                if other is not None:
                    lost(f"process {other['process']} on {other['host']} has taken the study over")
                    return
                lease.renew()
            except OSError:  # the store is away: the note is good for some time
                continue

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        lease.give()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
