"""What can be asked of isoflop without a study file? Benchmarks, and the page that shows the runs.

Nothing heavy is imported before it is known to be needed: `isoflop --help` is quick.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import command as cluster
from isoflop import reward, sample, score, train
from isoflop.data import command as data
from isoflop.planning.options import add as plan_options
from isoflop.report.command import options as compare_options
from isoflop.rollouts.report.command import act as show_rollouts
from isoflop.rollouts.report.command import options as rollouts_options
from isoflop.scaling.options import register

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.data.mixture import Mixed
    from isoflop.data.parallel import Runner
    from isoflop.data.prepared import Prepared
    from isoflop.run import Run


def main(arguments: Sequence[str] | None = None) -> None:
    """The `isoflop` command."""
    # Python's last search for garbage takes seconds where MLflow and Ray are loaded.
    atexit.register(gc.freeze)
    options = parser().parse_args(arguments)
    try:
        sys.exit(options.act(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # who reads has read enough, as `head` does; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # what a shell says of a program that SIGPIPE ended


def parser() -> argparse.ArgumentParser:
    text = argparse.ArgumentParser(
        prog="isoflop",
        description="Scaling studies of neural language models. Studies are Python files with a "
        "command line of their own: python studies/scaling_grid.py --help",
    )
    verbs = text.add_subparsers(title="commands", required=True, metavar="COMMAND")

    bench = verbs.add_parser("bench", help="measure this machine and this checkout")
    kinds = bench.add_subparsers(title="what to measure", required=True, metavar="WHAT")
    steps = kinds.add_parser(
        "train",
        help="the whole training loop against the matrix products and attention it must do anyway; "
        "with --device, the share of a GPU that a step uses",
    )
    steps.add_argument(
        "--model", action="append", help="a model of the zoo (default: all); repeatable"
    )
    steps.add_argument(
        "--shape",
        action="append",
        help="layers x width: 4x128, 6x256 or 8x512 (default: the "
        "first two, about 40 s a model; the last takes as long again); repeatable",
    )
    steps.add_argument(
        "--steps",
        type=int,
        help="pairs measured per shape (default: 12, 6 and 3, the larger "
        "the fewer); with --device, steps of a round (default: 12)",
    )
    _device_options(steps)
    steps.add_argument("--rows", type=int, default=16, help="of a step (default: %(default)s)")
    steps.add_argument(
        "--compile", default="layers", help="layers, whole or none (default: %(default)s)"
    )
    steps.add_argument(
        "--backend", default="sdpa", help="attention: sdpa, flex or flash (default: %(default)s)"
    )
    steps.set_defaults(act=_bench_train)
    text_out = kinds.add_parser(
        "generate",
        help="text written, against the transformers library; with --device, the share of a GPU's "
        "memory bandwidth",
    )
    text_out.add_argument("--vocab", type=int, default=8192, help="default: %(default)s")
    text_out.add_argument("--pairs", type=int, default=5, help="per load (default: %(default)s)")
    text_out.add_argument(
        "--model", action="append", help="with --device: a decoder of the zoo; repeatable"
    )
    _device_options(text_out)
    text_out.set_defaults(act=_bench_generate)
    points = kinds.add_parser(
        "orchestration", help="a grid of short runs beside plain loops; recovery; MLflow's share"
    )
    points.add_argument("--points", type=int, default=20, help="runs in the grid (default: 20)")
    points.add_argument("--seconds", type=float, default=5, help="about so long each (default: 5)")
    points.add_argument("--rounds", type=int, default=1, help="default: %(default)s")
    points.set_defaults(act=_bench_orchestration)
    alike = kinds.add_parser(
        "together", help="small runs of one shape trained as one, against one after another"
    )
    alike.add_argument(
        "--model", action="append", help="a model of the zoo (default: gpt2, llama); repeatable"
    )
    alike.add_argument("--runs", type=int, default=8, help="default: %(default)s")
    alike.add_argument("--steps", type=int, default=100, help="default: %(default)s")
    alike.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    alike.add_argument("--device", help="default: a GPU if there is one")
    alike.set_defaults(act=_bench_together)
    laws = kinds.add_parser("fit", help="the law fit against scipy from the papers' 4,500 starts")
    laws.add_argument("--runs", type=int, default=240, help="made runs (default: %(default)s)")
    laws.add_argument(
        "--share", type=float, default=0.02, help="of the starts, 1 for all (default: %(default)s)"
    )
    laws.add_argument("--resamples", type=int, default=1000, help="default: %(default)s")
    laws.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    laws.set_defaults(act=_bench_fit)
    texts = kinds.add_parser(
        "data", help="text to shards, vocabularies and batches against their peers; memory"
    )
    texts.add_argument(
        "--size", type=int, default=200, help="MB of text to prepare (default: %(default)s)"
    )
    texts.add_argument(
        "--tokenizer", default="bpe-4096", help="it is prepared with (default: %(default)s)"
    )
    texts.add_argument("--rounds", type=int, default=5, help="pairs (default: %(default)s)")
    texts.set_defaults(act=_bench_data)
    asked = kinds.add_parser(
        "rollouts", help="measuring 1,000 rollouts, and an index of what a run has read"
    )
    asked.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    asked.add_argument(
        "--page",
        action="store_true",
        help="instead: the page of 100 runs x 50 captures x 256 rollouts, which take 1.5 GB",
    )
    asked.set_defaults(act=_bench_rollouts)

    register(
        verbs.add_parser("fit", help="scaling laws from runs: a table, a study, MLflow"),
        experiment=_experiment,
    )

    compare_options(
        verbs.add_parser("compare", help="two studies, or two commits of a model: who is better?")
    )

    written = verbs.add_parser("rollouts", help="what the models wrote, side by side")
    rollouts_options(written)
    written.set_defaults(act=_rollouts)

    plan = verbs.add_parser("plan", help="the IsoFLOP study that a budget pays for")
    plan_options(plan)
    plan.set_defaults(act=_plan)

    data.add(verbs, _join, _ended)
    _backfill_options(verbs.add_parser("backfill", help="ask a run that has ended"))

    sample.add(verbs.add_parser("sample", help="what a checkpoint writes after a prompt"))
    train.add(verbs.add_parser("train", help="one run, written as TOML or JSON"))
    reward.add(verbs.add_parser("reward", help="go on from a checkpoint by reward (GRPO)"))
    score.add(verbs.add_parser("evaluate", help="how well a checkpoint predicts a text"))

    ui = verbs.add_parser("ui", help="show the runs in MLflow (on this machine only)")
    ui.add_argument(
        "storage",
        nargs="?",
        default="studies/results",
        help="a study's storage folder (default: %(default)s)",
    )
    ui.add_argument("--port", type=int, default=5000, help="default: %(default)s")
    ui.set_defaults(act=_ui)
    cluster.add(verbs)
    return text


def _experiment(
    address: str, name: str
) -> tuple[pd.DataFrame, Mapping[str, Sequence[Mapping[str, float]]]]:
    from isoflop.tracked import experiment, histories

    return experiment(address, name), histories(address, name)


def _rollouts(options: argparse.Namespace) -> int:
    if options.laws:
        from isoflop.report.spoken import show

        return show(options.study)
    return show_rollouts(options)


def _backfill_options(text: argparse.ArgumentParser) -> None:
    text.description = (
        "What a run would have written, from the weights that it keeps: missing captures, further "
        "prompts, and what another run of the study makes of it all."
    )
    text.add_argument("run", type=Path, help="a run's folder: STORAGE/STUDY/runs/IDENTITY")
    text.add_argument(
        "--prompts", action="append", default=[], metavar="SOURCE",
        help="further ones: text, code, or a .txt or .jsonl file; repeatable")  # fmt: skip
    text.add_argument("--seeds", type=int, default=4, help="of further prompts (%(default)s)")
    text.add_argument("--new-tokens", type=int, default=64, help="(default: %(default)s)")
    text.add_argument("--novelty", action="store_true", help="compare with what the run had read")
    text.add_argument("--judge", type=Path, metavar="RUN", help="another run's folder")
    text.add_argument(
        "--plugins",
        action="store_true",
        help="only: measure its rows by packages' metrics",
    )
    text.add_argument(
        "--rubric", metavar="FILE.py",
        help="only: reward its rows by functions marked @reward(weight) or @metric, of "
        "isoflop.rollouts.rubric; or python, what looks like it")  # fmt: skip
    text.add_argument(
        "--taskset", metavar="MODULE:CLASS",
        help="only: reward its rows by a taskset of verifiers, in its own process")  # fmt: skip
    text.add_argument(
        "--python", default=sys.executable, metavar="PATH", help="that has verifiers (this one)"
    )
    text.add_argument(
        "--tasks", metavar="FILE.jsonl", help="answers and infos of its prompts, for rewards"
    )
    text.add_argument("--data", type=Path, help="prepared texts (default: STORAGE/data)")
    text.set_defaults(act=_backfill)


def _backfill(options: argparse.Namespace) -> int:
    from isoflop.orchestration.backfill import backfill, rejudge, remeasure
    from isoflop.run import Spec
    from models import ZOO

    if options.plugins:
        remeasure(options.run, say=print)
        return 0
    if options.rubric or options.taskset:
        return _regard(options)
    specs = [
        Spec(
            name=Path(source).stem,
            source=source,
            seeds=options.seeds,
            new_tokens=options.new_tokens,
        )
        for source in options.prompts
    ]
    folder = options.run.absolute()
    cache = options.data or folder.parents[2] / "data"
    backfill(folder, ZOO, cache, specs=specs, novelty=options.novelty, say=print)
    if options.judge:
        rejudge(folder, options.judge, ZOO, cache, say=print)
    return 0


def _regard(options: argparse.Namespace) -> int:
    from isoflop.orchestration.backfill import reward

    if options.rubric and options.taskset:
        raise ValueError("--rubric and --taskset: give one of them")
    reward(
        options.run, rubric=options.rubric, taskset=options.taskset, python=options.python,
        tasks=options.tasks, say=print,
    )  # fmt: skip
    return 0


def _plan(options: argparse.Namespace) -> int:
    from isoflop.planning.command import show

    return show(options)


def _device_options(parser: argparse.ArgumentParser) -> None:
    """Of benchmarks that can be of one device, in place of this machine's CPU beside its peers."""
    parser.add_argument(
        "--device", help="cuda: the share of it that is used; cpu: to try the command"
    )
    parser.add_argument(
        "--size", action="append", help="with --device: tiny, 125M or 350M; repeatable"
    )


