"""What if renting cost nothing? The same API on this machine, for rehearsals and tests.

    python -m cluster.prime.fake --port 8700
    PRIME_API_BASE_URL=http://127.0.0.1:8700 PRIME_API_KEY=fake isoflop cluster offers

It keeps pods, bills and a wallet, pages its lists, and can be told to fail in every way that a real
server does (`Fault`). Machines behind the pods are somebody else's: see `Market.started`.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "fake"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One answer that goes wrong. `done`: the request is carried out before it does."""

    status: int = 500
    body: bytes = b'{"detail": "a fault that was asked for"}'
    headers: dict[str, str] = field(default_factory=dict)
    done: bool = False
    cut: bool = False  # the connection ends without an answer
    late: bool = False  # carried out when `Market.settle` is called, and not answered
    seconds: float = 0  # before anything is answered


def offer(cloud_id: str = "gpu-1", **changes: Any) -> dict[str, Any]:
    """One item of /availability/gpus."""
    price = changes.pop("price", 2.0)
    return {
        "cloudId": cloud_id,
        "gpuType": "H100_80GB",
        "gpuCount": 1,
        "gpuMemory": 80,
        "socket": "SXM5",
        "provider": "datacrunch",
        "region": "eu_north",
        "country": "FI",
        "dataCenter": "FIN-01",
        "security": "secure_cloud",
        "stockStatus": "Available",
        "isSpot": False,
        "prepaidTime": None,
        "images": ["ubuntu_22_cuda_12"],
        "provisioningTime": 5,
        "prices": {"onDemand": price, "communityPrice": None, "currency": "USD"},
        **changes,
    }


def _offers() -> list[dict[str, Any]]:
    return [
        offer("cpu-small", gpuType="CPU_NODE", gpuMemory=0, price=0.06, provider="hyperstack"),
        offer("h100-1"),
        offer("h100-spot", isSpot=True, price=1.1),
        offer("h100-8", gpuCount=8, price=16.0),
        offer("a100-1", gpuType="A100_80GB", price=1.2, provider="runpod"),
    ]


