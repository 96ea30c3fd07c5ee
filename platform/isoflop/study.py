"""What can be asked of every study? One command line: plan, train, report, and where.

    study = Study(name="scaling-grid", run=run, points=grid(arch=[...], width=[...], flops=[...]))

    if __name__ == "__main__":
        main(study)

A `search(...)` in the place of the grid chooses its points one after another, through Optuna.
`main` gives every study the same command line. A study file does no I/O when imported, trains
nothing itself, and states every decision that a run depends on.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from isoflop.design import (
    Grid,
    Point,
    Search,
    Study,
    UserError,
    extended,
    grid,
    search,
    select,
    user_input,
)
from isoflop.space import Pruning, choice, integer, log, uniform

if TYPE_CHECKING:
    from isoflop.campaign import Campaign
    from isoflop.plan import Workers


def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """The command line of a study. Exits with 2 and one sentence on wrong input, 1 if runs failed,
    130 if it was stopped."""
    # Python's last search for garbage takes seconds where MLflow and Ray are loaded.
    atexit.register(gc.freeze)
    options = parser(study).parse_args(arguments)
    try:
        sys.exit(_dispatch(study, options))
    except UserError as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before any run had started, or for the second time
        print("ended at once; what had a result is kept", file=sys.stderr)
        sys.exit(130)


def _dispatch(study: Study, options: argparse.Namespace) -> int:
    from isoflop.campaign import Campaign, Machine
    from isoflop.training.means import Means
    from isoflop.watching import Limits

    if options.on and not options.plan:
        raise UserError("--on belongs to --plan")
    asked = [name for name in ("go", "target", "spend") if getattr(options, name) is not None]
    if asked and not options.next:
        raise UserError(f"--{asked[0]} belongs to --next")
    with user_input():
        means = Means(
            micro_batch=options.micro_batch, compile=options.compile, shard=options.shard,
            together=options.together, attention=options.attention,
        )  # fmt: skip
    machine = Machine.at(
        options.storage or study.file.parent / "results",
        tracking=options.tracking,
        address=options.address,
        workers=options.workers,
        at_once=options.at_once,
        beside=options.beside,
        means=means,
    )
    with user_input():
        machine.fetch(study.name)
        study = extended(_searched(study, options), machine.storage)
        chosen = select(study, options.only)
    limits = Limits(
        hours=options.max_hours, cost=options.max_cost, flops=options.max_flops, price=options.price
    )
    campaign = Campaign.prepare(study, machine, chosen, options.set, quiet=options.print_config)
    campaign = replace(campaign, preregister=options.preregister, limits=limits)
    if options.on:
        from isoflop.plan import Device

        with user_input():
            campaign = replace(campaign, device=Device.parse(options.on))
    return _act(campaign, options)


def _searched(study: Study, options: argparse.Namespace) -> Study:
    """The study with as many trials as were asked for. Raises ValueError for what only a grid
    has."""
    if not isinstance(study.points, Search):
        return study
    for name in ("next", "preregister"):
        if getattr(options, name):
            raise ValueError(f"--{name} is for grids; a search chooses its next run by itself")
    if options.trials is None:
        return study
    return replace(study, points=study.points.by(trials=options.trials))


def _act(campaign: Campaign, options: argparse.Namespace) -> int:
    if options.print_config:
        runs = {job.run.identity: job.run.as_json() for job in campaign.chosen}
        print(json.dumps(runs, indent=2))
        return 0
    if options.plan:
        campaign.plan()
        return 0
    if options.smoke:
        campaign.smoke()
        return 0
    if options.profile:
        campaign.profile(options.profile)
        return 0
    if options.report:
        campaign.report()
        return 0
    if options.next:
        from isoflop.upcoming import Wish, next_runs

        wish = Wish(go=options.go, target=options.target, spend=options.spend, price=options.price)
        return next_runs(campaign, options.set, wish)
    return campaign.go()


def parser(study: Study) -> argparse.ArgumentParser:
    """The options every study has, with this study's axes at the end of the help."""
    axes = "\n".join(study.points.described())
    command = f"python {study.file.parent.name}/{study.file.name}"
    if study.source is not None:
        command = f"isoflop train {study.source.name}"
    text = argparse.ArgumentParser(
        prog=command,
        usage=f"{command} [what to do] [which points] [where]",
        description=study.question,
        epilog=f"axes:\n{axes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = text.add_argument_group("what to do (default: train every point that has no result yet)")
    modes = what.add_mutually_exclusive_group()
    modes.add_argument(
        "--plan", action="store_true", help="print runs, tokens, FLOPs, time; start nothing"
    )
    what.add_argument(
        "--on", metavar="GPU[:SHARE]",
        help="--plan for that GPU instead of this machine, such as H100:0.4 for 40%% of its peak",
    )  # fmt: skip
    modes.add_argument("--print-config", action="store_true", help="print every run as JSON")
    modes.add_argument(
        "--smoke", action="store_true", help="two steps of the smallest point, in seconds"
    )
    modes.add_argument(
        "--profile", nargs="?", const="coarse", choices=("coarse", "fine"),
        help="where a step's time goes, at the chosen point with the largest step: a table, and a "
        "trace for ui.perfetto.dev; fine marks every operation for nsys too",
    )  # fmt: skip
    modes.add_argument(
        "--report", action="store_true", help="rebuild the report from what has finished"
    )
    modes.add_argument(
        "--next", action="store_true", help="rank the runs that would tell most for their cost"
    )
    what.add_argument(
        "--preregister",
        action="store_true",
        help="train the largest budget last, its loss predicted and written down before",
    )
    if isinstance(study.points, Search):
        what.add_argument(
            "--trials", type=int, metavar="N",
            help=f"points to choose in all (default: {study.points.settings.trials})",
        )  # fmt: skip
    _next_options(text.add_argument_group("with --next"))
    _limit_options(text.add_argument_group("limits of this command; the same one goes on later"))
    which = text.add_argument_group("which points")
    which.add_argument(
        "--only", action="append", default=[], metavar="AXIS=VALUE",
        help="keep the points with this value; repeat for more",
    )  # fmt: skip
    which.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE",
        help="change a field of every run: optimizer.lr=1e-3, data=FOLDER, data.tokenizer=bytes",
    )  # fmt: skip
    where = text.add_argument_group("where (never part of a run's identity)")
    where.add_argument(
        "--address", metavar="ADDR", help="Ray cluster to join (default: a local one)"
    )
    where.add_argument(
        "--workers", type=_workers, metavar="N",
        help="processes per run; more than 1 trains with Ray Train; auto: by a run's size, what is "
        "left to do, and the memory of a GPU (default: auto where there are several GPUs, else 1)",
    )  # fmt: skip
    where.add_argument(
        "--at-once", type=int, metavar="N", help="runs side by side (default: all cores or GPUs)"
    )
    where.add_argument(
        "--micro-batch", type=int, metavar="ROWS",
        help="rows that go through a model at once; gradients add up to the same batch (default: "
        "what memory holds)",
    )  # fmt: skip
    where.add_argument(
        "--together", type=int, metavar="N",
        help="small runs of one shape, as of several seeds or learning rates, that one process "
        "trains as one, at most (default: 8 on a GPU, 1 on CPUs, where nothing is gained)",
    )  # fmt: skip
    where.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto",
        help="compile models before they train (default: on a GPU, where a run is long enough)",
    )  # fmt: skip
    where.add_argument(
        "--attention", choices=("sdpa", "flex", "flash"), default="sdpa",
        help="what computes attention in training, on a GPU: flash needs the flash-attn package, "
        "flex a compiled model (default: %(default)s, on every device)",
    )  # fmt: skip
    where.add_argument(
        "--shard", choices=("auto", "on", "off"), default="auto",
        help="with --workers: a model is split over them (FSDP2; default: if no GPU can hold it)",
    )  # fmt: skip
    where.add_argument(
        "--beside",
        action="store_true",
        help="capture rollouts in processes of their own, so that training does not wait for them "
        "(else they keep to a budget; --set rollouts.beyond=now: step 0 and the end in any case)",
    )
    where.add_argument(
        "--tracking",
        metavar="URI",
        help="MLflow server or database (default: SQLite in the storage)",
    )
    where.add_argument(
        "--storage",
        metavar="DIR",
        help="results and prepared text: a folder that all nodes see, or a URL such as s3://bucket/"
        "lab (default: results/ by the study)",
    )
    where.add_argument("--debug", action="store_true", help="tracebacks instead of one-line errors")
    return text


