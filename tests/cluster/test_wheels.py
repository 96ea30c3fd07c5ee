"""Is the one wheel taken that this torch can load, and none where there is none?"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cluster import wheels
from cluster.wheels import Machine, best

MACHINE = Machine(torch="2.8", cuda="12.8", abi=True, python="311", machine="x86_64")


def name(
    version: str = "2.8.3", cuda: str = "12", torch: str = "2.8", abi: str = "cxx11abiTRUE",
    python: str = "311", machine: str = "linux_x86_64",
) -> str:  # fmt: skip
    return f"flash_attn-{version}+cu{cuda}torch{torch}{abi}-cp{python}-cp{python}-{machine}.whl"


def test_the_newest_that_fits() -> None:
    names = [name("2.8.1"), name("2.8.3"), name("2.8.2"), name("2.7.4.post1"), "flash_attn.tar.gz"]
    assert best([(n, f"url of {n}") for n in names], MACHINE) == f"url of {name('2.8.3')}"


@pytest.mark.parametrize(
    "fitting",
    [name(cuda="128"), name(torch="2.8.0"), name(abi=""), name(machine="manylinux_2_28_x86_64"),
     name("2.10.0")],
)  # fmt: skip
def test_other_ways_to_write_the_same(fitting: str) -> None:
    assert best([(fitting, "it")], MACHINE) == "it"


@pytest.mark.parametrize(
    "other",
    [name("2.7.9"), name(cuda="11"), name(cuda="126"), name(torch="2.9"), name(abi="cxx11abiFALSE"),
     name(python="312"), name(machine="linux_aarch64"), name(machine="win_amd64")],
)  # fmt: skip
def test_what_torch_could_not_load_is_not_taken(other: str) -> None:
    assert best([(other, "it")], MACHINE) == ""


@pytest.fixture
def releases() -> Iterator[tuple[str, list[bytes]]]:
    """A server of releases: its address, and what it answers."""
    body: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if body[0] else 404)
            self.end_headers()
            self.wfile.write(body[0])

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", body
    server.shutdown()
    server.server_close()
    thread.join()


def test_it_answers_on_a_command_line(
    releases: tuple[str, list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address, body = releases
    monkeypatch.setenv("ISOFLOP_FLASH_RELEASES", address)
    monkeypatch.setattr(wheels, "here", lambda: MACHINE)
    files = [{"name": name(), "browser_download_url": "https://there"}]
    body.append(json.dumps([{"assets": []}, {"assets": files}]).encode())
    wheels.main()
    assert capsys.readouterr().out == "https://there\n"
    monkeypatch.setattr(wheels, "here", lambda: replace(MACHINE, torch="2.13"))
    with pytest.raises(SystemExit, match=r"for torch 2\.13, CUDA 12\.8, Python 311"):
        wheels.main()
    for wrong, said in ((b"{}", "no wheel|TypeError|KeyError"), (b"", "HTTP 404"), (b"<", "JSON")):
        body[0] = wrong
        with pytest.raises(SystemExit, match=said):
            wheels.main()
