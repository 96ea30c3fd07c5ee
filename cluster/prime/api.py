"""How is Prime Intellect asked? Its compute API over HTTP, with typed errors.

Reading and deleting are repeated with growing pauses (and as long as Retry-After asks for); buying
never is: a create request has no identity of its own, and whoever repeats it may own two pods.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError
from urllib3.util import Retry, Timeout

from cluster.prime import records
from cluster.prime.account import Account
from cluster.prime.errors import ApiError, LostAnswer, NotFound, Unreachable, of_answer
from cluster.prime.records import Bill, Offer, Pod

_PAGE = 100  # the most that the API gives at once
_PAGES = 1000  # more than this is a server that does not end
_REPEATED = frozenset({429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 307, 308})


class Client:
    """The API, for one account. Safe to share between threads."""

    def __init__(
        self, account: Account, *, timeout: float = 30, repeats: int = 5, pause: float = 1.0
    ) -> None:
        """`timeout` seconds for each answer; at most `repeats` repeats of requests that may be
        repeated, `pause` seconds before the first, twice as long before each next."""
        self.account = account
        self._pool = _pool(account.address)
        self._timeout = Timeout(connect=min(10, timeout), read=timeout)
        self._retry = Retry(
            total=repeats,
            allowed_methods=frozenset({"GET", "DELETE"}),
            status_forcelist=_REPEATED,
            backoff_factor=pause,
            backoff_max=30,
            backoff_jitter=pause / 2,
            retry_after_max=120,
            raise_on_status=False,
        )

    # What can be rented

    def offers(self, *, multi_node: bool = False, **query: Any) -> list[Offer]:
        """What is for rent now; `query` as /availability/gpus has it (gpu_type, regions...)."""
        path = "/availability/multi-node" if multi_node else "/availability/gpus"
        found = (records.offer(item) for item in self._numbered(path, query))
        return [offer for offer in found if offer is not None]

    # What is rented

    def pods(self) -> list[Pod]:
        """Every pod that has not ended, of the key's owner or of its team."""
        return [self._pod(item) for item in self._offset("/pods/")]

    def pod(self, identity: str) -> Pod:
        """Raises NotFound if it has ended, or never was."""
        return self._pod(self._json("GET", f"/pods/{identity}"))

    def create_pod(self, body: Mapping[str, Any]) -> Pod:
        """Buy. An error with `uncertain` set says that a pod may stand all the same: look for its
        name before asking again."""
        return self._pod(self._json("POST", "/pods/", body=body, buying=True))

    def delete_pod(self, identity: str) -> None:
        """End a pod; one that has ended already is no error."""
        try:
            self._json("DELETE", f"/pods/{identity}")
        except NotFound:
            return

    def history(self) -> Iterator[Bill]:
        """What ended pods cost, the latest first."""
        query = {"sort_by": "terminatedAt", "sort_order": "desc"}
        return (records.bill(item) for item in self._offset("/pods/history", query))

    def balance(self) -> float:
        """Dollars left in the wallet."""
        query = {"limit": 1, **({"teamId": self.account.team} if self.account.team else {})}
        values = self._json("GET", "/billing/wallet", query)
        try:
            return float(values["balance_usd"])
        except (KeyError, TypeError, ValueError) as error:
            raise LostAnswer("GET /billing/wallet: the answer has no balance_usd") from error

    # Keys

    def ssh_keys(self) -> list[dict[str, Any]]:
        """The SSH keys that pods may be given: id, name, publicKey."""
        return list(self._offset("/ssh_keys/"))

    def add_ssh_key(self, name: str, public: str) -> str:
        """Register a public key; gives its id."""
        values = self._json("POST", "/ssh_keys/", body={"name": name, "publicKey": public})
        if not isinstance(values, dict) or not values.get("id"):
            raise LostAnswer("POST /ssh_keys/: the answer has no id")
        return str(values["id"])

    # How it is asked

    def _offset(self, path: str, query: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Items of a listing by offset and limit. One that moves while it is read may give an item
        twice: each is given once."""
        seen: set[str] = set()
        offset = 0
        for _ in range(_PAGES):
            page = {**(query or {}), "offset": offset, "limit": _PAGE}
            values = self._json("GET", path, page)
            items = _items(values, "data", path)
            for item in items:
                if (identity := str(item.get("id"))) not in seen:
                    seen.add(identity)
                    yield item
            offset += len(items)
            if not items or offset >= int(values.get("total_count") or 0):
                return
        raise LostAnswer(f"GET {path}: the listing does not end")

    def _numbered(self, path: str, query: Mapping[str, Any]) -> Iterator[Any]:
        """Items of a listing by page number."""
        given = 0
        for number in range(1, _PAGES):
            values = self._json("GET", path, {**query, "page": number, "page_size": _PAGE})
            items = _items(values, "items", path)
            yield from items
            given += len(items)
            if not items or given >= int(values.get("totalCount") or 0):
                return
        raise LostAnswer(f"GET {path}: the listing does not end")

    def _pod(self, values: Any) -> Pod:
        try:
            return records.pod(values)
        except (ValueError, TypeError, AttributeError) as error:
            raise LostAnswer(f"a pod that cannot be read: {error}") from error

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        buying: bool = False,
    ) -> Any:
        """One request, and redirects within the same server. No other server is ever sent the
        key."""
        url = f"{self.account.address}/api/v1{path}"
        url += f"?{urlencode(query, doseq=True)}" if query else ""
        request = f"{method} {path}"
        for _ in range(4):
            answer = self._send(method, url, body, request)
            if answer.status not in _MOVED:
                break
            url = self._followed(url, answer.headers.get("Location", ""), request)
        if not 200 <= answer.status < 300:
            raise of_answer(answer.status, self._hidden(answer.data), request, buying=buying)
        try:
            return json.loads(answer.data or b"{}")
        except ValueError as error:
            raise LostAnswer(f"{request}: the answer is not JSON") from error

    def _send(
        self, method: str, url: str, body: Mapping[str, Any] | None, request: str
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Authorization": f"Bearer {self.account.key}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            return self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=self._timeout,
                retries=self._retry,
                redirect=False,
            )
        except HTTPError as error:
            raise _silence(error, request) from error

    def _followed(self, url: str, location: str, request: str) -> str:
        target = urljoin(url, location)
        if urlsplit(target)[:2] != urlsplit(url)[:2]:
            host = urlsplit(target).netloc
            raise ApiError(f"{request}: sent on to {host!r}, which is not given the key")
        return target

    def _hidden(self, body: bytes) -> bytes:
        """A server that repeats what it was sent must not put the key into our messages."""
        return body.replace(self.account.key.encode(), b"...")


def _pool(address: str) -> urllib3.PoolManager:
    """Connections, through the proxy that the environment names for this address."""
    parts = urlsplit(address)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, maxsize=8)
    return urllib3.PoolManager(maxsize=8)


def _silence(error: HTTPError, request: str) -> ApiError:
    cause = error.reason if isinstance(error, MaxRetryError) else error
    if isinstance(cause, NewConnectionError | ConnectTimeoutError):
        return Unreachable(f"{request}: no connection ({type(cause).__name__})")
    return LostAnswer(f"{request}: no answer ({type(cause).__name__})")


def _items(values: Any, name: str, path: str) -> list[Any]:
    """A listing without its list is an error: it must never look like an empty one."""
    items = values.get(name) if isinstance(values, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise LostAnswer(f"GET {path}: the answer has no list {name!r}")
    return items
