"""What becomes of a call to a server that is away? It is asked again until the server is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 1800.0  # seconds for which a call waits for a server that is away
RETRY_SECONDS = 2.0


class Patient:
    """MLflow's client, whose calls wait for a server that is away for up to `patience` seconds.

    Each call is asked again by itself, so nothing that was written before it is written twice. Only
    the tracking thread waits; what is to be tracked meanwhile stays in its queue.
    """

    def __init__(self, client: Any, patience: float) -> None:
        self.client, self.patience = client, patience
        self.calls = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            deadline = time.monotonic() + self.patience
            while True:
                try:
                    return method(*arguments, **named)
                except Exception as error:
                    if not _away(error) or time.monotonic() >= deadline:
                        raise
                    time.sleep(RETRY_SECONDS)

        return call


def _away(error: Exception) -> bool:
    """Whether this is how MLflow speaks of a server that is down, starting, or behind a cut line:
    by the code of its exceptions, or an error of the connection itself."""
    code = getattr(error, "error_code", None)
    if code is not None:
        return code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
