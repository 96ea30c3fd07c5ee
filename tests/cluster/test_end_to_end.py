"""Does it all work together? A real `ray up`, on hosts made of namespaces, without a way out.

Two rented hosts train one model with DDP; one is taken away meanwhile and replaced; the run goes on
from its checkpoint. Before and after: what is not in stock, what is too dear, and nothing left. The
second cluster is one pod of two machines with a network of their own, and ends itself.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KEYS = {"laptop": "pit-of-the-laptop", "head": "pit-of-the-head"}
TOOLS = ("ip", "sshd", "rsync", "nsenter", "unshare", "ssh-keygen")
SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _said(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(shlex.split(line), capture_output=True, text=True, env={"PATH": SEARCH})


def _refused() -> str:
    """Why no host can be made here: a container may be root and yet not allowed to."""
    space = f"isf{os.getpid()}-try"
    tries = (
        "unshare -m -p -u -i -f --mount-proc mount -t tmpfs tmpfs /mnt",
        f"ip netns add {space}",
        f"ip -n {space} link add name try0 type bridge",
        f"ip -n {space} link add name try1 type veth peer name try2",
    )
    try:
        for line in tries:
            done = _said(line)
            if done.returncode:
                return f"{line}: {done.stderr.strip()}"
    finally:
        _said(f"ip netns del {space}")
    return ""


MISSING = [tool for tool in TOOLS if shutil.which(tool, path=SEARCH) is None]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module", autouse=True)
def allowed() -> None:
    if why := _refused():
        pytest.skip(f"no host can be made here: {why}")


class Lab:
    """A network of its own, a market in it, and a laptop."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, f"isf{os.getpid()}"
        self.home, self.shared = folder / "laptop", folder / "shared"
        (self.home / "tmp").mkdir(parents=True)
        self.shared.mkdir()
        _ip("netns", "add", self.name)
        for words in (
            ("link", "set", "lo", "up"),
            ("link", "add", "bridge", "type", "bridge"),
            ("addr", "add", "203.0.113.1/24", "dev", "bridge"),
            ("link", "set", "bridge", "up"),
            ("link", "add", "private", "type", "bridge"),
            ("link", "set", "private", "up"),
        ):
            _ip("-n", self.name, *words)
        kept = [path for path in {sys.prefix, sys.base_prefix} if path.startswith("/tmp/")]
        self.market = subprocess.Popen(
            [*self._inside, sys.executable, str(Path(__file__).parent / "lab" / "market.py"),
             str(folder / "hosts"), self.name, *kept],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "PATH": SEARCH},
        )  # fmt: skip
        assert self.market.stdout is not None
        assert self.market.stdout.readline(), "the market did not start"

    @property
    def _inside(self) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name}"]

    def order(self, name: str, *arguments: Any) -> Any:
        """Something that only the one who holds the market can do or see."""
        assert self.market.stdin is not None and self.market.stdout is not None
        self.market.stdin.write(json.dumps([name, arguments]) + "\n")
        self.market.stdin.flush()
        return json.loads(self.market.stdout.readline())

    def pods(self, kind: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.order("pods")
        return [pod for pod in found if kind in pod["name"]]

    def begin(self, *command: str) -> subprocess.Popen[str]:
        """A command of the laptop's user, in the lab's network. Its output goes to a file."""
        environment = {
            **{name: os.environ[name] for name in ("LANG", "TERM") if name in os.environ},
            "HOME": str(self.home),
            # Ray keeps there what a cluster's file came to, by the file's hash: with the key of
            # whichever laptop had the same file before.
            "TMPDIR": str(self.home / "tmp"),
            "PATH": f"{Path(sys.executable).parent}:{SEARCH}",
            "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
            "PRIME_API_KEY": KEYS["laptop"],
            "PRIME_HEAD_API_KEY": KEYS["head"],
            "PRIME_API_BASE_URL": "http://203.0.113.1:8700",
            "AUTOSCALER_NODE_SSH_INTERVAL_S": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with (self.folder / "log").open("w") as log:
            return subprocess.Popen(
                [*self._inside, *command], env=environment, cwd=ROOT, text=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def run(self, *command: str, seconds: float = 240) -> tuple[int, str]:
        """Such a command's status and output."""
        process = self.begin(*command)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            switched_off(process)
            status = -1
        return status, (self.folder / "log").read_text()

    def until(self, reached: Callable[[], Any], what: str, seconds: float) -> Any:
        """What `reached` gives once it is something; with the head's log where it never is."""
        end = time.monotonic() + seconds
        while not (found := reached()):
            assert time.monotonic() < end, f"{what}: not within {seconds} s\n{self.diary()}"
            time.sleep(0.5)
        return found

    def diary(self) -> str:
        """What the head's autoscaler last wrote, and what the laptop last saw."""
        logs = sorted(self.folder.glob("hosts/*/tmp/ray/session_2*/logs/monitor.*"))
        texts = [path.read_text()[-3000:] for path in logs]
        return "\n".join([*texts, (self.folder / "log").read_text()[-3000:]])

    def close(self) -> None:
        assert self.market.stdin is not None and self.market.stdout is not None
        self.market.stdin.close()
        self.market.wait(30)
        self.market.stdout.close()
        _ip("netns", "del", self.name)


def switched_off(process: subprocess.Popen[str]) -> None:
    """As when the laptop's lid closes: a command and its SSH connections, without a farewell."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, env={"PATH": SEARCH})


@pytest.fixture
def lab() -> Iterator[Lab]:
    # Not in /tmp: every host has one of its own.
    folder = Path(tempfile.mkdtemp(prefix="isoflop-lab-", dir="/var/tmp"))
    made = Lab(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def cluster_file(
    lab: Lab, head: dict[str, Any], other: dict[str, Any], rate: float, **provider: Any
) -> Path:
    """cluster/prime.yaml, with nodes of one processor each and an image that has everything."""
    config = yaml.safe_load((ROOT / "cluster" / "prime.yaml").read_text())
    config["provider"] |= provider
    config["provider"]["limits"] = {
        "dollars_per_hour": rate, "dollars": 9, "hours": 50, "idle_minutes": 30,
    }  # fmt: skip
    types = config["available_node_types"]
    types["head"] |= {"node_config": head, "resources": {"CPU": 1}}
    types["gpu"] |= {"node_config": other, "resources": {"CPU": 1}}
    types["gpu"]["max_workers"] = 1 if not other else 2
    config["file_mounts"] = {"~/isoflop": str(ROOT)}
    config["initialization_commands"] = []
    setup = [f"ISOFLOP_VENV={sys.prefix} bash ~/isoflop/cluster/setup.sh"]
    config["head_setup_commands"] = config["worker_setup_commands"] = setup
    ray = "ISOFLOP_RAY='--object-store-memory=80000000' RAY_raylet_start_wait_time_s=120"
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[name] = [f"{ray} {line}" for line in config[name]]
    path = lab.folder / "lab.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


RAY = [sys.executable, "-m", "ray.scripts.scripts"]
ISOFLOP = [sys.executable, "-m", "isoflop.cli", "cluster"]
WANT_THREE = (
    "python -c \"import ray; ray.init(address='auto'); "
    'from ray.autoscaler.sdk import request_resources; request_resources(num_cpus=3)"'
)


def up(lab: Lab, path: Path) -> str:
    """A cluster that stands. A raylet may give up on a slow machine; the same command goes on."""
    for _ in range(2):
        status, shown = lab.run(*RAY, "up", str(path), "-y", "--no-config-cache")
        if not status:
            return shown
    raise AssertionError(shown)


def connected(lab: Lab, path: Path) -> str:
    """What `isoflop cluster check` says, which waits for the node that is still set up."""
    for _ in range(2):  # a busy machine may be too slow for it once
        status, shown = lab.run(*ISOFLOP, "check", "--cluster", str(path))
        if status == 0 and "2 nodes, gloo, all-reduce of 64 MB" in shown:
            return shown
    raise AssertionError(shown + lab.diary())


def no_secret_is_seen(lab: Lab) -> None:
    """Neither in a command line of any process, nor in a log, nor in the cluster's file."""
    own = lab.home / ".isoflop" / "clusters" / "lab"
    secrets = [(own / "auth_token").read_text(), (own / "ssh_key").read_text().splitlines()[2]]
    secrets += KEYS.values()
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
    logs = [*lab.folder.glob("hosts/*/tmp/ray/session_2*/logs/**/*"), lab.folder / "log"]
    logs += [*lab.folder.glob("hosts/*/home/**/*.log"), lab.folder / "lab.yaml"]
    texts = [path.read_bytes() for path in logs if path.is_file()]
    assert len(texts) > 10, "the logs were not found"
    assert not [s for s in secrets for text in (*lines, *texts) if s.encode() in text]


def keys_lie_where_they_are_used(lab: Lab) -> None:
    """The head has a key of its own; no worker has one; the laptop's is on no node."""
    homes = [path for path in lab.folder.glob("hosts/*/home") if any(path.iterdir())]
    found = [path / ".prime" / "config.json" for path in homes]
    (account,) = [path.read_text() for path in found if path.is_file()]
    assert len(homes) > 1 and KEYS["head"] in account and KEYS["laptop"] not in account


def hosts_that_train(lab: Lab) -> int:
    """How many hosts have a worker of Ray Train, by the network that its process is in."""
    hosts = {path.stat().st_ino for path in Path("/run/netns").glob(f"{lab.name}-*")}
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"TrainWorker" in (process / "cmdline").read_bytes():
                found.add((process / "ns" / "net").stat().st_ino)
        except OSError:  # it has ended meanwhile
            continue
    return len(hosts & found)


def only_the_ports_that_nodes_need(lab: Lab) -> None:
    """What listens at an address that others reach: SSH, and the ports that the README names."""
    spaces = [p for p in Path("/run/netns").glob(f"{lab.name}-*")]
    assert len(spaces) == 2
    for space in spaces:
        words = ["nsenter", f"--net={space}", "ss", "-Htln"]
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        ends = [line.split()[3].rpartition(":") for line in shown.splitlines()]
        ports = {int(port) for host, _, port in ends if not host.startswith(("127.", "[::1]"))}
        ssh = 2200 + int(space.name.rpartition("-")[2])
        assert ports - {ssh, *range(6379, 6386), *range(10002, 11000)} == set(), shown


def _readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:  # it has ended meanwhile
        return False


def servers_are_reached_by_the_tunnel_alone(lab: Lab, path: Path) -> None:
    """MLflow and Ray's dashboard answer on the laptop's localhost, at no address of the head."""
    (head,) = lab.pods("-h-")
    ask = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).status)"

    def answers(url: str) -> bool:
        return lab.run(sys.executable, "-c", ask, url)[0] == 0

    tunnel = lab.begin(*ISOFLOP, "tunnel", "--cluster", str(path), "--mlflow", "5123",
                       "--dashboard", "5124")  # fmt: skip
    try:
        for port, inside in ((5123, 5000), (5124, 8265)):
            lab.until(lambda port=port: answers(f"http://127.0.0.1:{port}"), "the tunnel", 60)  # type: ignore[misc]
            assert not answers(f"http://{head['ip']}:{inside}")
    finally:
        tunnel.terminate()
        tunnel.wait()


def test_rent_train_lose_a_node_and_give_everything_back(lab: Lab) -> None:
    head = {"gpu": "CPU_NODE", "price": 0.5}
    path = cluster_file(lab, head, {"gpu": "H100_80GB", "price": 2.0}, 2.5)

    lab.order("stock", "cpu", 0)  # not even the head can be had
    status, shown = lab.run(*RAY, "up", str(path), "-y", "--no-config-cache")
    assert status != 0 and "out of stock" in shown, shown
    assert lab.pods() == []

    lab.order("stock", "cpu", 5)
    assert "limits: 2.5 $/h" in up(lab, path)
    (first,) = lab.until(lambda: lab.pods("-w-"), "a worker is rented", 90)
    assert first["priceHr"] == 1.0, "the cheapest that fits"
    connected(lab, path)
    only_the_ports_that_nodes_need(lab)
    keys_lie_where_they_are_used(lab)

    running = lab.begin(
        *ISOFLOP, "submit", "--no-check", "--cluster", str(path), "studies/scaling_grid.py", "--",
        "--only", "arch=llama", "--only", "width=16", "--only", "flops=1.2e11",
        "--set", "data.tokenizer=bytes", "--set", "checkpoints=2",
        "--workers", "2", "--storage", f"file://{lab.shared}",
    )  # fmt: skip
    checkpoint = lab.until(
        lambda: list(lab.shared.glob("scaling-grid/runs/*/checkpoints/*")), "a checkpoint", 240
    )[0]
    folder = checkpoint.parents[1]
    assert hosts_that_train(lab) == 2, "one model over both"
    no_secret_is_seen(lab)
    switched_off(running)
    reached = max(int(path.name.split("-")[1]) for path in checkpoint.parent.glob("step-*"))
    assert not (folder / "result.json").exists(), "the run is too short for this test"
    for offer in ("gpu-cheap", "gpu-dear"):
        lab.order("stock", offer, 0)
    lab.order("preempt", first["id"])
    time.sleep(10)
    assert lab.pods("-w-") == [], "none is left in the market"
    lab.order("stock", "gpu-dear", 2)
    (second,) = lab.until(lambda: lab.pods("-w-"), "the lost worker is replaced", 120)
    assert second["id"] != first["id"] and second["priceHr"] == 1.5
    lab.until((folder / "result.json").exists, "the run has ended", 300)
    status, shown = lab.run(*ISOFLOP, "logs", "--cluster", str(path))
    assert status == 0 and "SUCCEEDED" in shown, shown
    found = json.loads((folder / "result.json").read_text())
    # Where the node's end is known before the run goes on, it does so on what is left meanwhile.
    assert found["status"] == "finished" and found["workers"] in (1, 2)
    assert (lab.shared / "scaling-grid" / "report.html").is_file()
    at_the_end = [path.name for path in (folder / "checkpoints").iterdir()]
    assert len(at_the_end) == 1, "the weights, and nothing that a lost node left"

    servers_are_reached_by_the_tunnel_alone(lab, path)
    status, shown = lab.run(
        *ISOFLOP, "fetch", "--cluster", str(path), "mlflow/", str(lab.folder / "got")
    )
    assert status == 0, shown
    with closing(sqlite3.connect(lab.folder / "got" / "mlflow.db")) as store:
        (runs,) = store.execute("SELECT COUNT(*) FROM runs WHERE status = 'FINISHED'").fetchone()
        again = store.execute(
            "SELECT step, COUNT(*) FROM metrics WHERE step BETWEEN 1 AND ? GROUP BY key, step",
            (reached,),
        ).fetchall()
    assert runs == 2, "the run, and the study"
    assert all(times == 1 for _, times in again), "it went on, and did not begin anew"
    (diary,) = lab.folder.glob("hosts/*/home/.isoflop/clusters/lab/watch.log")
    assert "something runs" in diary.read_text()
    last = lambda: max(("something runs", "nothing runs"), key=diary.read_text().rfind)  # noqa: E731
    lab.until(lambda: last() == "nothing runs", "the watch sees that the study has ended", 90)

    status, shown = lab.run(*RAY, "exec", str(path), WANT_THREE)
    assert status == 0, shown
    lab.until(lambda: "Limit" in lab.diary(), "a third node is too dear", 60)
    assert len(lab.pods()) == 2
    status, shown = lab.run(*ISOFLOP, "status", "--cluster", str(path))
    assert status == 0 and "1.60" in shown, shown
    no_secret_is_seen(lab)
    status, shown = lab.run(*RAY, "down", str(path), "-y")
    assert status == 0 and lab.pods() == [], shown


def test_a_pod_of_two_machines_ends_itself_at_its_limit(lab: Lab) -> None:
    """Over the network between them; the watch is killed first, and the laptop does nothing."""
    head = {"gpu": "H100_80GB", "price": 2.0, "machines": 2}
    path = cluster_file(lab, head, {}, 3.0, network="private")
    assert "2 machines with 2 H100_80GB" in up(lab, path)
    (pod,) = lab.pods()
    shown = connected(lab, path)
    nodes = [*lab.folder.glob(f"hosts/{pod['id']}*")]
    assert len(nodes) == 2, shown
    starts = "".join(p.read_text() for p in nodes[0].parent.glob("*/tmp/ray/session_2*/logs/*.log"))
    assert "10.88.0." in starts and "--node_ip_address=203.0.113." not in starts

    watches = subprocess.run(
        ["pgrep", "-f", "cluster.prime.watch$"], capture_output=True, text=True
    )
    mine = [int(pid) for pid in watches.stdout.split() if _of(int(pid), nodes)]
    assert mine, "no watch runs"
    for pid in mine:
        os.kill(pid, 9)
    lab.order("begun", 4)  # hours ago, at 3 dollars each
    lab.until(lambda: not lab.pods(), "the watch comes back and ends the cluster", 150)
    status, shown = lab.run(*RAY, "down", str(path), "-y")
    assert status == 0 and lab.pods() == [], shown


def _of(pid: int, nodes: list[Path]) -> bool:
    """Whether a process's home is that of one of these hosts."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return any(f"HOME={node}/home" in text for node in nodes)