class Market:
    """Everything that the server knows. All of it may be read and changed by whoever holds it."""

    def __init__(self, offers: list[dict[str, Any]] | None = None) -> None:
        self.lock = threading.RLock()
        self.offers = _offers() if offers is None else offers
        self.machines: dict[str, int] = {}  # per cloudId of a multi-node offer
        self.stock: dict[str, int] = {}  # pods left per cloudId; unlimited where it is not named
        self.pods: dict[str, dict[str, Any]] = {}
        self.bodies: dict[str, dict[str, Any]] = {}  # what was asked for, by pod
        self.ended: list[dict[str, Any]] = []
        self.keys: list[dict[str, Any]] = []
        self.accounts = {KEY}  # API keys
        self.balance = 100.0
        self.faults: list[tuple[str, str, Fault]] = []  # method, pattern of the path, answer
        self.asked: list[str] = []  # "METHOD path" of every request
        self.clock: Callable[[], float] = time.time
        self.automatic = True  # pods become ready when they are next looked at
        self.started: Callable[[dict[str, Any]], None] = self._address
        self.stopped: Callable[[dict[str, Any]], None] = lambda pod: None
        self.late: list[tuple[str, str, Any]] = []
        self._made = 0

    def fail(self, method: str, pattern: str, fault: Fault, times: int = 1) -> None:
        """The next `times` requests that fit go wrong."""
        with self.lock:
            self.faults += [(method, pattern, fault)] * times

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.asked.append(f"{method} {path}")
            for index, (verb, pattern, found) in enumerate(self.faults):
                if verb == method and re.fullmatch(pattern, path):
                    del self.faults[index]
                    return found
        return None

    def settle(self) -> None:
        """Carry out what was put off."""
        with self.lock:
            for method, path, body in self.late:
                self.answer(method, path, {}, body)
            self.late.clear()

    # What the endpoints do

    def create(self, body: dict[str, Any]) -> tuple[int, Any]:
        wish = body.get("pod", {})
        missing = [
            name for name in ("cloudId", "gpuType", "socket", "gpuCount") if name not in wish
        ]
        if missing:
            return 422, {"errors": [{"param": name, "details": "missing"} for name in missing]}
        if wish.get("maxPrice") is None:
            return 400, {"detail": "Missing field: max_price not specified"}
        fit = [item for item in self.offers if item["cloudId"] == wish["cloudId"]]
        if not fit or self.stock.get(wish["cloudId"], 1) < 1:
            return 400, {"detail": "The requested instance is out of stock"}
        price = fit[0]["prices"]["onDemand"]
        if price > wish["maxPrice"]:
            return 400, {"detail": f"Price {price} is above the given maximum"}
        if self.balance < price:
            return 402, {"detail": "Insufficient funds"}
        self.stock[wish["cloudId"]] = self.stock.get(wish["cloudId"], 10**6) - 1
        return 200, self._stand(body, fit[0], price)

    def _stand(self, body: dict[str, Any], item: dict[str, Any], price: float) -> dict[str, Any]:
        self._made += 1
        pod = {
            "id": f"pod{self._made:04d}",
            "name": body["pod"].get("name", ""),
            "status": "PROVISIONING",
            "installationStatus": "PENDING",
            "installationFailure": None,
            "providerType": body.get("provider", {}).get("type", ""),
            "gpuName": item["gpuType"],
            "gpuCount": item["gpuCount"],
            "priceHr": price,
            "stoppedPriceHr": None,
            "createdAt": self._now(),
            "sshConnection": None,
            "ip": None,
            "primePortMapping": [],
            "isSpot": item["isSpot"],
        }
        self.pods[pod["id"]] = pod
        self.bodies[pod["id"]] = body
        return pod

    def delete(self, identity: str) -> tuple[int, Any]:
        pod = self.pods.pop(identity, None)
        if pod is None:
            return 404, {"detail": "Pod not found"}
        self.stopped(pod)
        begun = datetime.fromisoformat(pod["createdAt"]).timestamp()
        dollars = (self.clock() - begun) / 3600 * pod["priceHr"]
        self.balance -= dollars
        done = {"status": "TERMINATED", "terminatedAt": self._now(), "totalBilledPrice": dollars}
        self.ended.insert(0, {**pod, **done})
        return 200, {"status": "DELETING"}

    def look(self) -> list[dict[str, Any]]:
        if self.automatic:
            for pod in self.pods.values():
                self.advance(pod)
        return [dict(pod) for pod in self.pods.values()]

    def advance(self, pod: dict[str, Any]) -> None:
        """PROVISIONING, then ACTIVE without its image, then ready."""
        if pod["status"] == "PROVISIONING":
            pod["status"] = "ACTIVE"
        elif pod["status"] == "ACTIVE" and pod["installationStatus"] == "PENDING":
            self.started(pod)
            pod["installationStatus"] = "FINISHED"

    def size(self, pod: dict[str, Any]) -> int:
        """How many machines a pod has: more than one for a multi-node offer."""
        return self.machines.get(self.bodies[pod["id"]]["pod"]["cloudId"], 1)

    def _address(self, pod: dict[str, Any]) -> None:
        """One machine gives values, several give lists, as the real API does."""
        number = int(pod["id"].removeprefix("pod"))
        hosts = [
            f"198.51.{number // 250 % 250 + 10 * k}.{number % 250 + 1}"  # documentation's network
            for k in range(self.size(pod))
        ]
        doors = [f"root@{host} -p {2200 + number}" for host in hosts]
        several = len(hosts) > 1
        pod["ip"] = hosts if several else hosts[0]
        pod["sshConnection"] = doors if several else doors[0]

    def register(self, body: dict[str, Any]) -> tuple[int, Any]:
        key = {"id": f"key{len(self.keys)}", **body, "isPrimary": not self.keys}
        self.keys.append(key)
        return 200, key

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        """Status and value of one request."""
        with self.lock:
            if method == "GET":
                return self._read(path, query)
            if (method, path) == ("POST", "/pods/"):
                return self.create(body)
            if (method, path) == ("POST", "/ssh_keys/"):
                return self.register(body)
            if method == "DELETE" and path.startswith("/pods/"):
                return self.delete(path.split("/")[2])
        return 404, {"detail": "Not Found"}

    def _read(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path in ("/availability/gpus", "/availability/multi-node"):
            multi = path.endswith("multi-node")
            items = [item for item in self.offers if (item["cloudId"] in self.machines) == multi]
            return 200, _page(_matching(items, query), query)
        if path == "/pods/":
            return 200, _slice(self.look(), query)
        if path == "/pods/history":
            return 200, _slice(self.ended, query)
        if path == "/ssh_keys/":
            return 200, _slice(self.keys, query)
        if path == "/billing/wallet":
            return 200, {"wallet_id": "w", "balance_usd": self.balance, "currency": "USD"}
        if (found := re.fullmatch(r"/pods/(\w+)", path)) and found[1] in self.pods:
            return 200, dict(self.pods[found[1]])
        return 404, {"detail": "Not found"}

    def _now(self) -> str:
        return datetime.fromtimestamp(self.clock(), UTC).isoformat()


def _matching(offers: list[dict[str, Any]], query: dict[str, list[str]]) -> list[dict[str, Any]]:
    kept = offers
    for name, key in (("gpu_type", "gpuType"), ("gpu_count", "gpuCount"), ("regions", "region")):
        if wanted := query.get(name):
            kept = [item for item in kept if str(item[key]) in wanted]
    return kept


def _page(items: list[Any], query: dict[str, list[str]]) -> dict[str, Any]:
    size = min(100, int(query.get("page_size", ["100"])[0]))
    first = (int(query.get("page", ["1"])[0]) - 1) * size
    return {"items": items[first : first + size], "totalCount": len(items)}


def _slice(items: list[Any], query: dict[str, list[str]]) -> dict[str, Any]:
    limit = min(100, int(query.get("limit", ["100"])[0]))
    offset = int(query.get("offset", ["0"])[0])
    part = items[offset : offset + limit]
    return {"data": part, "total_count": len(items), "offset": offset, "limit": limit}


class _Handler(BaseHTTPRequestHandler):
    market: Market

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path.removeprefix("/api/v1")
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null")
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or key not in self.market.accounts:
            return self._give(401, {"detail": "Invalid API key"})
        fault = self.market.fault(self.command, path)
        if fault is not None:
            time.sleep(fault.seconds)
        if fault is None or fault.done:
            status, value = self.market.answer(self.command, path, parse_qs(parts.query), body)
        if fault is None:
            return self._give(status, value)
        if fault.late:
            with self.market.lock:
                self.market.late.append((self.command, path, body))
        if fault.cut or fault.late:
            self.close_connection = True
            return None
        return self._give(fault.status, fault.body, fault.headers)

    def _give(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are counted in Market.asked."""


@contextmanager
def serving(market: Market, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The server, in a thread of its own, and its address."""
    handler = type("Handler", (_Handler,), {"market": market})
    server = ThreadingHTTPServer((host, port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8700, help="default: %(default)s")
    options = parser.parse_args()
    with serving(Market(), options.host, options.port) as address:
        print(f"PRIME_API_BASE_URL={address} PRIME_API_KEY={KEY}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
