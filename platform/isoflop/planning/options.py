"""What can `isoflop plan` be asked? Only argparse is imported here: help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(plan: argparse.ArgumentParser) -> None:
    """The options of `isoflop plan`."""
    money = plan.add_argument_group("what there is to spend (one of them)")
    one = money.add_mutually_exclusive_group(required=True)
    one.add_argument("--budget", type=float, metavar="C", help="training FLOPs of all runs")
    one.add_argument("--hours", type=float, metavar="H", help="of all devices at work together")
    one.add_argument("--dollars", type=float, metavar="X", help="at --price an hour")
    money.add_argument("--price", type=float, metavar="DOLLARS", help="an hour of all devices")
    money.add_argument(
        "--throughput", type=float, metavar="FLOPS",
        help="FLOPs per second of all devices together (default: measured on this machine)",
    )  # fmt: skip
    ask = plan.add_argument_group("what to find out").add_argument
    ask("--arch", action="append", help="an architecture of the zoo (default: all); repeatable")
    ask("--target", type=float, metavar="C", help="FLOPs to predict for (default: 10 budgets)")
    ask("--pilot", type=Path, metavar="RUNS", help="a run table, or the folder of a study")
    ask("--noise", type=float, help="of ln L between seeds (default: the pilot's, or 0.005)")
    ask("--seeds", type=int, default=1, help="of every point (default: %(default)s)")
    runs = plan.add_argument_group("the runs").add_argument
    runs("--data", default="python-stdlib", help="text, as a study names it (default: %(default)s)")
    runs("--tokenizer", default="bpe-2048", help="default: %(default)s")
    runs("--context", type=int, default=128, help="tokens (default: %(default)s)")
    runs("--memory", type=float, metavar="GIB", help="of one device (default: this machine's)")
    runs("--workers", type=int, default=1, help="devices of one run (default: %(default)s)")
    out = plan.add_argument_group("what to make of it").add_argument
    out("--worlds", type=int, default=200, help="simulated for the power (default: %(default)s)")
    out("--seed", type=int, default=0, help="of the simulation (default: %(default)s)")
    out("--json", action="store_true", help="print one JSON object instead")
    out("--picture", type=Path, metavar="PNG", help="also draw the design")
    out("--write", type=Path, metavar="STUDY.py", help="also write the study, ready to run")
