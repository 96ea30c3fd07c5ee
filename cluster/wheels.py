"""Which ready-made wheel of flash-attn fits this node's torch? Compiling one takes an hour.

    python -m cluster.wheels        its URL; where there is none: why, and status 1

The package index has sources only. Wheels lie with the project's releases on GitHub, one for each
CUDA, torch, C++ ABI and Python.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from json import JSONDecodeError

import urllib3

RELEASES = "https://api.github.com/repos/Dao-AILab/flash-attention/releases?per_page=50"
LEAST = (2, 8)  # as pyproject.toml asks for
_WHEEL = re.compile(
    r"flash_attn-(?P<version>[\d.]+)(?:post\d+)?\+cu(?P<cuda>\d+)torch(?P<torch>[\d.]+?)"
    r"(?:cxx11abi(?P<abi>TRUE|FALSE))?-cp(?P<python>\d+)-cp\d+-\w*linux\w*_(?P<machine>x86_64|aarch64)"
    r"\.whl"
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a wheel must have been built for."""

    torch: str  # 2.8
    cuda: str  # 12.8
    abi: bool  # whether torch has C++11's
    python: str  # 311
    machine: str  # x86_64

    def __str__(self) -> str:
        return f"torch {self.torch}, CUDA {self.cuda}, Python {self.python}, {self.machine}"


def best(wheels: Iterable[tuple[str, str]], machine: Machine) -> str:
    """The URL of the newest of these (name, URL) that fits; empty if none does."""
    fit = [
        (_numbers(found["version"]), url)
        for name, url in wheels
        if (found := _WHEEL.fullmatch(name)) and _fits(found, machine)
    ]
    return max(fit)[1] if fit else ""


def _fits(wheel: re.Match[str], machine: Machine) -> bool:
    """A wheel for cu12 is for every 12.x, one for cu128 for that alone."""
    major, whole = machine.cuda.split(".")[0], machine.cuda.replace(".", "")
    return (
        _numbers(wheel["version"])[:2] >= LEAST
        and wheel["cuda"] in (major, whole)
        and _numbers(wheel["torch"])[:2] == _numbers(machine.torch)[:2]
        and wheel["abi"] in (None, str(machine.abi).upper())
        and (wheel["python"], wheel["machine"]) == (machine.python, machine.machine)
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.strip(".").split("."))


def released(address: str) -> list[tuple[str, str]]:
    """Name and URL of every file of the releases. Raises ValueError if they cannot be read."""
    try:
        answer = urllib3.request("GET", address, timeout=30, retries=3)
        if answer.status != 200:
            raise ValueError(f"{address}: HTTP {answer.status}")
        releases = answer.json()
        return [(f["name"], f["browser_download_url"]) for r in releases for f in r["assets"]]
    except (urllib3.exceptions.HTTPError, KeyError, TypeError, JSONDecodeError) as error:
        raise ValueError(f"{address}: {type(error).__name__}") from error


def here() -> Machine:
    """This machine. Raises ValueError where torch has no CUDA."""
    import torch

    if not torch.version.cuda:
        raise ValueError(f"torch {torch.__version__} has no CUDA")
    return Machine(
        torch=".".join(torch.__version__.split(".")[:2]),
        cuda=torch.version.cuda,
        abi=bool(torch.compiled_with_cxx11_abi()),
        python=f"{sys.version_info.major}{sys.version_info.minor}",
        machine=platform.machine(),
    )


def main() -> None:
    try:
        machine = here()
        url = best(released(os.environ.get("ISOFLOP_FLASH_RELEASES") or RELEASES), machine)
    except ValueError as error:
        sys.exit(f"flash-attn: {error}")
    if not url:
        sys.exit(f"flash-attn: no wheel among its releases for {machine}")
    print(url)


if __name__ == "__main__":
    main()
