"""How does a plan become a study? A file that states every decision, and that was tried.

The file is carried out beside its place and every run it builds is compared with the plan; only one
that agrees is put in place.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from isoflop.design import Study
from isoflop.planning.grid import Design, Planned
from isoflop.planning.shapes import shape
from isoflop.scaling.files import put
from isoflop.scaling.interval import scientific

TEMPLATE = '''"""{question}

{source}.

python {path} --plan      # what would run, and how long it takes
python {path}             # all of it, on this machine
"""

from isoflop.run import AdamW, Evaluation, Run, Schedule, Text
from isoflop.study import Grid, Study, grid, main
from isoflop.targets import {targets}
from models import {classes}

MODELS = {models}
OBJECTIVES = {objectives}

# The fields of each shape, by architecture and width.
SHAPES = {shapes}

# By budget (FLOPs): tokens per step and peak learning rate of each width, and the widths of each
# architecture, about the size that is expected to be best.
BATCH = {batch}
RATE = {rate}
WIDTHS = {widths}

# Further seeds of the size in the middle: the noise that every interval rests on.
REPEATS = {repeats}


def run(*, arch: str, width: int, flops: float, seed: int) -> Run:
    """One point of the grid. Every decision that a run depends on is stated here."""
    return Run(
        model=MODELS[arch](context={context}, **SHAPES[arch][width]),
        objective=OBJECTIVES[arch](),
        data=Text(source={data!r}, tokenizer={tokenizer!r}),
        flops=flops,
        batch_tokens=BATCH[arch][flops][width],
        optimizer=AdamW(lr=RATE[arch][flops][width], betas=(0.9, 0.95)),
        schedule=Schedule(decay="cosine", warmup=0.1, final=0.1),  # shares of each run's own length
        evaluation=Evaluation(tokens={evaluation}, times=4),
        seed=seed,
    )


def points() -> Grid:
    """Every width of every budget, then the repeats."""
    parts = [
        grid(arch=[arch], width=widths, flops=[flops], seed=range({seeds}))
        for arch, budgets in WIDTHS.items()
        for flops, widths in budgets.items()
    ]
    parts += [
        grid(arch=[arch], width=[width], flops=[flops], seed=seeds)
        for arch, flops, width, seeds in REPEATS
    ]
    return sum(parts[1:], start=parts[0])


study = Study(name={name!r}, run=run, points=points(), family="arch", budget="flops")

if __name__ == "__main__":
    main(study)
'''


def write(path: Path, design: Design, *, seeds: int, question: str, source: str) -> Path:
    """Writes the study file. Raises ValueError for a name that no study can have, where a file is
    there already, and where what was written would build other runs than the plan's."""
    name = path.stem.replace("_", "-")
    if path.suffix != ".py" or not re.fullmatch(r"[A-Za-z0-9_-]+", path.stem):
        raise ValueError(
            f"--write {path}: the name must be of letters, digits and _, and end in .py"
        )
    if path.exists():
        raise ValueError(f"--write {path}: it is there already; choose another name")
    text = content(path, name, design, seeds=seeds, question=question, source=source)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / path.name
        trial.write_text(text)
        differences(load(trial), design)
    return put(path, text.encode())


def content(
    path: Path, name: str, design: Design, *, seeds: int, question: str, source: str
) -> str:
    """The file's text."""
    first = design.planned[0].run
    archs = list(dict.fromkeys(p.arch for p in design.planned))
    kinds = {p.arch: type(p.run.model).__name__ for p in design.planned}
    aims = {p.arch: type(p.run.objective).__name__ for p in design.planned}
    models = ", ".join(f"{arch!r}: {kinds[arch]}" for arch in archs)
    objectives = ", ".join(f"{arch!r}: {aims[arch]}" for arch in archs)
    return TEMPLATE.format(
        question=question,
        source=source,
        path=path.as_posix(),
        classes=", ".join(sorted(set(kinds.values()))),
        models="{" + models + "}",
        targets=", ".join(sorted(set(aims.values()))),
        objectives="{" + objectives + "}",
        shapes=_shapes(design, archs),
        batch=_table(design, archs, lambda p: p.run.batch_tokens),
        rate=_table(design, archs, lambda p: p.run.optimizer.lr),
        widths=_table(design, archs),
        repeats=_repeats(design, seeds),
        context=first.model.context,
        data=first.data.source,
        tokenizer=first.data.tokenizer,
        evaluation=first.evaluation.tokens,
        seeds=seeds,
        name=name,
    )


