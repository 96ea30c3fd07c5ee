"""How does `isoflop rollouts` read its words? A study's folder, and what to do with it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def options(
    rollouts: argparse.ArgumentParser, held_out: Callable[[Path], Any] | None = None
) -> None:
    """`isoflop rollouts`; nothing heavy is imported before it acts.

    `held_out`: gives the held-out tokens of a prepared text's folder.
    """
    rollouts.description = (
        "What the models of a study wrote: the same prompt and seed over steps and runs, side by "
        "side, in one page that opens without a network, or in the terminal."
    )
    rollouts.epilog = "example: isoflop rollouts studies/results/scaling-grid"
    add = rollouts.add_argument
    add("study", type=Path, help="the folder of a study that has run")
    add("--tui", action="store_true", help="read in the terminal instead")
    add("--out", type=Path, metavar="FILE", help="the page (default: STUDY/rollouts.html)")
    add("--rows", type=int, metavar="N", help="at most about so many rollouts in the page")
    rollouts.set_defaults(act=lambda chosen: act(chosen, held_out))


def act(chosen: argparse.Namespace, held_out: Callable[[Path], Any] | None) -> int:
    """Raises ValueError where the folder has no rollouts."""
    if chosen.tui:
        from isoflop.rollouts.report.terminal import browse

        return browse(chosen.study)
    from isoflop.rollouts.report.page import MOST_ROWS, build

    most = MOST_ROWS if chosen.rows is None else chosen.rows
    target = chosen.out or chosen.study / "rollouts.html"
    print(build(chosen.study, target, most=most, held_out=held_out))
    return 0
