"""Asks a sidecar all the while a fault lasts: is it alive, and does a pause get through?"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit

_EVERY_S = 0.02
_PAUSE_EVERY_S = 0.25


def ask(
    url: str,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    kind: str = "application/json",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> tuple[int, bytes]:
    """Status and body of one request, its body of this content type, on a connection of its own.

    Raises:
        OSError: nobody answers in time.
        http.client.HTTPException: the answer is cut off.
    """
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)
    try:
        connection.request(method, path, body, {"Content-Type": kind, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Probe:
    """A context manager that asks from two threads.

    Attributes:
        health_s: seconds of each answer of /healthz.
        pause_s: seconds until each pause was acknowledged.
        failed: requests without the answer they should have.
    """

    def __init__(self, url: str, *, ad_id: int) -> None:
        """Of the sidecar at `url`; `ad_id` is an ad that it has, whose status versions are below 2**40."""
        self._url, self._ad_id = url, ad_id
        self._over = threading.Event()
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._health, self._pauses)]
        self.health_s: list[float] = []
        self.pause_s: list[float] = []
        self.failed = 0

    def figures(self) -> dict[str, Any]:
        """Percentiles in milliseconds, and what failed."""
        return {
            "failed": self.failed,
            "healthz_p99_ms": round(1e3 * _percentile(self.health_s, 0.99), 1),
            "healthz_max_ms": round(1e3 * max(self.health_s, default=0.0), 1),
            "pause_max_ms": round(1e3 * max(self.pause_s, default=0.0), 1),
            "pauses": len(self.pause_s),
        }

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _health(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._timed(self.health_s, "GET", "/healthz", None)

    def _pauses(self) -> None:
        version = 1 << 40
        while not self._over.wait(_PAUSE_EVERY_S):
            version += 1
            event = {"kind": "pause", "ad_id": self._ad_id, "version": version}
            self._timed(self.pause_s, "POST", "/events", json.dumps(event).encode())

    def _timed(self, seconds: list[float], method: str, path: str, body: bytes | None) -> None:
        began = time.perf_counter()
        try:
            status, _ = ask(self._url, method, path, body)
        except (OSError, http.client.HTTPException):
            status = 0
        seconds.append(time.perf_counter() - began)
        self.failed += status != 200


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
