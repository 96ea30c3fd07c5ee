"""How does `isoflop rollouts` read its words? A study's folder, and what to do with it."""

from __future__ import annotations

import argparse
from pathlib import Path


def options(rollouts: argparse.ArgumentParser) -> None:
    """`isoflop rollouts`; nothing heavy is imported before it acts."""
    rollouts.description = (
        "What the models of a study wrote: the same prompt and seed over steps and runs, side by "
        "side, in one page that opens without a network, or in the terminal; the difference of "
        "two runs in numbers; all of it for verifiers."
    )
    rollouts.epilog = "example: isoflop rollouts studies/results/scaling-grid"
    add = rollouts.add_argument
    add("study", type=Path, help="the folder of a study that has run")
    add("--runs", default="", metavar="WORDS", help="only those with these words in their label")
    add("--tui", action="store_true", help="read in the terminal instead")
    add("--out", type=Path, metavar="FILE", help="the page (default: STUDY/rollouts.html)")
    add("--rows", type=int, metavar="N", help="at most about so many rollouts in the page")
    add(
        "--compare",
        nargs=2,
        metavar="WORDS",
        help="two runs by words of their labels: paired differences, corrected for many metrics",
    )
    add("--set", metavar="NAME", help="of --compare: this set of prompts (default: all together)")
    add(
        "--nested",
        action="store_true",
        help="of --compare: intervals draw prompts, then seeds (default: prompts with their seeds)",
    )
    add("--export", type=Path, metavar="FOLDER", help="write them in the formats of verifiers")
    add(
        "--laws",
        action="store_true",
        help="how every metric moves with compute, size and loss; a minute or two",
    )
    rollouts.set_defaults(act=act)


def act(chosen: argparse.Namespace) -> int:
    """Raises ValueError where the folder has no rollouts."""
    if chosen.compare:
        from isoflop.rollouts.report.paired import show
        from isoflop.rollouts.statistics import Draw

        one, other = chosen.compare
        draw: Draw = "nested" if chosen.nested else "prompts"
        print(show(chosen.study, one, other, draw, chosen.set))
        return 0
    if chosen.export:
        from isoflop.rollouts.report.paired import export

        print(export(chosen.study, chosen.export, chosen.runs))
        return 0
    if chosen.tui:
        from isoflop.rollouts.report.terminal import browse

        return browse(chosen.study, chosen.runs)
    from isoflop.rollouts.report.page import MOST_ROWS, build

    most = MOST_ROWS if chosen.rows is None else chosen.rows
    target = chosen.out or chosen.study / "rollouts.html"
    print(build(chosen.study, target, most=most, wanted=chosen.runs))
    return 0
