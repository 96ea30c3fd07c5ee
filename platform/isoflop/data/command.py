"""What does `isoflop data` offer? To prepare a text, verify one, show one, ask what was read of it.

Nothing heavy is imported before it is known to be needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.data.mixture import Mixed
    from isoflop.data.parallel import Runner
    from isoflop.data.prepared import Prepared
    from isoflop.run import Run

# Who joins a cluster and gives its runner, and who reads the folder of a run and, from a cache, its
# text: only orchestration may, so the commands are given them.
Join = Callable[[str], "AbstractContextManager[Runner]"]
Ended = Callable[[Path, Path], "tuple[Run, Prepared | Mixed]"]


def add(verbs: Any, join: Join, ended: Ended) -> None:
    """The commands below `isoflop data`; `verbs` are the subparsers of `isoflop`."""
    data = verbs.add_parser("data", help="prepare a text for studies, verify it, show it")
    kinds = data.add_subparsers(title="what to do", required=True, metavar="WHAT")
    _prepare_options(kinds.add_parser("prepare", help="a text -> token files"), join)
    verify = kinds.add_parser("verify", help="find what is truncated, altered or mixed up")
    verify.add_argument("folder", type=Path, help="what `prepare` filled, or a study's data folder")
    verify.set_defaults(act=_verify)
    show = kinds.add_parser("show", help="counts, lengths of documents, samples")
    show.add_argument("folder", type=Path, help="what `prepare` filled")
    show.add_argument("--samples", type=int, default=3, help="documents (default: %(default)s)")
    show.add_argument("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    show.add_argument("--png", type=Path, metavar="FILE", help="draw the histogram there too")
    show.set_defaults(act=_show)
    _seen_options(kinds.add_parser("seen", help="which documents a run had read at a step"), ended)


def _prepare_options(verb: argparse.ArgumentParser, join: Join) -> None:
    add = verb.add_argument
    add("source", help="a file, a folder, a pattern, or a name such as python-stdlib")
    add("--tokenizer", default="bpe-2048", help="as a study names it (default: %(default)s)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="made when all is done")
    add("--validation", type=float, default=0.05, help="share held out (default: %(default)s)")
    add("--column", default="text", help="of tables (default: %(default)s)")
    add(
        "--undecodable",
        default="skip",
        choices=("skip", "replace", "refuse"),
        help="what is not UTF-8 is left out, mended and counted, or an error (default: skip)",
    )
    add("--keep-duplicates", action="store_true", help="keep documents equal to an earlier one")
    add(
        "--near-duplicates",
        type=float,
        metavar="SIMILARITY",
        help="leave out documents whose runs of five words agree with another's to this share "
        "(Jaccard, such as 0.8)",
    )
    add("--licence", metavar="SPDX", help="noted in the manifest, such as CC-BY-SA-4.0")
    add("--processes", type=int, help="on this machine (default: as many as the text is worth)")
    add(
        "--address",
        help="a Ray cluster to spread over; the text and FOLDER must be on storage "
        "that every node shares",
    )
    verb.set_defaults(act=lambda options: _prepare(options, join))


def _seen_options(verb: argparse.ArgumentParser, ended: Ended) -> None:
    add = verb.add_argument
    add("run", type=Path, help="a run's folder: STORAGE/STUDY/runs/IDENTITY")
    add("--step", type=int, help="before it (default: the run's last)")
    add("--passage", default="", help="which training documents hold this, and were they seen?")
    add("--data", type=Path, help="prepared texts (default: STORAGE/data)")
    verb.set_defaults(act=lambda options: _seen(options, ended))


def _seen(options: argparse.Namespace, ended: Ended) -> int:
    from isoflop.data.seen import lines

    folder = options.run.absolute()
    run, prepared = ended(folder, options.data or folder.parents[2] / "data")
    for line in lines(run, prepared, options.step, options.passage):
        print(line)
    return 0


def _prepare(options: argparse.Namespace, join: Join) -> int:
    from rich.console import Console

    from isoflop.data.meter import shown
    from isoflop.data.options import Means, Options, Text
    from isoflop.data.prepare import prepare_to

    if options.address is not None and options.processes is not None:
        raise ValueError("--processes counts those of this machine; leave it out with --address")
    text = Text(source=options.source, tokenizer=options.tokenizer, validation=options.validation)
    chosen = Options(
        column=options.column,
        undecodable=options.undecodable,
        keep_duplicates=options.keep_duplicates,
        near_duplicates=options.near_duplicates,
        licence=options.licence,
    )
    try:
        with _runner(options, join) as runner, shown(Console()) as meter:
            means = Means(runner=runner, meter=meter)
            prepared = prepare_to(options.out, text, options=chosen, means=means)
    except OSError as error:  # a full disk, a dead worker, a file that may not be read
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{prepared.folder}   fingerprint {prepared.fingerprint}")
    print(
        f"in a study: Text(source={str(prepared.folder)!r}, tokenizer={text.tokenizer!r}, "
        f"validation={text.validation})"
    )
    return 0


@contextmanager
def _runner(options: argparse.Namespace, join: Join) -> Iterator[Runner | None]:
    from isoflop.data import parallel

    if options.address is not None:
        with join(options.address) as runner:
            yield runner
    else:
        yield None if options.processes is None else parallel.on(options.processes)


def _verify(options: argparse.Namespace) -> int:
    from isoflop.data.verify import complaints, folders

    wrong = 0
    for folder in folders(options.folder):
        found = list(complaints(folder))
        wrong += len(found)
        print("\n".join(found) if found else f"{folder}: whole, as it was written")
    return int(wrong > 0)


def _show(options: argparse.Namespace) -> int:
    from isoflop.data.prepared import Prepared
    from isoflop.data.show import lines, plot

    prepared = Prepared.load(options.folder)
    for line in lines(prepared, options.samples, options.seed):
        print(line)
    if options.png is not None:
        plot(prepared, options.png)
        print(f"\n{options.png}")
    return 0