def load(path: Path) -> Study:
    """The study of a file. Raises ValueError where it cannot be carried out."""
    name = f"_planned_{path.stem}"  # stays among the modules: a study reads its own docstring there
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        study = module.study
    except Exception as error:
        raise ValueError(f"the study that was written does not run: {error}") from error
    assert isinstance(study, Study)
    return study


def differences(study: Study, design: Design) -> None:
    """Raises ValueError unless the study builds exactly the design's runs."""
    built = {_key(study.run(**point).as_json()) for point in study.points}
    wanted = {_key(_unresolved(p)) for p in design.planned}
    if built != wanted or len(study.points) != len(design.planned):
        raise ValueError(
            f"the study that was written builds {len(study.points)} runs of which "
            f"{len(built & wanted)} are among the plan's {len(design.planned)}"
        )


def _unresolved(planned: Planned) -> dict[str, object]:
    """The planned run as a study states it: its vocabulary comes from the tokenizer."""
    values = planned.run.as_json()
    return {**values, "model": {**values["model"], "vocab": 0, "markers": 0}}


def _key(values: object) -> str:
    import json

    return json.dumps(values, sort_keys=True)


def _width(planned: Planned) -> int:
    width: int = planned.run.model.width  # type: ignore[attr-defined]  # the ladder's shapes have one
    return width


def _shapes(design: Design, archs: list[str]) -> str:
    lines = ["{"]
    for arch in archs:
        lines.append(f"    {arch!r}: {{")
        mine = {_width(p): type(p.run.model) for p in design.planned if p.arch == arch}
        lines += [
            f"        {width}: {shape(kind, width)!r}," for width, kind in sorted(mine.items())
        ]
        lines.append("    },")
    return "\n".join([*lines, "}"])


def _table(
    design: Design, archs: list[str], value: Callable[[Planned], float] | None = None
) -> str:
    """Architecture -> budget -> widths, or width -> a value of the run."""
    lines = ["{"]
    for arch in archs:
        lines.append(f"    {arch!r}: {{")
        for budget in design.budgets:
            here = [p for p in design.planned if (p.arch, p.budget) == (arch, budget)]
            known = dict(sorted({_width(p): value(p) if value else 0 for p in here}.items()))
            if known:
                lines.append(f"        {_number(budget)}: {known if value else list(known)!r},")
        lines.append("    },")
    return "\n".join([*lines, "}"])


def _number(value: float) -> str:
    """As people write it, where that is the very same number."""
    short = scientific(value)
    return short if float(short) == value else repr(value)


def _repeats(design: Design, seeds: int) -> str:
    found: dict[tuple[str, float, int], list[int]] = {}
    for p in design.planned:
        if p.seed >= seeds:
            found.setdefault((p.arch, p.budget, _width(p)), []).append(p.seed)
    lines = [f"    ({a!r}, {_number(c)}, {w}, {s})," for (a, c, w), s in found.items()]
    return "\n".join(["[", *lines, "]"])


def question_of(archs: list[str], budgets: list[float]) -> str:
    """The first line of the study's docstring."""
    kinds = " and ".join(archs)
    span = f"{scientific(budgets[0])} to {scientific(budgets[-1])} FLOPs"
    verb = "compare" if len(archs) > 1 else "scale"
    return f"How do{'' if len(archs) > 1 else 'es'} {kinds} {verb} from {span}?"
