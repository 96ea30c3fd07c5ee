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
    laws = kinds.add_parser("fit", help="the law fit against scipy from the papers' 4,500 starts")
    laws.add_argument("--runs", type=int, default=240, help="made runs (default: %(default)s)")
    laws.add_argument(
        "--share", type=float, default=0.02, help="of the starts, 1 for all (default: %(default)s)"
    )
    laws.add_argument("--resamples", type=int, default=1000, help="default: %(default)s")
    laws.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    laws.set_defaults(act=_bench_fit)

    _fit_options(verbs.add_parser("fit", help="scaling laws from a table of runs (CSV, parquet)"))

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


def _fit_options(fit: argparse.ArgumentParser) -> None:
    """`isoflop fit`; neither torch nor Ray is imported for it."""
    add = fit.add_argument
    add("table", type=Path, help="one row per run: .csv, .tsv, .jsonl or .parquet")
    add("--n", metavar="COLUMN", help="parameters (default: params, N, ...)")
    add("--d", metavar="COLUMN", help="tokens (default: tokens, D, ...), or the rule C/6N")
    add("--loss", metavar="COLUMN", help="final loss (default: loss, L, ...)")
    add("--c", metavar="COLUMN", default="6ND", help="training FLOPs, or the rule 6ND (default)")
    add("--by", metavar="COLUMN", help="families, each with a law of its own")
    add("--weights", metavar="COLUMN", help="how much each run counts (default: 1)")
    add("--unique", metavar="COLUMN", help="distinct tokens, where data were repeated")
    forms = "chinchilla, tied, kaplan, gadre (default: these), broken, farseer, repetition"
    add("--form", action="append", help=f"{forms}; repeatable")
    add("--objective", default="huber", help="huber (default), l1, l2 or asymmetric, on ln L")
    add("--delta", type=float, default=1e-3, help="of huber and asymmetric (default: %(default)s)")
    add("--over", type=float, help="asymmetric: cost of a law above a run (default: 10)")
    add("--pin", action="append", default=[], metavar="NAME=VALUE", help="hold a parameter")
    add("--share", action="append", default=[], metavar="NAME", help="one value for all of --by")
    add("--resamples", type=int, default=1000, help="of the runs (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")
    add("--drop", type=int, default=0, metavar="K", help="leave the K highest losses out")
    add(
        "--target", type=float, metavar="C", help="FLOPs to optimise for (default: the largest run)"
    )
    add("--out", type=Path, metavar="FOLDER", help="also write a report there")
    add("--json", action="store_true", help="print one JSON object per line and form instead")
    fit.set_defaults(act=_fit)


def _fit(options: argparse.Namespace) -> int:
    from isoflop.scaling.columns import Columns
    from isoflop.scaling.command import Question, pins, show
    from isoflop.scaling.forms import FORMS
    from isoflop.scaling.objective import named

    question = Question(
        path=options.table,
        columns=Columns(
            n=options.n,
            d=options.d,
            loss=options.loss,
            c=options.c,
            by=options.by,
            weights=options.weights,
            unique=options.unique,
        ),
        forms=tuple(dict.fromkeys(options.form or FORMS)),
        objective=named(options.objective, delta=options.delta, over=options.over),
        resamples=options.resamples,
        seed=options.seed,
        drop=options.drop,
        target=options.target,
        pinned=pins(options.pin),
        shared=tuple(dict.fromkeys(options.share)),
    )
    return show(question, as_json=options.json, out=options.out)


def _bench_train(options: argparse.Namespace) -> int:
    from isoflop.benchmarks.training import show

    return show(options.model, options.steps)


def _bench_grid(options: argparse.Namespace) -> int:
    from isoflop.benchmarks.grid import show

    return show(options.points, options.seconds)


def _bench_fit(options: argparse.Namespace) -> int:
    from isoflop.benchmarks.fit import show

    return show(options.runs, options.share, options.resamples, options.seed)


def _ui(options: argparse.Namespace) -> int:
    from isoflop.tracking import serve

    database = Path(options.storage) / "mlflow.db"
    if not database.exists():
        raise ValueError(f"there is no {database}; name the storage folder of a study that has run")
    return serve(f"sqlite:///{database.absolute()}", options.port)


if __name__ == "__main__":
    main()