def _workers(text: str) -> Workers:
    return "auto" if text == "auto" else int(text)


def _next_options(add: argparse._ArgumentGroup) -> None:
    add.add_argument(
        "--go", type=int, nargs="?", const=1, metavar="K", help="run the best K (default: 1)"
    )
    add.add_argument(
        "--target", type=float, metavar="C",
        help="FLOPs to predict the loss for (default: 10 times the largest run)",
    )  # fmt: skip
    add.add_argument(
        "--spend", type=float, metavar="C",
        help="at most so many FLOPs, or dollars with a price (default: as much as so far)",
    )  # fmt: skip


def _limit_options(add: argparse._ArgumentGroup) -> None:
    for name, unit, help in (
        ("hours", "H", "stop at checkpoints after so long"),
        ("cost", "DOLLARS", "stop when so much is spent at --price"),
        ("flops", "C", "stop when so many are trained"),
    ):
        add.add_argument(f"--max-{name}", type=float, metavar=unit, help=help)
    add.add_argument(
        "--price", type=float, metavar="DOLLARS",
        help="per hour of all that it runs on: --plan and the live table show dollars, --next "
        "ranks by them",
    )  # fmt: skip


__all__ = [
    "Grid",
    "Point",
    "Pruning",
    "Search",
    "Study",
    "UserError",
    "choice",
    "grid",
    "integer",
    "log",
    "main",
    "search",
    "uniform",
]
