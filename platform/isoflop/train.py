"""How is one run trained that is written in a file? `isoflop train RUN.toml`: a study of one point.

The file says what a `Run` says, table by table; what `--print-config` prints is one too. It is
checked before anything starts, and every mistake is named by its place in the file. All that a
study's command line can do (`--plan`, `--smoke`, `--workers`, `--max-hours`, ...) goes for it.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

if TYPE_CHECKING:
    from isoflop.run import Run

EXAMPLE = """\
tokens = 1_000_000            # or flops = 1e12
batch_tokens = 2048           # a multiple of the context

[model]
kind = "llama"                # a model of the zoo
width = 64
depth = 2
heads = 4
context = 128

[optimizer]
lr = 4e-3                     # kind = "muon" or "lion" for another

[data]
source = "python-stdlib"      # a folder, a file, hf:NAME
tokenizer = "bpe-2048"

[rollouts]
prompts = ["", "def "]
"""


def add(text: argparse.ArgumentParser) -> None:
    """The options of `isoflop train`; those of a study follow the file."""
    text.description = (
        "Train one run that is written as TOML or JSON: what it leaves out is at its default, and "
        "what a study's --print-config prints goes back in. `isoflop train FILE --help` shows the "
        "options that may follow."
    )
    text.epilog = "a file to begin with:\n\n" + EXAMPLE
    text.formatter_class = argparse.RawDescriptionHelpFormatter
    text.add_argument("file", type=Path, help="RUN.toml or RUN.json")
    text.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="options of a study")
    text.set_defaults(act=show)


def show(options: argparse.Namespace) -> int:
    """Hand over to the study's command line, which ends the process."""
    from isoflop.design import Study, grid
    from isoflop.study import main

    found = read(options.file)

    def run(*, file: str, seed: int) -> Run:
        return found

    study = Study(
        name=options.file.stem,
        run=run,
        points=grid(file=[options.file.stem], seed=[found.seed]),
        family="file",
        budget="seed",
        source=options.file.absolute(),
    )
    main(study, options.rest)
    return 0


def read(file: Path) -> Run:
    """The run that a file describes. Raises ValueError that names what is wrong, and where."""
    from isoflop import targets
    from isoflop.run import OPTIMIZERS, AdamW, Run
    from models import ZOO

    try:
        content = file.read_text()
        values = tomllib.loads(content) if file.suffix == ".toml" else json.loads(content)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    except ValueError as error:  # of either format
        raise ValueError(f"{file} is not {file.suffix[1:] or 'JSON'}: {error}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{file} must hold a table of fields")
    values = _only(values, file)
    kinds: dict[str, type[Any]] = {
        "model": _kind(values, "model", ZOO),
        "optimizer": _kind(values, "optimizer", OPTIMIZERS, AdamW.name),
    }
    fitting = next(k for k in targets.OBJECTIVES.values() if k.family == kinds["model"].family)
    kinds["objective"] = _kind(values, "objective", targets.OBJECTIVES, fitting.name)
    checked = _checked(Run, values, "", kinds)
    checked.setdefault("objective", {"kind": fitting.name})
    return Run.from_json(checked, ZOO)


def _only(values: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """Of what `--print-config` printed, by identity, the single run."""
    runs = [value for value in values.values() if isinstance(value, Mapping) and "model" in value]
    if "model" in values or not runs:
        return values
    if len(runs) > 1:
        raise ValueError(f"{file} holds {len(runs)} runs; keep one (a study's --only chooses)")
    return runs[0]


def _kind(
    values: Mapping[str, Any], part: str, known: Mapping[str, type[Any]], default: str | None = None
) -> type[Any]:
    """The class that a table's `kind` names."""
    table = values.get(part, {})
    if not isinstance(table, Mapping):
        raise ValueError(f"{part} is {table!r}; it must be a table of fields")
    kind = table.get("kind", default)
    if kind not in known:
        said = "is missing" if kind is None else f"is {kind!r}"
        raise ValueError(f"{part}.kind {said}; it must be one of {', '.join(sorted(known))}")
    return known[str(kind)]


def _checked(
    kind: type[Any],
    values: Mapping[str, Any],
    where: str,
    kinds: Mapping[str, type[Any]] | None = None,
) -> dict[str, Any]:
    """The values with each of its field's type (1e6 as a whole number, a list as a tuple)."""
    hints = get_type_hints(kind)
    known = {part.name: part for part in fields(kind)}
    found: dict[str, Any] = {}
    for name, value in values.items():
        place = f"{where}{name}"
        if name == "kind" and where:
            found[name] = value
        elif name not in known:
            raise ValueError(f"{place} is unknown; there are {', '.join(sorted(known))}")
        else:
            found[name] = _value((kinds or {}).get(name, hints[name]), value, place)
    for name, part in known.items():
        required = part.default is MISSING and part.default_factory is MISSING
        if required and name not in found:
            raise ValueError(f"{where}{name} is missing")
    return found


def _value(hint: Any, value: Any, place: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{place} is {value!r}; it must be a table of fields")
        return _checked(hint, value, f"{place}.")  # type: ignore[arg-type]
    inner = next(iter(get_args(hint)), None)
    if is_dataclass(inner) and isinstance(value, list):
        return [_value(inner, item, f"{place}[{i}]") for i, item in enumerate(value)]
    try:
        plain = TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ValueError(f"{place} is {value!r}: {reason}") from None
    return list(plain) if isinstance(plain, tuple) else plain
