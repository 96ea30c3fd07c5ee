"""What do these runs say? `isoflop fit`: laws from a table of runs, printed, written or as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from isoflop.scaling.answer import answer, runs_of
from isoflop.scaling.asked import Said, said
from isoflop.scaling.envelope import Envelope
from isoflop.scaling.findings import findings
from isoflop.scaling.parametric import Resampled
from isoflop.scaling.question import Question
from isoflop.scaling.records import records
from isoflop.scaling.sources import Experiment, load
from isoflop.scaling.words import text


def show(
    question: Question, *, as_json: bool, out: Path | None, experiment: Experiment | None = None
) -> int:
    """Prints the laws (`as_json`: one object per line and form, then those of approaches 2 and 1);
    1 where there is neither a law nor an envelope.

    `out`: also writes the report folder there; `experiment`: reads MLflow.
    """
    source = load(question.where, question.columns, long=question.long, experiment=experiment)
    if question.asked.hyper:
        return _only(said(question, source, runs_of(question, source)), as_json, out, source.name)
    table, laws = answer(question, source)
    found = findings(question, source, table, laws)
    more = said(question, source, table)
    if as_json:
        for row in [*records(question, source, table, laws, found), *more.records]:
            print(json.dumps(row, allow_nan=False))
    else:
        print("\n".join([text(question, source, table, laws, found), *more.lines]))
    if out is not None:
        from isoflop.scaling.folder import write

        page = write(out, question, source, table, laws, found, more)
        print(f"\nreport: {page}", file=sys.stderr if as_json else sys.stdout)
    known = [isinstance(law.law, Resampled) for law in laws]
    return 0 if any([*known, *(isinstance(each.envelope, Envelope) for each in found)]) else 1


def _only(found: Said, as_json: bool, out: Path | None, name: str) -> int:
    """The laws of hyper-parameters alone: a sweep is no table of final losses to fit laws to."""
    print("\n".join(json.dumps(row, allow_nan=False) for row in found.records) if as_json
          else "\n".join(found.lines).strip())  # fmt: skip
    if out is not None:
        from isoflop.scaling.folder import write_said

        print(f"\nreport: {write_said(out, name, found)}", file=sys.stderr if as_json else None)
    return int(all("refusal" in row for row in found.records))
