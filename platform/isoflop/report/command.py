"""How does `isoflop compare` read its words? Two folders of results, or a study and two commits."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

STORAGE = Path("studies/results/compare")


def options(compare: argparse.ArgumentParser) -> None:
    """`isoflop compare`; nothing heavy is imported before it acts."""
    compare.description = (
        "Two studies, or one study under two states of the code: the loss at equal compute, pair "
        "by pair, and the compute multiplier, with intervals. Prints Markdown for a pull request."
    )
    compare.epilog = (
        "examples: isoflop compare results-old/scaling-grid results-new/scaling-grid; "
        "isoflop compare studies/scaling_grid.py --base main -- --only arch=llama"
    )
    add = compare.add_argument
    add("first", type=Path, help="a study's results (folder, or run table), or a study file")
    add("second", type=Path, nargs="?", help="the results to compare with; not with a study file")
    add("--base", metavar="REV", help="with a study file: the commit to compare with")
    add("--head", metavar="REV", help="and the one to judge (default: the working tree)")
    add("--storage", type=Path, default=STORAGE, help="where both are trained (%(default)s)")
    add("--family", default="arch", metavar="AXIS", help="compared one by one (%(default)s)")
    add("--budget", default="flops", metavar="AXIS", help="of equal compute (%(default)s)")
    add("--resamples", type=int, default=1000, help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object instead")
    add("--out", type=Path, metavar="FILE", help="write the Markdown there too")
    add("words", nargs="*", metavar="-- ...", help="for the study's own command line")
    compare.set_defaults(act=act)


def act(chosen: argparse.Namespace) -> int:
    """Raises ValueError that names what was wrong."""
    from isoflop.report.compare import as_json, compare, markdown
    from isoflop.scaling.files import put

    base, head, names = _tables(chosen)
    family, budget = f"axis.{chosen.family}", f"axis.{chosen.budget}"
    found = compare(
        base, head, names=names, family=family if family in base else None,
        budget=budget if budget in base else None, resamples=chosen.resamples, seed=chosen.seed,
    )  # fmt: skip
    text = markdown(found)
    print(json.dumps(as_json(found), allow_nan=False) if chosen.json else text)
    if chosen.out:
        put(chosen.out, text.encode())
    return 0


def _tables(chosen: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, str]]:
    if chosen.first.suffix == ".py":
        return _states(chosen)
    if chosen.base or chosen.head or chosen.second is None:
        raise ValueError(
            "compare takes two folders of results, or a study file with --base REV: "
            "isoflop compare studies/scaling_grid.py --base main"
        )
    one, two = chosen.first, chosen.second
    names = (one.name, two.name) if one.name != two.name else (str(one), str(two))
    return read(one), read(two), names


def _states(chosen: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, str]]:
    """Both states trained (what was trained before is kept), and their run tables."""
    from isoflop.report import states

    # After "--" argparse gives the first word to the argument that a study file leaves open.
    words = [*([str(chosen.second)] if chosen.second else []), *chosen.words]
    if not chosen.base:
        raise ValueError("a study file is compared between two states: give --base REV")
    root = states.root_of(chosen.first)
    pair = states.state(root, chosen.base), states.state(root, chosen.head)
    if pair[0].key == pair[1].key:
        raise ValueError(f"{pair[0].name} and {pair[1].name} are the same state, {pair[0].key}")
    tables = []
    for which in pair:
        place = states.train(root, chosen.first, which, chosen.storage, words)
        tables.append(read(_study_folder(place)))
    return tables[0], tables[1], (pair[0].name, pair[1].name)


def _study_folder(storage: Path) -> Path:
    found = sorted(storage.glob("*/runs.parquet"))
    if len(found) != 1:
        raise ValueError(f"{storage} holds {len(found)} studies, and a comparison takes one")
    return found[0].parent


def read(path: Path) -> pd.DataFrame:
    """The run table of a study's folder, or a table by itself."""
    import pandas as pd

    file = path / "runs.parquet" if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"there is no run table {file}; give the folder of a study that has run")
    if file.suffix == ".parquet":
        return pd.read_parquet(file)
    if file.suffix == ".csv":
        return pd.read_csv(file)
    raise ValueError(f"{file} is no run table; allowed are .parquet and .csv")
