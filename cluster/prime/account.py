"""Whose money is spent? The key, the team and the address, from the environment or ~/.prime."""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

ADDRESS = "https://api.primeintellect.ai"


@dataclass(frozen=True, kw_only=True)
class Account:
    """An API key and what goes with it; the key is never shown."""

    key: str = field(repr=False)
    team: str | None = None
    address: str = ADDRESS


def account(home: Path | None = None) -> Account:
    """The account of PRIME_API_KEY, PRIME_TEAM_ID and PRIME_API_BASE_URL, else of the `prime`
    command's ~/.prime/config.json. Raises ValueError if there is no key, or the address is unsafe.
    """
    path = (home or Path.home()) / ".prime" / "config.json"
    saved = _saved(path)
    key = os.environ.get("PRIME_API_KEY") or saved.get("api_key") or ""
    if not key:
        raise ValueError(
            f"no API key: set PRIME_API_KEY, or put api_key into {path} (`prime login` does)"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("the API key has characters that no key has: check for a line end in it")
    address = (
        os.environ.get("PRIME_API_BASE_URL")
        or os.environ.get("PRIME_BASE_URL")
        or saved.get("base_url")
        or ADDRESS
    )
    team = os.environ.get("PRIME_TEAM_ID") or saved.get("team_id") or None
    return Account(key=key, team=team, address=checked(address))


def checked(address: str) -> str:
    """The address without /api/v1. Raises ValueError where a key would travel in the open."""
    parts = urlsplit(address.rstrip("/").removesuffix("/api/v1"))
    host = parts.hostname or ""
    if parts.scheme == "https" and host:
        return parts.geturl()
    if parts.scheme == "http" and _private(host):
        return parts.geturl()
    raise ValueError(
        f"API address {address!r}: https://HOST is allowed, and http:// on a private address only"
    )


def _private(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _saved(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object")
    return {name: value for name, value in values.items() if isinstance(value, str)}
