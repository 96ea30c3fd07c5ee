"""Does Ray's own launcher and autoscaler work with our provider? Both in this process, against the
fake market, with an ssh and an rsync that write down what they are asked.
"""

from __future__ import annotations

import io
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster.prime.fake import KEY, Fault, Market, offer

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own are not ours
Spy = Callable[[], list[list[str]]]
ROOT = Path(__file__).parents[2]
RECORDER = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["SPY"], "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
"""


@pytest.fixture
def spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spy:
    """What ssh and rsync were called with."""
    log, folder = tmp_path / "spy.jsonl", tmp_path / "bin"
    folder.mkdir()
    for name in ("ssh", "rsync"):
        (folder / name).write_text(RECORDER)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("SPY", str(log))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    log.touch()
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def prime(address: str, market: Market, monkeypatch: pytest.MonkeyPatch) -> Iterator[Market]:
    """The market where the provider looks for it."""
    import ray.autoscaler._private.providers as providers
    from ray.autoscaler._private import command_runner, updater

    monkeypatch.setenv("PRIME_API_KEY", KEY)
    monkeypatch.setenv("PRIME_API_BASE_URL", address)
    monkeypatch.setattr(command_runner, "AUTOSCALER_NODE_SSH_INTERVAL_S", 0.1)
    monkeypatch.setattr(updater, "READY_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(updater, "AUTOSCALER_NODE_START_WAIT_S", 10)
    yield market
    providers._provider_instances.clear()
    logging.getLogger("ray").handlers.clear()


def cluster_file(tmp_path: Path, **provider: Any) -> Path:
    """cluster/prime.yaml, with other settings of its provider."""
    config = yaml.safe_load((ROOT / "cluster" / "prime.yaml").read_text())
    config["provider"] |= provider
    config["file_mounts"] = {"~/isoflop": str(tmp_path)}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def ray(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A `ray` command, in this process. Gives what it printed."""
    import ray.autoscaler._private.providers as providers
    from ray.scripts.scripts import cli

    def run(*arguments: str) -> str:
        said = ""
        providers._provider_instances.clear()  # as in a process of its own
        try:
            cli.main(list(arguments), standalone_mode=False)
        except (Exception, SystemExit) as error:
            said = str(error)
        shown = capfd.readouterr()
        return shown.out + shown.err + said

    return run


def test_ray_up_shows_the_price_and_sets_the_head_up(
    prime: Market, spy: Spy, ray: Callable[..., str], tmp_path: Path, home: Path
) -> None:
    path = cluster_file(tmp_path)
    shown = ray("up", str(path), "-y", "--no-config-cache")
    assert "head: 0.06 $/h each" in shown and "gpu: 1.20 $/h" not in shown, shown
    (pod,) = prime.pods.values()
    assert pod["name"].startswith("isoflop-lab-h-head-")
    body = prime.bodies[pod["id"]]["pod"]
    assert body["maxPrice"] == 0.5
    assert body["sshKeyId"] == prime.keys[0]["id"]
    calls = spy()
    assert calls, shown
    flat = "\n".join(" ".join(call) for call in calls)
    folder = home / ".isoflop" / "clusters" / "lab"
    for call in calls:
        joined = " ".join(call)
        assert "Port=2201" in joined and f"HostKeyAlias={pod['id']}" in joined, joined
        assert "StrictHostKeyChecking=accept-new" in joined and str(folder) in joined
    assert "start.sh head" in flat and "RAY_AUTH_MODE=token" in flat
    assert f"ISOFLOP_NODE_ADDRESS={pod['ip']}" in flat
    secrets = [(folder / "auth_token").read_text(), (folder / "ssh_key").read_text().split("\n")[2]]
    assert not any(secret in flat or secret in path.read_text() for secret in secrets)
    for secret in ("auth_token", "ssh_key", "head_account.json"):
        assert stat.S_IMODE((folder / secret).stat().st_mode) == 0o600


