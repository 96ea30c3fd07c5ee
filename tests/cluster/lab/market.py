"""The fake market with real machines behind its pods: hosts made of namespaces, on one bridge.

    nsenter --net=/run/netns/LAB python market.py FOLDER LAB [PATH...]

Runs in the lab's network, which has no way out. Serves the API at 203.0.113.1:8700 (documentation's
own addresses); takes orders as lines of JSON, `["name", [arguments]]`, and answers each with a
line. Ends, with every host, when its input does. PATH: what hosts must see although it is in /tmp.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cluster.prime.fake import Market, offer, serving

ADDRESS, PORT = "203.0.113.1", 8700
HOST = Path(__file__).with_name("host.sh")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """The machines of the pods: 203.0.113.(10 + N), SSH on port 2200 + N, N counting up. Those of a
    pod of several also have a network of their own, 10.88.0.(10 + N)."""

    def __init__(self, folder: Path, lab: str, kept: list[str], market: Market) -> None:
        self.folder, self.lab, self.kept, self.market = folder, lab, kept, market
        self.running: dict[str, list[tuple[int, subprocess.Popen[bytes]]]] = {}
        self.made = 0

    def start(self, pod: dict[str, Any]) -> None:
        doors = [self._boot(pod["id"], index) for index in range(self.market.size(pod))]
        hosts = [door.split("@")[1].split()[0] for door in doors]
        several = len(doors) > 1
        pod["ip"], pod["sshConnection"] = (hosts, doors) if several else (hosts[0], doors[0])

    def _boot(self, pod: str, index: int) -> str:
        """One machine; how SSH reaches it."""
        self.made += 1
        number = self.made
        address, port, space = f"203.0.113.{10 + number}", 2200 + number, f"{self.lab}-{number}"
        folder = self.folder / (f"{pod}-m{index}" if index else pod)
        (folder / "home").mkdir(parents=True)
        (folder / "home" / ".profile").write_text('[ -f "$HOME/.bashrc" ] && . "$HOME/.bashrc"\n')
        keys = "".join(f"{key['publicKey']}\n" for key in self.market.keys)
        (folder / "authorized_keys").write_text(keys)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")],
            check=True,
        )
        ip("netns", "add", space)
        ip("-n", space, "link", "set", "lo", "up")
        self._plug(number, "h", "bridge", "eth0", f"{address}/24")
        if index or self.market.size(self.market.pods[pod]) > 1:
            self._plug(number, "p", "private", "eth1", f"10.88.0.{10 + number}/24")
        log = (folder / "host.log").open("wb")
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{space}", "unshare", "-m", "-p", "-u", "-i", "-f",
             "--mount-proc", "--kill-child", "bash", str(HOST), str(folder), address, str(port),
             f"host{number}", *self.kept],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip
        self.running.setdefault(pod, []).append((number, process))
        return f"root@{address} -p {port}"

    def _plug(self, number: int, letter: str, bridge: str, name: str, address: str) -> None:
        space, end = f"{self.lab}-{number}", f"{letter}{number}"
        ip("link", "add", end, "type", "veth", "peer", "name", name, "netns", space)
        ip("link", "set", end, "master", bridge, "up")
        ip("-n", space, "addr", "add", address, "dev", name)
        ip("-n", space, "link", "set", name, "up")

    def stop(self, pod: dict[str, Any]) -> None:
        """As a provider takes machines back: without a warning to anything on them."""
        for number, process in self.running.pop(pod["id"], []):
            process.send_signal(signal.SIGKILL)
            process.wait()
            for end in (f"h{number}", f"p{number}"):
                subprocess.run(["ip", "link", "del", end], capture_output=True)
            subprocess.run(["ip", "netns", "del", f"{self.lab}-{number}"], capture_output=True)


def market(hosts: list[Hosts], folder: Path, lab: str, kept: list[str]) -> Market:
    """Two offers of one machine each, one of two machines with a network, and the head's."""
    found = Market(
        [
            offer("cpu", gpuType="CPU_NODE", gpuMemory=0, price=0.1, provider="hyperstack"),
            offer("gpu-cheap", price=1.0),
            offer("gpu-dear", price=1.5, region="us_east"),
            offer("pair", price=3.0, gpuCount=2),
        ]
    )
    found.machines["pair"] = 2
    found.accounts = {"pit-of-the-laptop", "pit-of-the-head"}
    hosts.append(Hosts(folder, lab, kept, found))
    found.started, found.stopped = hosts[0].start, hosts[0].stop
    return found


def orders(market: Market) -> None:
    """Until the input ends."""
    for line in sys.stdin:
        name, arguments = json.loads(line)
        with market.lock:
            if name == "pods":
                answer: Any = [
                    {key: pod[key] for key in ("id", "name", "status", "priceHr", "ip")}
                    for pod in market.pods.values()
                ]
            elif name == "stock":
                market.stock[arguments[0]] = arguments[1]
                answer = market.stock
            elif name == "preempt":
                answer = market.delete(arguments[0])[0]
            elif name == "begun":  # so many hours ago
                for pod in market.pods.values():
                    began = datetime.fromisoformat(pod["createdAt"])
                    pod["createdAt"] = (began - timedelta(hours=arguments[0])).isoformat()
                answer = arguments
            else:
                raise ValueError(f"no order {name!r}")
        print(json.dumps(answer), flush=True)


def main() -> None:
    folder, lab, *kept = sys.argv[1:]
    hosts: list[Hosts] = []
    made = market(hosts, Path(folder), lab, kept)
    with serving(made, ADDRESS, PORT):
        print(json.dumps(os.getpid()), flush=True)
        try:
            orders(made)
        finally:
            for pod in list(made.pods.values()):
                hosts[0].stop(pod)


if __name__ == "__main__":
    main()
