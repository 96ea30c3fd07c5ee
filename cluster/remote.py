"""How does one look at the cluster from a laptop? Over SSH: shells, files, tunnels."""

from __future__ import annotations

import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.file import File, Target, read, targets
from cluster.options import command

Say = Callable[[str], None]


def attach(path: Path) -> int:
    """A shell on the head."""
    file = read(path)
    return subprocess.run([*_ssh(file, targets(file)[0], "-t"), "bash --login"]).returncode


def everywhere(path: Path, line: str, say: Say) -> int:
    """Run a shell line on every node and say what each answered; gives how many failed."""
    file = read(path)
    failed = 0
    for target in targets(file):
        done = subprocess.run(
            [*_ssh(file, target, "-o", "ConnectTimeout=15"), line],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        failed += done.returncode != 0
        text = done.stdout.strip() or done.stderr.strip() or "nothing"
        say(f"{target.name} ({target.id})")
        for answer in text.splitlines():
            say(f"  {answer}")
    return failed


def fetch(path: Path, source: str, target: str) -> int:
    """Copy from the head; what is here and the same is not copied again, and nothing is deleted.
    From a URL (s3://...) it is copied without the head, which may be gone."""
    if "://" in source:
        return _download(source, target)
    file = read(path)
    head = targets(file)[0]
    Path(target).mkdir(parents=True, exist_ok=True)
    remote = f"{head.endpoint.user}@{head.endpoint.host}:{source}"
    return subprocess.run(
        ["rsync", "-az", "--partial", "--rsh", _rsh(file, head), remote, target]
    ).returncode


def _download(source: str, target: str) -> int:
    from pyarrow import fs

    system, place = fs.FileSystem.from_uri(source)
    if system.get_file_info(place).type == fs.FileType.NotFound:
        raise ValueError(f"{source}: there is nothing")
    Path(target).mkdir(parents=True, exist_ok=True)
    fs.copy_files(place, target, source_filesystem=system)
    return 0


def sync(file: File, head: Target, root: Path) -> None:
    """This checkout's code to the head. What studies wrote there stays."""
    left_out = (".git", ".venv", ".ci-venv", "results", "mlruns", "__pycache__", ".*_cache")
    without = [part for name in left_out for part in ("--exclude", name)]
    remote = f"{head.endpoint.user}@{head.endpoint.host}:isoflop/"
    line = ["rsync", "-az", *without, "--rsh", _rsh(file, head), f"{root}/", remote]
    if subprocess.run(line).returncode:
        raise ValueError(f"the code could not be copied to {head.endpoint.host}")


def tunnel(path: Path, ports: Sequence[tuple[str, int, int]], say: Say) -> int:
    """Ports of the head's localhost on this one's, until Ctrl-C: (what, here, there)."""
    file = read(path)
    with forwarded(file, targets(file)[0], [(here, there) for _, here, there in ports]) as process:
        for what, here, _ in ports:
            say(f"{what}: http://127.0.0.1:{here}")
        say("Ctrl-C ends it")
        try:
            return process.wait()
        except KeyboardInterrupt:
            return 0


@contextmanager
def forwarded(
    file: File, head: Target, ports: Sequence[tuple[int, int]]
) -> Iterator[subprocess.Popen[bytes]]:
    """The same, for as long as the block runs. Raises ValueError if it cannot be made."""
    for here, _ in ports:
        if _answers(here):
            raise ValueError(f"port {here} of this machine is taken; name another")
    arguments = ["-N", "-o", "ExitOnForwardFailure=yes", "-o", "ConnectTimeout=15"]
    for here, there in ports:
        arguments += ["-L", f"127.0.0.1:{here}:127.0.0.1:{there}"]
    process = subprocess.Popen(_ssh(file, head, *arguments), stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while not all(_answers(here) for here, _ in ports):
            if process.poll() is not None or time.monotonic() > end:
                raise ValueError(f"no tunnel to {head.endpoint.host} port {head.endpoint.port}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        tried.settimeout(1)
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _ssh(file: File, target: Target, *more: str) -> list[str]:
    return command(target.endpoint, target.id, file.key, file.hosts, *more)


def _rsh(file: File, target: Target) -> str:
    return shlex.join(_ssh(file, target)[:-1])
