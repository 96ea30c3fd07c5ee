"""Is what the model wrote well formed, and if not, how far is it?

Judged on prompt and completion together, as far as the completion reaches: a limit on the length
mostly cuts within an expression, and that is not the model's fault.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Sequence

from isoflop.rollouts.measured import Missing, Sample

LONGEST_SOURCE = 100_000  # characters that a parser is asked to read

_BRACKETS = re.compile(r"[()\[\]{}]")
_OPENS = {")": "(", "]": "[", "}": "{"}
_DECODER = json.JSONDecoder()


def parses_as_python(sample: Sample) -> float | Missing:
    """The share of the completion's lines that the longest prefix that is Python reaches.

    Of prompt and completion together, cut after the last complete line. Blank lines do not count.
    """
    source = sample.prompt + sample.text
    if not sample.stopped:
        source = source[: source.rfind("\n") + 1]
    if len(source) > LONGEST_SOURCE:
        return Missing(f"more than {LONGEST_SOURCE} characters")
    lines = source.split("\n")
    written = range(sample.prompt.count("\n"), len(lines))
    judged = [number for number in written if lines[number].strip()]
    if not judged or len(source) <= len(sample.prompt):
        return Missing("no complete line")
    end = _parseable(lines, judged[0], judged[-1] + 1)
    if isinstance(end, Missing):
        return end
    return sum(number < end for number in judged) / len(judged)


def parses_as_json(sample: Sample) -> float | Missing:
    """The share of the completion's characters up to the first that no JSON value has there.

    What stands behind a whole value counts as wrong, but for white space.
    """
    source = (sample.prompt + sample.text).strip()
    if not source.startswith(("{", "[")):
        return Missing("neither an object nor an array")
    if len(source) > LONGEST_SOURCE:
        return Missing(f"more than {LONGEST_SOURCE} characters")
    before = len(sample.prompt.lstrip())
    if before >= len(source):
        return Missing("no text")
    try:
        end = _DECODER.raw_decode(source)[1]
    except json.JSONDecodeError as error:
        unfinished = error.msg.startswith("Unterminated string") and not sample.stopped
        end = len(source) if unfinished else error.pos
    except RecursionError:
        return Missing("nested too deeply for the parser")
    return min(1.0, max(0.0, (end - before) / (len(source) - before)))


def brackets(sample: Sample) -> float | Missing:
    """The share of the completion's brackets that match: each closing one the last one open.

    Those still open at the end are wrong only if the model itself ended the text.
    """
    wrong, total, stack = 0, 0, list[str]()
    source, before = sample.prompt + sample.text, len(sample.prompt)
    for found in _BRACKETS.finditer(source):
        mark, own = found.group(), found.start() >= before
        total += own
        if mark not in _OPENS:
            stack.append(mark)
        elif stack and stack[-1] == _OPENS[mark]:
            stack.pop()
        else:
            wrong += own
    if not total:
        return Missing("no brackets")
    left = min(len(stack), total - wrong) if sample.stopped else 0
    return 1 - (wrong + left) / total


def _parseable(lines: Sequence[str], start: int, end: int) -> int | Missing:
    """The largest number of lines in [start, end] that are Python; `start` if it is not above that.

    A line at which the parser gives up spoils every longer prefix, so the search steps back to it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model's invalid escapes are not ours
        while end > start:
            try:
                ast.parse("\n".join(lines[:end]) + "\n")
            except SyntaxError as error:
                end = min(end, error.lineno or end) - 1
            except ValueError:  # a null byte or a lone surrogate, which no Python holds
                end -= 1
            except (MemoryError, RecursionError):
                return Missing("nested too deeply for the parser")
            else:
                return end
    return start
