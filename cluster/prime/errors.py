"""What went wrong at the API, and may the request have been carried out all the same?"""

from __future__ import annotations

import json
import re

_NO_CAPACITY = re.compile(
    r"capacity|unavailable|out of stock|sold out|insufficient|not available|no longer|quota|limit",
    re.IGNORECASE,
)
_NO_FUNDS = re.compile(r"funds|balance|credit|payment|billing", re.IGNORECASE)


class ApiError(Exception):
    """An answer that is no success, or none. `uncertain`: it may have been carried out anyway."""

    uncertain = False


class Unreachable(ApiError):
    """No connection: nothing was sent."""


class LostAnswer(ApiError):
    """The request was sent, and no readable answer came back."""

    uncertain = True


class ServerError(ApiError):
    """5xx: something failed on the way, perhaps after the request was carried out."""

    uncertain = True


class Unauthorized(ApiError):
    """401 or 403: the key is wrong, has expired or lacks the scope."""


class NoFunds(ApiError):
    """402: the wallet is empty."""


class NotFound(ApiError):
    """404."""


class RateLimited(ApiError):
    """429, still after the repeats that are allowed."""


class Invalid(ApiError):
    """Any other 4xx: the request itself is refused."""


class NoCapacity(Invalid):
    """A pod was refused because nothing is left of what was asked for."""


_BY_STATUS = {401: Unauthorized, 403: Unauthorized, 402: NoFunds, 404: NotFound, 429: RateLimited}


def of_answer(status: int, body: bytes, request: str, *, buying: bool = False) -> ApiError:
    """The error that an answer means. Running out of stock has no status of its own: for a purchase
    (`buying`) it is read from the sentence."""
    text = explanation(body)
    message = f"{request}: HTTP {status}" + (f": {text}" if text else "")
    if status >= 500:
        return ServerError(message)
    kind: type[ApiError] = _BY_STATUS.get(status, Invalid)
    if buying and kind in (Invalid, NotFound):
        if _NO_FUNDS.search(text):
            kind = NoFunds
        elif kind is NotFound or _NO_CAPACITY.search(text):
            kind = NoCapacity
    return kind(message)


def explanation(body: bytes) -> str:
    """The reason in an error's body: {"detail": text}, {"detail": [{loc, msg}]} or
    {"errors": [{param, details}]}; otherwise the beginning of the text as it is."""
    text = body.decode(errors="replace")
    try:
        values = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:200]
    if not isinstance(values, dict):
        return str(values)[:200]
    detail = values.get("detail") or values.get("errors") or values.get("message") or values
    items = detail if isinstance(detail, list) else [detail]
    return "; ".join(_item(item) for item in items)[:500]


def _item(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    where = item.get("loc") or item.get("param") or ""
    place = ".".join(str(part) for part in where) if isinstance(where, list) else str(where)
    said = item.get("msg") or item.get("details") or item
    return f"{place}: {said}" if place else str(said)
