"""How is a study run on the cluster? As a Ray job on the head, which outlives the laptop.

The code goes to the head first; the study then sends it to the other nodes itself.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.file import File, Target, read, targets
from cluster.keys import token
from cluster.remote import forwarded, free_port, sync

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

Say = Callable[[str], None]
ROOT = Path(__file__).resolve().parents[1]
_CHECK = ".venv/bin/python -m cluster.connectivity"
_DEFAULTS = {"--address": "auto", "--tracking": "http://127.0.0.1:5000"}


def submit(
    path: Path, study: str, arguments: Sequence[str], *, check: bool, wait: bool, say: Say
) -> int:
    """Run a study there, after a `check` of the network between its nodes. Ends with the study, or
    at Ctrl-C, which leaves it running. Raises ValueError if there is no such study, or no cluster.
    """
    file = read(path)
    line = entrypoint(study, arguments, check=file.least if check else 0)
    head = targets(file)[0]
    sync(file, head, ROOT)
    with _client(file, head) as client:
        run = client.submit_job(entrypoint=line)
        say(f"submitted {run}; isoflop cluster logs {run} shows it again")
        return _follow(client, run, say) if wait else 0


def entrypoint(study: str, arguments: Sequence[str], *, check: int) -> str:
    """The shell line that runs a study of this repository on the head, once so many nodes (`check`;
    0: however many) have reached each other. Raises ValueError."""
    full = (ROOT / study).resolve()
    if not full.is_file() or not full.is_relative_to(ROOT):
        raise ValueError(f"{study!r} is no file of this repository")
    given = {argument.split("=")[0] for argument in arguments}
    missing = {name: value for name, value in _DEFAULTS.items() if name not in given}
    added = [word for pair in missing.items() for word in pair]
    words = [".venv/bin/python", str(full.relative_to(ROOT)), *added, *arguments]
    first = f"{_CHECK} --nodes {check} && " if check else ""
    return f"cd ~/isoflop && {first}exec {shlex.join(words)}"


def check(path: Path, megabytes: int, say: Say) -> int:
    """All-reduce over all nodes, before a study may trust them; see cluster/connectivity.py."""
    file = read(path)
    with _client(file, targets(file)[0]) as client:
        line = f"cd ~/isoflop && exec {_CHECK} --nodes {file.least} --megabytes {megabytes}"
        run = client.submit_job(entrypoint=line)
        return _follow(client, run, say)


def runs(path: Path, say: Say) -> int:
    """Every run that the head knows of, the latest last."""
    file = read(path)
    with _client(file, targets(file)[0]) as client:
        jobs = [job for job in client.list_jobs() if job.submission_id]
        for job in sorted(jobs, key=lambda job: job.start_time or 0):
            line = job.entrypoint.rpartition("exec .venv/bin/python ")[2]
            say(f"{job.submission_id}  {job.status.value:<9}  {line}")
    return 0


def follow(path: Path, run: str | None, say: Say) -> int:
    """The log of a run from its beginning, as it grows."""
    file = read(path)
    with _client(file, targets(file)[0]) as client:
        if run is None:
            jobs = [job for job in client.list_jobs() if job.submission_id]
            if not jobs:
                raise ValueError(f"nothing was submitted to cluster {file.name} yet")
            run = max(jobs, key=lambda job: job.start_time or 0).submission_id
        return _follow(client, str(run), say)


def _follow(client: JobSubmissionClient, run: str, say: Say) -> int:
    """0 if the run succeeded, 1 if it did not, 130 where it was left running."""

    async def tail() -> None:
        async for text in client.tail_job_logs(run):
            for line in text.splitlines():
                say(line)

    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        say(f"{run} goes on; isoflop cluster logs {run} shows it again")
        return 130
    status = client.get_job_status(run)
    say(f"{run}: {status.value}")
    return 0 if status.value == "SUCCEEDED" else 1


@contextmanager
def _client(file: File, head: Target) -> Iterator[JobSubmissionClient]:
    """Ray's client of jobs, through a tunnel, with the cluster's token."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token(file.name))
    from ray.job_submission import JobSubmissionClient

    port = free_port()
    with forwarded(file, head, [(port, 8265)]):
        yield JobSubmissionClient(f"http://127.0.0.1:{port}")
