"""The fake market with real machines behind its pods: hosts made of namespaces, on one bridge.

    nsenter --net=/run/netns/LAB python market.py FOLDER LAB [PATH...]

Runs in the lab's network, which has no way out. Serves the API at 10.77.0.1:8700; takes orders as
lines of JSON, `["name", [arguments]]`, and answers each with a line. Ends, with every host, when its
input does. PATH: what hosts must see although it is in /tmp.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.prime.fake import Market, offer, serving

ADDRESS, PORT = "10.77.0.1", 8700
HOST = Path(__file__).with_name("host.sh")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """One machine for each pod: 10.77.0.(10 + N), SSH on port 2200 + N."""

    def __init__(self, folder: Path, lab: str, kept: list[str], market: Market) -> None:
        self.folder, self.lab, self.kept, self.market = folder, lab, kept, market
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, pod: dict[str, Any]) -> None:
        number = int(pod["id"].removeprefix("pod"))
        address, port, space = f"10.77.0.{10 + number}", 2200 + number, f"{self.lab}-{number}"
        folder = self.folder / pod["id"]
        (folder / "home").mkdir(parents=True)
        (folder / "home" / ".profile").write_text('[ -f "$HOME/.bashrc" ] && . "$HOME/.bashrc"\n')
        keys = "".join(f"{key['publicKey']}\n" for key in self.market.keys)
        (folder / "authorized_keys").write_text(keys)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")],
            check=True,
        )
        ip("netns", "add", space)
        ip("link", "add", f"h{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", f"h{number}", "master", "bridge", "up")
        for words in (
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", space, *words)
        log = (folder / "host.log").open("wb")
        self.running[pod["id"]] = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{space}", "unshare", "-m", "-p", "-u", "-i", "-f",
             "--mount-proc", "--kill-child", "bash", str(HOST), str(folder), address, str(port),
             f"host{number}", *self.kept],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip
        pod["ip"], pod["sshConnection"] = address, f"root@{address} -p {port}"

    def stop(self, pod: dict[str, Any]) -> None:
        """As a provider takes a machine back: without a warning to anything on it."""
        process = self.running.pop(pod["id"], None)
        if process is None:
            return
        process.send_signal(signal.SIGKILL)
        process.wait()
        number = int(pod["id"].removeprefix("pod"))
        subprocess.run(["ip", "link", "del", f"h{number}"], capture_output=True)
        subprocess.run(["ip", "netns", "del", f"{self.lab}-{number}"], capture_output=True)
        shutil.rmtree(self.folder / pod["id"] / "tmp" / "ray", ignore_errors=True)


def market(hosts: list[Hosts], folder: Path, lab: str, kept: list[str]) -> Market:
    """Two offers of one machine each, and the head's."""
    found = Market(
        [
            offer("cpu", gpuType="CPU_NODE", gpuMemory=0, price=0.1, provider="hyperstack"),
            offer("gpu-cheap", price=1.0),
            offer("gpu-dear", price=1.5, region="us_east"),
        ]
    )
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
            elif name == "asked":
                answer = market.asked
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
