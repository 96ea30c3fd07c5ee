"""Which sizes does an architecture come in? One shape per width, from tens of parameters to many
billions.

Depth grows with the width, 64 of width to a layer: near the best over a wide range, where the loss
depends little on it (Kaplan et al. 2020, section 3.2). Heads have 4, 8, 32, 64 or 128 numbers, as
the width allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from isoflop.targets import suiting
from models.interface import Config

WIDTHS = (
    *range(4, 48, 4), *range(48, 128, 8), *range(128, 512, 32), *range(512, 2048, 128),
    *range(2048, 16385, 256),
)  # fmt: skip
WIDTH_PER_LAYER = 64
NEEDED = ("width", "depth", "heads")


def ladder(kind: type[Config], *, vocab: int, context: int) -> list[Config]:
    """Every shape of the architecture, the smallest first.

    Raises ValueError for an architecture that is not shaped by width, depth and heads.
    """
    if not _shaped(kind):
        raise ValueError(
            f"--arch {kind.name}: plans know architectures shaped by {', '.join(NEEDED)} alone"
        )
    return [
        suiting(config)().prepare(config, vocab)
        for width in WIDTHS
        for config in (kind(context=context, **shape(kind, width)),)
    ]


def shape(kind: type[Config], width: int) -> dict[str, Any]:
    """The fields that a study states for this width."""
    head = 4 if width % 8 else next(size for most, size in _HEADS if width < most)
    values: dict[str, Any] = {
        "width": width,
        "depth": max(1, round(width / WIDTH_PER_LAYER)),
        "heads": width // head,
    }
    if "tied" in {field.name for field in fields(kind)}:
        values["tied"] = True  # as those whose head is never a matrix of its own
    return values


def _shaped(kind: type[Config]) -> bool:
    """Do width, depth and heads say everything that has no default?"""
    needed = {
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    }
    return needed == set(NEEDED)


_HEADS = ((128, 8), (512, 32), (2048, 64), (10**9, 128))


def size(config: Config) -> int:
    """N as every law here counts it: all that multiplies, the head included."""
    return config.parameters().without_input_embedding


def named(archs: list[str] | None, zoo: Mapping[str, type[Config]]) -> list[type[Config]]:
    """The architectures of these names; None: all whose sizes a plan can choose. Raises
    ValueError."""
    if archs is None:
        return [kind for _, kind in sorted(zoo.items()) if _shaped(kind)]
    unknown = [name for name in archs if name not in zoo]
    if unknown:
        raise ValueError(f"--arch {unknown[0]!r}: known are {', '.join(sorted(zoo))}")
    return [zoo[name] for name in dict.fromkeys(archs)]
