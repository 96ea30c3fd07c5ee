"""What can be asked of `isoflop fit`? Its options; nothing heavy is imported to read them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.scaling.sources import Experiment


def register(fit: argparse.ArgumentParser, experiment: Experiment | None = None) -> None:
    """`isoflop fit`; neither torch nor Ray is imported for it. `experiment` reads MLflow."""
    add = fit.add_argument
    add(
        "where",
        metavar="RUNS",
        help="one row per run: .csv, .tsv, .jsonl or .parquet; a study's results folder; or "
        "mlflow:ADDRESS#EXPERIMENT",
    )
    add("--curves", action="store_true", help="RUNS has a row per evaluation: also fit approach 1")
    add("--rate", metavar="COLUMN", help="learning rates, with --curves")
    add("--repeats", action="store_true", help="rows of equal N and D are seeds of one another")
    add("--n", metavar="COLUMN", help="parameters (default: params, N, ...)")
    add("--d", metavar="COLUMN", help="tokens (default: tokens, D, ...), or the rule C/6N")
    add("--loss", metavar="COLUMN", help="final loss (default: loss, L, ...)")
    add("--c", metavar="COLUMN", help="training FLOPs, or the rule 6ND (default, but for studies)")
    add("--by", metavar="COLUMN", help="families, each with a law of its own")
    add("--weights", metavar="COLUMN", help="how much each run counts (default: 1)")
    add("--unique", metavar="COLUMN", help="distinct tokens, where data were repeated")
    add("--planned", metavar="COLUMN", help="tokens each run was planned for (or: max_tokens, ...)")
    add("--run", metavar="COLUMN", help="rows of one run, which the bootstrap draws together")
    add("--midway", action="store_true", help="losses before the end of a run count as well")
    forms = "chinchilla, tied, kaplan, gadre (default: these), broken, farseer, repetition"
    add("--form", action="append", help=f"{forms}; repeatable")
    add("--objective", default="huber", help="huber (default), l1, l2 or asymmetric, on ln L")
    add("--delta", type=float, default=1e-3, help="of huber and asymmetric (default: %(default)s)")
    add("--over", type=float, help="asymmetric: cost of a law above a run (default: 10)")
    add("--pin", action="append", default=[], metavar="NAME=VALUE", help="hold a parameter")
    add("--bound", action="append", default=[], metavar="NAME=LOW:HIGH",
        help="keep a parameter between; either end may be left out")  # fmt: skip
    add("--share", action="append", default=[], metavar="NAME", help="one value for all of --by")
    add("--resamples", type=int, default=1000, help="of the runs (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")
    add(
        "--drop",
        type=int,
        default=0,
        metavar="K",
        help="leave the K highest losses of each family out",
    )
    add(
        "--target", type=float, metavar="C", help="FLOPs to optimise for (default: the largest run)"
    )
    add("--out", type=Path, metavar="FOLDER",
        help="of the report (default: NAME-laws here, or laws in a study's folder)")  # fmt: skip
    add("--no-report", action="store_true", help="print only")
    add("--json", action="store_true",
        help="print one JSON object per line and form instead; writes with --out only")  # fmt: skip
    _other_laws(fit)
    fit.set_defaults(act=act, experiment=experiment)


def _other_laws(fit: argparse.ArgumentParser) -> None:
    add = fit.add_argument_group("laws of other things than the loss").add_argument
    add("--hyper", action="append", default=[], metavar="COLUMN",
        help="only: the best value of a swept hyper-parameter per N and D; repeatable")  # fmt: skip
    add("--task", action="append", default=[], metavar="COLUMN",
        help="accuracy or error, by way of the loss; repeatable")  # fmt: skip
    add("--task-curve", default="exponential", help="exponential (default) or sigmoid")
    add("--chance", type=float, help="of --task-curve sigmoid: accuracy of guessing")
    add("--metric", action="append", default=[], metavar="COLUMN",
        help="a metric of rollouts; repeatable")  # fmt: skip
    add("--rates", action="store_true", help="the metrics are rates between 0 and 1")
    add("--floor", type=float, help="what the metrics tend to, such as human text's value")
    add("--against", default="flops", help="of --metric: flops (default) or loss")


def folder(options: argparse.Namespace) -> Path | None:
    """Where the report goes; None: nowhere, since none is wanted or the place cannot be written."""
    if options.out is not None or options.json or options.no_report:
        out: Path | None = options.out
        return out
    where = Path(options.where)
    name = options.where.rpartition("#")[2] if options.where.startswith("mlflow:") else where.name
    there = where / "laws" if where.is_dir() else Path(f"{name.partition('.')[0] or 'runs'}-laws")
    if not os.access(there.parent, os.W_OK):
        print(f"no report: {there.absolute()} cannot be written; --out names another folder",
              file=sys.stderr)  # fmt: skip
        return None
    return there


def act(options: argparse.Namespace) -> int:
    from isoflop.scaling.asked import Asked
    from isoflop.scaling.bounds import parse
    from isoflop.scaling.columns import Columns
    from isoflop.scaling.command import show
    from isoflop.scaling.forms import FORMS
    from isoflop.scaling.objective import named
    from isoflop.scaling.question import Question, pins

    question = Question(
        where=options.where,
        long=options.curves,
        repeats=options.repeats,
        asked=Asked(
            hyper=tuple(dict.fromkeys(options.hyper)),
            tasks=tuple(dict.fromkeys(options.task)),
            curve=options.task_curve,
            chance=options.chance,
            metrics=tuple(dict.fromkeys(options.metric)),
            kind="rate" if options.rates else "value",
            floor=options.floor,
            against=options.against,
        ),
        columns=Columns(
            n=options.n,
            d=options.d,
            loss=options.loss,
            c=options.c,
            by=options.by,
            weights=options.weights,
            unique=options.unique,
            planned=options.planned,
            run=options.run,
            midway=options.midway,
            rate=options.rate,
        ),
        forms=tuple(dict.fromkeys(options.form or FORMS)),
        objective=named(options.objective, delta=options.delta, over=options.over),
        resamples=options.resamples,
        seed=options.seed,
        drop=options.drop,
        target=options.target,
        pinned=pins(options.pin),
        bounds=parse(options.bound),
        shared=tuple(dict.fromkeys(options.share)),
    )
    return show(question, as_json=options.json, out=folder(options), experiment=options.experiment)
