"""Do the verbs of `isoflop cluster` say what is so, and end only what they should?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import file, jobs
from cluster.connectivity import Measured, assembled
from cluster.prime.fake import KEY, Fault, Market
from isoflop.cli import main

ROOT = Path(__file__).parents[2]
FILE = str(ROOT / "cluster" / "prime.yaml")


@pytest.fixture(autouse=True)
def prime(address: str, market: Market, monkeypatch: pytest.MonkeyPatch) -> Iterator[Market]:
    monkeypatch.setenv("PRIME_API_KEY", KEY)
    monkeypatch.setenv("PRIME_API_BASE_URL", address)
    yield market


def stand(market: Market, *names: str) -> None:
    for name in names:
        market.create({"pod": {"name": name, "cloudId": "h100-1", "gpuType": "", "socket": "",
                               "gpuCount": 1, "maxPrice": 9}})  # fmt: skip
    market.look()
    market.look()


LAB = ("isoflop-lab-h-head-0123456789", "isoflop-lab-w-gpu-0123456789")


def isoflop(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["cluster", *arguments])
    return int(end.value.code or 0)


def test_offers_by_price_and_what_the_file_would_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert isoflop("offers", "--cluster", FILE, "--gpu", "H100_80GB") == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["2.00", "16.00"]
    assert "gpu would take h100-1 at 2.00 $/h" in shown
    assert isoflop("offers", "--cluster", FILE, "--spot", "--price", "1.15") == 0
    assert "spot" in capsys.readouterr().out


def test_status_and_the_true_bill(market: Market, capsys: pytest.CaptureFixture[str]) -> None:
    begun = market.clock()
    market.clock = lambda: begun - 7200
    stand(market, *LAB, "isoflop-other-h-head-0123456789", "mine")
    market.clock = lambda: begun
    assert isoflop("status", "--cluster", FILE) == 0
    shown = capsys.readouterr().out
    assert "4.00 of 8 $/h, 8.00 of 40 $ spent, 2.0 of 12 hours; balance 100.00 $" in shown
    assert "mine" not in shown and "other" not in shown
    for pod in list(market.pods):
        market.delete(pod)
    assert isoflop("bill") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert ["lab", "2", "8.00"] in rows and ["other", "1", "4.00"] in rows


def test_a_list_of_nodes_has_a_status_without_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    assert isoflop("status", "--cluster", str(ROOT / "cluster" / "static.yaml")) == 0
    shown = capsys.readouterr().out
    assert "root@192.0.2.2 -p 2202" in shown and "not rented here" in shown


def test_what_lies_on_object_storage_is_fetched_without_a_head(tmp_path: Path) -> None:
    (tmp_path / "lab" / "runs").mkdir(parents=True)
    (tmp_path / "lab" / "runs" / "result.json").write_text("{}")
    there = (tmp_path / "lab").as_uri()
    assert isoflop("fetch", there, str(tmp_path / "here")) == 0
    assert (tmp_path / "here" / "runs" / "result.json").read_text() == "{}"
    assert isoflop("fetch", f"{there}/none", str(tmp_path / "here")) == 2


def test_a_sweep_asks_and_ends_only_what_isoflop_rented(
    market: Market, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand(market, *LAB, "isoflop-other-h-head-0123456789", "mine")
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert isoflop("sweep", "--cluster", FILE) == 1
    assert len(market.pods) == 4
    assert isoflop("sweep", "--cluster", FILE, "--yes") == 0
    assert isoflop("sweep", "--cluster", FILE, "--yes") == 0
    assert "no nodes are left" in capsys.readouterr().out
    assert len(market.pods) == 2
    assert isoflop("sweep", "--all", "--yes") == 0
    assert [pod["name"] for pod in market.pods.values()] == ["mine"]


def test_a_refusal_of_the_api_is_one_sentence(
    market: Market, capsys: pytest.CaptureFixture[str]
) -> None:
    market.fail("GET", "/pods/", Fault(status=401, body=b'{"detail": "expired"}'))
    assert isoflop("status", "--cluster", FILE) == 2
    assert capsys.readouterr().err == "error: GET /pods/: HTTP 401: expired\n"


def test_the_head_comes_first_and_a_cluster_without_one_is_named(market: Market) -> None:
    found = file.read(Path(FILE))
    with pytest.raises(ValueError, match="ray up"):
        file.targets(found)
    market.automatic = False
    stand(market, LAB[0])
    with pytest.raises(ValueError, match="not ready yet: PROVISIONING"):
        file.targets(found)
    market.automatic = True
    market.delete(next(iter(market.pods)))
    stand(market, *reversed(LAB))
    assert [target.kind for target in file.targets(found)] == ["head", "worker"]


@pytest.mark.parametrize("text", ["{", "[]", "a: b", "cluster_name: A_B\nprovider: {}"])
def test_a_file_that_is_none_of_a_cluster(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"x\.yaml|cluster_name"):
        file.read(tmp_path / "x.yaml")


def test_every_node_is_asked_on_its_own_port(
    market: Market,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand(market, *LAB)
    spy = tmp_path / "ssh"
    spy.write_text('#!/bin/sh\necho "$@" | grep -o "Alias=[^ ]*\\|-p [0-9]*\\|accept-new"\n')
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert isoflop("gpus", "--cluster", FILE) == 0
    shown = capsys.readouterr().out
    for identity, port in (("pod0001", 2201), ("pod0002", 2202)):
        assert f"-p {port}\n" in shown and f"Alias={identity}\n" in shown
    assert shown.count("accept-new") == 2


def test_what_a_submitted_study_runs() -> None:
    line = jobs.entrypoint("studies/scaling_grid.py", ["--workers", "8"], check=0)
    assert line == (
        "cd ~/isoflop && exec .venv/bin/python studies/scaling_grid.py --address auto "
        "--tracking http://127.0.0.1:5000 --workers 8"
    )
    own = jobs.entrypoint("studies/scaling_grid.py", ["--tracking=x; rm -rf /"], check=3)
    assert own.startswith(
        "cd ~/isoflop && .venv/bin/python -m cluster.connectivity --nodes 3 && exec "
    )
    assert own.endswith("--address auto '--tracking=x; rm -rf /'")
    for study in ("studies/none.py", "/etc/passwd", "../x"):
        with pytest.raises(ValueError, match="no file of this repository"):
            jobs.entrypoint(study, [], check=1)


def test_a_study_waits_for_the_nodes_that_its_file_promises() -> None:
    assert file.read(Path(FILE)).least == 2, "the head, and one GPU node at least"
    there, said = iter([1, 1, 2, 3]), list[str]()
    assembled(3, lambda: next(there), said.append, pause=0)
    assert [text[:6] for text in said] == ["1 of 3", "2 of 3"], "once for each change"
    with pytest.raises(ValueError, match="1 of 2 nodes after 0 minutes"):
        assembled(2, lambda: 1, said.append, patience=0, pause=0)


def test_bandwidth_counts_what_a_link_carries() -> None:
    found = Measured(nodes=4, backend="gloo", megabytes=1000, seconds=0.5)
    assert found.gigabytes_per_second == pytest.approx(2 * 3 / 4 * 1 / 0.5)


@pytest.mark.slow
def test_processes_that_meet_measure_and_one_alone_gives_up() -> None:
    """The real all-reduce, by gloo, between two processes; and a node that nobody comes to."""
    code = (
        "import sys, json; from cluster.connectivity import take_part; r, w, p = map(int, "
        "sys.argv[1:]); print(json.dumps(take_part(r, w, ('127.0.0.1', p), 4, gpu=False, "
        "patience=5 if w == 3 else 60)))"
    )
    from cluster.remote import free_port

    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    port, other = free_port(), free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, numbers)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for numbers in ((0, 2, port), (1, 2, port), (0, 3, other))
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode == 0 for process in started] == [True, True, False], outputs
    assert all(json.loads(out) > 0 for out, _ in outputs[:2])
