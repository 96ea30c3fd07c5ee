"""What can be asked of isoflop without a study file? Benchmarks, and the page that shows the runs.

Nothing heavy is imported before it is known to be needed: `isoflop --help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """The `isoflop` command."""
    options = parser().parse_args(arguments)
    try:
        sys.exit(options.act(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    text = argparse.ArgumentParser(
        prog="isoflop",
        description="Scaling studies of neural language models. Studies are Python files with a "
        "command line of their own: python studies/scaling_grid.py --help",
    )
    verbs = text.add_subparsers(title="commands", required=True, metavar="COMMAND")

    bench = verbs.add_parser("bench", help="measure this machine and this checkout")
    kinds = bench.add_subparsers(title="what to measure", required=True, metavar="WHAT")
    train = kinds.add_parser(
        "train",
        help="the whole training loop against the matrix products and attention it must do anyway",
    )
    train.add_argument(
        "--model", action="append", help="a model of the zoo (default: all); repeatable"
    )
    train.add_argument(
        "--steps", type=int, default=12, help="pairs measured per shape (default: 12)"
    )
    train.set_defaults(act=_bench_train)
    points = kinds.add_parser(
        "grid", help="what orchestration, tracking and the report add to a grid of short runs"
    )
    points.add_argument("--points", type=int, default=20, help="runs in the grid (default: 20)")
    points.add_argument("--seconds", type=float, default=5, help="about so long each (default: 5)")
    points.set_defaults(act=_bench_grid)

    ui = verbs.add_parser("ui", help="show the runs in MLflow (on this machine only)")
    ui.add_argument(
        "storage",
        nargs="?",
        default="studies/results",
        help="a study's storage folder (default: %(default)s)",
    )
    ui.add_argument("--port", type=int, default=5000, help="default: %(default)s")
    ui.set_defaults(act=_ui)
    return text


def _bench_train(options: argparse.Namespace) -> int:
    from isoflop.benchmarks.training import show

    return show(options.model, options.steps)


def _bench_grid(options: argparse.Namespace) -> int:
    from isoflop.benchmarks.grid import show

    return show(options.points, options.seconds)


def _ui(options: argparse.Namespace) -> int:
    from isoflop.tracking import serve

    database = Path(options.storage) / "mlflow.db"
    if not database.exists():
        raise ValueError(f"there is no {database}; name the storage folder of a study that has run")
    return serve(f"sqlite:///{database.absolute()}", options.port)


if __name__ == "__main__":
    main()
