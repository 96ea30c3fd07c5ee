"""How are rollouts read without a browser? By keys, one prompt and seed at a time.

    p P  prompt      s S  sample      left right  step      r R  run
    d    the difference to the run before       q  end

`Place` is where the reader is, `press` what a key makes of it, `shown` what stands there; `browse`
alone knows a terminal.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.rollouts import rows
from isoflop.rollouts.report import store
from isoflop.rollouts.report.store import Written

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

KEYS = "p/P prompt · s/S sample · ←/→ step · r/R run · d difference · q end"
LEFT, RIGHT = "\x1b[D", "\x1b[C"
RED = ("#f4a582", "#f9c8b0", "#fde6da")  # behind tokens less probable than 0.001, 0.016 and 0.12
LEVELS = (1, 3, 6)  # of `pieces.digits`


@dataclass(frozen=True, kw_only=True)
class Place:
    """Numbers of what is looked at; `capture` counts back from the last one, which is 0."""

    run: int = 0
    prompt: int = 0
    sample: int = 0
    capture: int = 0
    difference: bool = False


def press(place: Place, key: str, runs: Sequence[Written]) -> Place | None:
    """Where a key leads; None at the end. Ends meet: after the last comes the first."""
    run = runs[place.run]
    if key in ("q", "\x03", "\x04"):
        return None
    if key == "d":
        return replace(place, difference=not place.difference)
    if key in (LEFT, RIGHT):
        move = 1 if key == LEFT else -1
        return replace(place, capture=(place.capture + move) % len(run.captures))
    sizes = {"p": ("prompt", len(run.questions)), "r": ("run", len(runs)),
             "s": ("sample", run.questions[place.prompt].seeds)}  # fmt: skip
    if key.lower() not in sizes:
        return place
    name, size = sizes[key.lower()]
    move = 1 if key.islower() else -1
    moved = replace(place, **{name: (getattr(place, name) + move) % size})
    return _held(moved, runs[moved.run])


def _held(place: Place, run: Written) -> Place:
    """The same, where another run or prompt has fewer of something."""
    prompt = min(place.prompt, len(run.questions) - 1)
    return replace(
        place,
        capture=min(place.capture, len(run.captures) - 1),
        prompt=prompt,
        sample=min(place.sample, run.questions[prompt].seeds - 1),
    )


def row_at(run: Written, place: Place) -> Mapping[str, Any] | None:
    """The row that is looked at; None where the capture has none."""
    place = _held(place, run)
    table = run.read(_step(run, place))
    question = run.questions[place.prompt]
    wanted = (question.spec, question.prompt, place.sample)
    for row in table.to_pylist():
        if (row["spec"], row["prompt"], row["sample_id"]) == wanted:
            found: Mapping[str, Any] = row
            return found
    return None


def _step(run: Written, place: Place) -> int:
    return list(run.captures)[-1 - place.capture]


def shown(place: Place, runs: Sequence[Written], tokenizer: Any) -> Group:
    """What stands at a place, for rich to print. A model's text is never taken for markup."""
    from rich.console import Group
    from rich.text import Text

    run = runs[place.run]
    row = row_at(run, place)
    number = list(run.captures).index(_step(run, place)) + 1
    head = Text(f"{run.label}\n", style="bold")
    head.append(f"step {_step(run, place)} (capture {number} of {len(run.captures)}), ", "dim")
    head.append(f"prompt {place.prompt + 1} of {len(run.questions)}, ", "dim")
    spec = run.questions[place.prompt].spec
    head.append(f"set {spec}, " if spec else "", "dim")
    head.append(f"sample {place.sample}\n", "dim")
    if row is None:
        return Group(head, Text("not written", style="dim"), Text(KEYS, style="dim"))
    asked = Text(visible(row["prompt"]) or "(empty prompt)", style="cyan")
    if place.difference and len(runs) > 1:
        other = runs[place.run - 1]
        body = difference(row_at(other, place), row, other.label)
    else:
        body = shaded(row, tokenizer)
    known = {f"m.{name}": name for name in run.metrics}
    known |= {place: name for name, place in rows.rewards(list(row)).items()}
    values = [f"{known[k]} {v:.3g}" for k, v in row.items() if k in known and v is not None]
    return Group(head, asked, body, Text("\n" + " · ".join(values), style="dim"), Text(KEYS, "dim"))


def shaded(row: Mapping[str, Any], tokenizer: Any) -> Text:
    """The text with what was improbable behind colour, what had been read in green, and underlined
    from where it loops."""
    from rich.text import Text

    from isoflop.rollouts.report import pieces

    text, body = row["text"], Text(visible(row["text"]))
    if tokenizer is None or len(body) != len(text):
        return body
    import numpy as np

    lengths = pieces.Vocabulary(tokenizer).spans(text, np.array(row["completion_ids"], int))
    if lengths is None or max(text, default="") > "\uffff":  # rich counts no UTF-16 units
        return body
    ends = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    for place, digit in enumerate(pieces.digits(np.array(row["logprobs"]))):
        for level, colour in zip(LEVELS, RED, strict=True):
            if int(digit) < level:
                body.stylize(f"black on {colour}", ends[place], ends[place + 1])
                break
    stretches = row.get("copied") or []
    for start, length in zip(stretches[::2], stretches[1::2], strict=True):
        body.stylize("bold green", ends[start], ends[start + length])
    onset = row.get("m.loop_onset")
    if onset is not None:
        body.stylize("underline", ends[int(onset)], len(text))
    return body


def difference(before: Mapping[str, Any] | None, row: Mapping[str, Any], label: str) -> Text:
    """Words that only the run before has struck out, those that only this one has in green."""
    from rich.text import Text

    body = Text(f"against {label}\n", style="dim")
    if before is None:
        return body.append("not written there")
    one, two = (re.findall(r"\s+|\w+|[^\s\w]", visible(r["text"])) for r in (before, row))
    for kind, a, b, c, d in difflib.SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        if kind == "equal":
            body.append("".join(two[c:d]), style="not dim")
            continue
        body.append("".join(one[a:b]), style="not dim red strike")
        body.append("".join(two[c:d]), style="not dim green")
    return body


def visible(text: str) -> str:
    """A terminal obeys control characters, and a model may write them."""
    return "".join(
        c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def browse(study: Path, wanted: str = "") -> int:
    """Until the reader ends it. Raises ValueError where there is no terminal or no rollouts."""
    from rich.console import Console

    runs = store.runs(study, wanted)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError("--tui needs a terminal; without it, the page is written")
    tokenizer = store.tokenizer(study, runs[0])
    console, place = Console(), Place()
    with console.screen() as screen, _keys() as keys:
        screen.update(shown(place, runs, tokenizer))
        for key in keys:
            moved = press(place, key, runs)
            if moved is None:
                return 0
            place = moved
            screen.update(shown(place, runs, tokenizer))
    return 0


@contextmanager
def _keys() -> Iterator[Iterator[str]]:
    """Keys as they are pressed; the terminal is left as it was."""
    import os
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield iter(lambda: os.read(terminal, 8).decode(errors="replace"), "")
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