def _bench_train(options: argparse.Namespace) -> int:
    from isoflop.benchmarks import training, utilisation

    if options.device is None:
        return training.show(options.model, options.shape, options.steps)
    if options.shape:
        raise ValueError("--shape is of a CPU's benchmark; with --device, --size says how large")
    setting = utilisation.Setting(
        device=options.device, rows=options.rows, compiling=options.compile,
        backend=options.backend,
        steps=12 if options.steps is None else options.steps,
    )  # fmt: skip
    return utilisation.show(options.model, options.size, setting)


def _bench_generate(options: argparse.Namespace) -> int:
    from isoflop.benchmarks import decoding, generation

    if options.device is None:
        return generation.show(options.vocab, options.pairs)
    return decoding.show(options.model, options.size, options.device)


def _bench_orchestration(options: argparse.Namespace) -> int:
    from isoflop.benchmarks.orchestration import show

    return show(options.points, options.seconds, options.rounds)


def _bench_together(options: argparse.Namespace) -> int:
    from isoflop.benchmarks.together import show

    models = options.model or ["gpt2", "llama"]
    return show(models, options.runs, options.steps, options.rounds, options.device)


def _bench_data(options: argparse.Namespace) -> int:
    from isoflop.benchmarks.data import show

    return show(options.size, options.tokenizer, options.rounds)


def _bench_rollouts(options: argparse.Namespace) -> int:
    from isoflop.benchmarks import pages, rollouts

    return pages.show() if options.page else rollouts.show(options.rounds)


def _bench_fit(options: argparse.Namespace) -> int:
    from isoflop.benchmarks.fit import show

    return show(options.runs, options.share, options.resamples, options.seed)


def _join(address: str) -> AbstractContextManager[Runner]:
    from isoflop.orchestration.preparing import join

    return join(address)


def _ended(folder: Path, cache: Path) -> tuple[Run, Prepared | Mixed]:
    """A run that has ended, or is under way, and its text."""
    from isoflop.orchestration.backfill import Ended
    from models import ZOO

    found = Ended.read(folder, ZOO)
    return found.run, found.prepared(cache)


def _ui(options: argparse.Namespace) -> int:
    from isoflop.tracking import serve

    database = Path(options.storage) / "mlflow.db"
    if not database.exists():
        raise ValueError(f"there is no {database}; name the storage folder of a study that has run")
    return serve(f"sqlite:///{database.absolute()}", options.port)


if __name__ == "__main__":
    main()
