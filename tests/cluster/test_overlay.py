"""Does the overlay carry traffic between two nodes? wireguard.sh itself, on hosts of namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.network import overlay

ROOT = Path(__file__).parents[2]
SEARCH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
TOOLS = [t for t in ("ip", "wg-quick", "nsenter", "unshare") if not shutil.which(t, path=SEARCH)]
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root"),
    pytest.mark.skipif(bool(TOOLS), reason=f"not installed: {', '.join(TOOLS)}"),
]


def ip(*words: str) -> int:
    return subprocess.run(["ip", *words], capture_output=True, env={"PATH": SEARCH}).returncode


def in_the_kernel() -> bool:
    made = ip("link", "add", "isoflop-test", "type", "wireguard") == 0
    ip("link", "delete", "isoflop-test")
    return made


class Host:
    """A network, and folders for what WireGuard keeps, of one host; its slot is its number."""

    def __init__(self, number: int, folder: Path) -> None:
        self.space, self.number = f"isw{os.getpid()}-{number}", number
        (folder / ".ray").mkdir(parents=True)
        (folder / ".ray" / "auth_token").write_text("of the cluster")
        assert ip("netns", "add", self.space) == 0
        self.first = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.space}", "unshare", "-m", "-p", "-f",
             "--mount-proc", "--kill-child", "sh", "-c",
             "mkdir -p /etc/wireguard; mount -t tmpfs tmpfs /etc/wireguard; "
             "mount -t tmpfs tmpfs /run; echo made; exec sleep 600"],
            stdout=subprocess.PIPE, text=True, env={"PATH": SEARCH},
        )  # fmt: skip
        assert self.first.stdout is not None and self.first.stdout.readline() == "made\n"
        (inner,) = (
            Path(f"/proc/{self.first.pid}/task/{self.first.pid}/children").read_text().split()
        )
        self.inside = ["nsenter", "--net", "--mount", "--pid", f"--target={inner}"]
        self.environment = {
            "PATH": SEARCH, "HOME": str(folder), "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
            "ISOFLOP_SLOT": str(number), "ISOFLOP_PEERS": "1@198.51.100.1",
        }  # fmt: skip

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.inside, *command],
            env=self.environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def close(self) -> None:
        self.first.kill()
        self.first.communicate()
        ip("netns", "del", self.space)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    if not in_the_kernel() and not shutil.which("wireguard-go", path=SEARCH):
        pytest.skip("neither this kernel's WireGuard nor wireguard-go is here")
    made: list[Host] = []
    try:
        for number in (1, 2):
            made.append(Host(number, tmp_path / str(number)))
        one, two = (host.space for host in made)
        ip("-n", one, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", two)
        for number, space in ((1, one), (2, two)):
            for words in (("link", "set", "lo", "up"), ("link", "set", "eth0", "up"),
                          ("addr", "add", f"198.51.100.{number}/24", "dev", "eth0")):  # fmt: skip
                assert ip("-n", space, *words) == 0
        yield made
    finally:
        for host in made:
            host.close()


SERVE = """
import socket, sys
with socket.create_server((sys.argv[1], 6379)) as server:
    print("ready", flush=True)
    connection, (who, _) = server.accept()
    connection.sendall(who.encode())
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 6379), timeout=30) as connection:
    print(connection.recv(99).decode())
"""


def test_two_nodes_reach_each_other_by_their_slots(hosts: list[Host]) -> None:
    """The second knows where the first is, the first learns where the second is from its packets;
    doing it again, as a restart of Ray does, keeps the network."""
    for host in (*hosts, hosts[1]):
        done = host.run("bash", str(ROOT / "cluster" / "wireguard.sh"))
        assert done.returncode == 0, done.stderr
    one, two = hosts
    with subprocess.Popen(
        [*one.inside, sys.executable, "-c", SERVE, overlay(1)],
        env=one.environment, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        asked = two.run(sys.executable, "-c", ASK, overlay(1))
        server.kill()
    assert asked.stdout == f"{overlay(2)}\n", asked.stderr
    shown = two.run("wg", "show", "isoflop0")
    assert "latest handshake" in shown.stdout and "of the cluster" not in shown.stdout
