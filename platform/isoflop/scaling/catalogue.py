"""Which forms can be asked for by name?"""

from __future__ import annotations

from collections.abc import Mapping

from isoflop.scaling.forms import FORMS, Form
from isoflop.scaling.smooth import BROKEN, FARSEER, REPETITION

ALL: Mapping[str, Form] = {
    **FORMS,
    BROKEN.name: BROKEN,
    FARSEER.name: FARSEER,
    REPETITION.name: REPETITION,
}


def form_of(name: str) -> Form:
    """Raises ValueError that names the forms there are."""
    if name not in ALL:
        raise ValueError(f"form is {name!r}; it must be one of {', '.join(ALL)}")
    return ALL[name]