@pytest.mark.slow
def test_ray_down_leaves_nothing_and_a_second_laptop_can_do_it(
    prime: Market, spy: Spy, ray: Callable[..., str], tmp_path: Path, home: Path
) -> None:
    path = cluster_file(tmp_path)
    ray("up", str(path), "-y", "--no-config-cache")
    prime.create({"pod": {"name": "isoflop-lab-w-gpu-0123456789", "cloudId": "h100-1",
                          "gpuType": "", "socket": "", "gpuCount": 1, "maxPrice": 9}})  # fmt: skip
    (home / ".isoflop").rename(home / "lost")
    again = ray("up", str(path), "-y", "--no-config-cache")
    assert "another machine started it" in again
    assert len(prime.pods) == 2
    prime.fail("DELETE", "/pods/.*", Fault(status=503, headers={"Retry-After": "0"}), times=2)
    shown = ray("down", str(path), "-y")
    assert "No nodes remaining" in shown
    assert prime.pods == {}


def test_the_price_comes_before_the_question_and_no_buys_nothing(
    prime: Market,
    spy: Spy,
    ray: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keyboard = io.StringIO("n\n")
    monkeypatch.setattr(keyboard, "isatty", lambda: True, raising=False)
    for name in ("stdin", "__stdin__"):
        monkeypatch.setattr(f"sys.{name}", keyboard)
    shown = ray("up", str(cluster_file(tmp_path)), "--no-config-cache")
    price = shown.index("together: 2.06 $/h at first, 4.06 $/h at most")
    assert price < shown.index("Launching a new cluster"), shown
    assert prime.pods == {} and "POST /pods/" not in prime.asked and spy() == []


def test_nodes_of_a_list_are_set_up_and_left_alone_afterwards(
    spy: Spy, prime: Market, ray: Callable[..., str], tmp_path: Path
) -> None:
    config = yaml.safe_load((ROOT / "cluster" / "static.yaml").read_text())
    (tmp_path / "key").write_text("")
    config["auth"]["ssh_private_key"] = str(tmp_path / "key")
    config["file_mounts"] = {"~/isoflop": str(tmp_path)}
    path = tmp_path / "static.yaml"
    path.write_text(yaml.safe_dump(config))
    shown = ray("up", str(path), "-y", "--no-config-cache")
    calls = [" ".join(call) for call in spy()]
    assert any("start.sh head" in call for call in calls), shown
    for call in calls:
        assert "Port=2201" in call and "192.0.2.1" in call and "HostKeyAlias=static-" in call
    shown = ray("down", str(path), "-y")
    assert "No nodes remaining" in shown
    assert prime.asked == [], "nothing is rented or given back"


def test_a_file_that_is_wrong_buys_nothing(
    prime: Market, spy: Spy, ray: Callable[..., str], tmp_path: Path
) -> None:
    for change, said in (
        ({"limits": {"dollars": 1}}, "dollars_per_hour, hours must be given"),
        ({"network": "carrier pigeon"}, "provider.network"),
    ):
        shown = ray("up", str(cluster_file(tmp_path, **change)), "-y", "--no-config-cache")
        assert said in shown
    prime.fail("GET", "/pods/", Fault(status=401, body=b'{"detail": "expired"}'))
    shown = ray("up", str(cluster_file(tmp_path)), "-y", "--no-config-cache")
    assert shown.endswith("GET /pods/: HTTP 401: expired"), "a sentence"
    prime.stock = {"cpu-small": 0}
    shown = ray("up", str(cluster_file(tmp_path)), "-y", "--no-config-cache")
    assert "out of stock" in shown
    assert prime.pods == {} and spy() == []


class Gcs:
    """Ray's control store, as the autoscaler asks it: which nodes run Ray, and what is wanted."""

    address = "198.51.0.2:6379"

    def __init__(self) -> None:
        self.version = 0
        self.nodes: dict[str, str] = {}  # pod -> node type
        self.wanted = 0  # GPUs

    def get_cluster_resource_state(self) -> bytes:
        from ray.core.generated.autoscaler_pb2 import GetClusterResourceStateReply, NodeStatus

        self.version += 1
        reply = GetClusterResourceStateReply()
        state = reply.cluster_resource_state
        state.cluster_resource_state_version = self.version
        for pod, node_type in self.nodes.items():
            node = state.node_states.add(
                node_id=pod.encode(), instance_id=pod, ray_node_type_name=node_type
            )
            node.status = NodeStatus.RUNNING
            node.node_state_version = self.version
            own = "GPU" if node_type == "gpu" else "node:__internal_head__"
            for name in ("CPU", own):
                node.total_resources[name] = 1.0
        if self.wanted:
            request = state.pending_resource_requests.add(count=self.wanted)
            request.request.resources_bundle["GPU"] = 1.0
        data: bytes = reply.SerializeToString()
        return data


@pytest.fixture
def autoscaler(
    prime: Market, spy: Spy, ray: Callable[..., str], tmp_path: Path, home: Path
) -> SimpleNamespace:
    """The head's autoscaler, as `ray up` leaves it: with the file that the head is given."""
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.v2.autoscaler import Autoscaler
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader

    path = cluster_file(tmp_path)
    ray("up", str(path), "-y", "--no-config-cache")
    config = commands._bootstrap_config(yaml.safe_load(path.read_text()), no_config_cache=True)
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    _, file = commands._set_up_config_for_head_node(config, provider, False)
    head = json.loads(Path(file.name).read_text())
    assert head["provider"]["ssh_key_id"] == prime.keys[0]["id"]
    assert "~/.prime/config.json" not in head["file_mounts"]
    for name in head["file_mounts"]:
        head["file_mounts"][name] = str(tmp_path / "cluster.yaml")
    (home / "ray_bootstrap_key.pem").write_text("")
    written = tmp_path / "head.yaml"
    written.write_text(yaml.safe_dump(head))
    gcs = Gcs()
    gcs.nodes = {next(iter(prime.pods)): "head"}
    scaler = Autoscaler("test", FileConfigReader(str(written)), gcs)
    return SimpleNamespace(gcs=gcs, scaler=scaler, market=prime)


def until(autoscaler: SimpleNamespace, reached: Callable[[], bool]) -> None:
    """Let the autoscaler think until something is so; fails after half a minute."""
    end = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end, autoscaler.market.asked[-20:]
        autoscaler.scaler.update_autoscaling_state()
        time.sleep(0.05)


def workers(market: Market) -> list[str]:
    return [i for i, pod in market.pods.items() if "-w-gpu-" in pod["name"]]


def test_the_autoscaler_rents_installs_replaces_and_survives_the_api(
    autoscaler: SimpleNamespace, spy: Spy
) -> None:
    market, gcs = autoscaler.market, autoscaler.gcs
    until(autoscaler, lambda: len(workers(market)) == 1)  # min_workers
    (first,) = workers(market)
    until(
        autoscaler,
        lambda: any("start.sh worker" in " ".join(c) and first in " ".join(c) for c in spy()),
    )
    gcs.nodes[first] = "gpu"
    gcs.wanted = 2
    until(autoscaler, lambda: len(workers(market)) == 2)
    second = next(i for i in workers(market) if i != first)
    gcs.nodes[second] = "gpu"
    gcs.wanted = 0
    market.fail("GET", "/pods/", Fault(status=401), times=3)  # an API that is ill...
    orders = market.asked.count("POST /pods/")
    for _ in range(6):
        autoscaler.scaler.update_autoscaling_state()
    assert market.asked.count("POST /pods/") == orders  # ...does not look like an empty cluster
    market.delete(first)
    market.delete(second)  # preempted, both
    del gcs.nodes[first], gcs.nodes[second]
    until(autoscaler, lambda: len(workers(market)) == 1)  # replaced, up to min_workers
    assert market._made == 4


def test_the_autoscaler_is_told_why_nothing_was_rented(autoscaler: SimpleNamespace) -> None:
    market = autoscaler.market
    market.offers = [offer("h100-1", price=99.0)]
    said: list[str] = []
    provider = autoscaler.scaler._cloud_instance_provider

    def failed() -> bool:
        said.extend(str(error.__cause__) for error in list(provider._errors_queue.queue))
        return bool(said)

    until(autoscaler, failed)
    assert "(NoOffer)" in said[0] and "above 3.5 $/h" in said[0]
    assert workers(market) == []
