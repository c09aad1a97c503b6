"""Faults of the sidecar. Each function brings one about on a running sidecar and returns its figures.

`failed` counts requests without the answer they should have, `lost` what was acknowledged and is gone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.faults.probe import Probe, ask

LINES = "application/x-ndjson"
BIG = b'{"' + b"\xff" * (64 << 10)  # no event, and in JSON five times as long
NESTED = (
    b'{"kind":"create","ad_id":1,"version":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"kind":"pause","ad_id":1,"version":' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}",
    b'{"kind":"pause","ad_id":1,"version":[' + b"[]," * 1000 + b"[]]}",
    b"[" * 3000,
)


def big_dead_letters(url: str, *, ad_id: int, letters: int = 1000, readers: int = 4) -> dict[str, Any]:
    """Dead letters of 64 KiB, read by several clients at once from the first to the last."""
    for _ in range(0, letters, 50):
        ask(url, "POST", "/events/bulk", b"\n".join([BIG] * 50), kind=LINES)
    largest, read = 0, [0] * readers

    def reading(reader: int) -> None:
        nonlocal largest
        after: int | None = -1
        while after is not None:
            _, raw = ask(url, "GET", f"/dead-letters?limit=1000&after={after}")
            largest = max(largest, len(raw))
            page = json.loads(raw)
            read[reader] += len(page["dead_letters"])
            after = page["next"]

    took, figures = _beside(url, [lambda r=r: reading(r) for r in range(readers)], ad_id=ad_id)
    lost = sum(max(letters - count, 0) for count in read)
    return figures | {"lost": lost, "seconds": took, "largest_answer_bytes": largest}


def nested_bulk(
    url: str, *, ad_id: int, rows: int = 10_000, kinds: tuple[bytes, ...] = NESTED
) -> dict[str, Any]:
    """Bulks of rows that nest, one after the other, of each kind."""
    statuses = []

    def sending() -> None:
        for row in kinds:
            statuses.append(ask(url, "POST", "/events/bulk", b"\n".join([row] * rows), kind=LINES)[0])
            statuses.append(ask(url, "POST", "/events/bulk", b"[" + b",".join([row] * rows) + b"]")[0])

    took, figures = _beside(url, [sending], ad_id=ad_id)
    wrong = sum(status not in (200, 422) for status in statuses)
    return figures | {"wrong": wrong, "seconds": took, "statuses": statuses}


def silent_connections(url: str, *, ad_id: int, count: int = 1200, hold_s: float = 3.0) -> dict[str, Any]:
    """Connections that are opened and never say a word."""
    address = urlsplit(url)
    held: list[socket.socket] = []

    def holding() -> None:
        with contextlib.suppress(OSError):
            for _ in range(count):
                held.append(socket.create_connection((address.hostname, address.port), timeout=10))
        time.sleep(hold_s)

    try:
        took, figures = _beside(url, [holding], ad_id=ad_id)
    finally:
        for connection in held:
            connection.close()
    return figures | {"lost": 0, "seconds": took, "connections": len(held)}


def few_files(url: str, *, ad_id: int, pid: int, log: Path, hold_s: float = 5.0) -> dict[str, Any]:
    """The process may open no further file while 100 connections come; then it may again."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    size, ticks = log.stat().st_size, _cpu_s(pid)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 5, before[1]))
    address = urlsplit(url)
    held = [socket.create_connection((address.hostname, address.port), timeout=10) for _ in range(100)]
    try:
        time.sleep(hold_s)
        spent = _cpu_s(pid) - ticks
    finally:
        for connection in held:
            connection.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    began, failed = time.monotonic(), 0
    while time.monotonic() - began < 60:
        try:
            if ask(url, "GET", "/healthz", timeout_s=1.0)[0] == 200:
                break
        except (OSError, http.client.HTTPException):
            failed += 1
    return {
        "failed": failed,
        "recovery_s": round(time.monotonic() - began, 2),
        "lost": 0,
        "log_bytes": log.stat().st_size - size,
        "cpu_share": round(spent / hold_s, 2),
    }


def _beside(url: str, work: list[Any], *, ad_id: int) -> tuple[float, dict[str, Any]]:
    began = time.monotonic()
    with Probe(url, ad_id=ad_id) as probe:
        threads = [threading.Thread(target=one) for one in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return round(time.monotonic() - began, 2), probe.figures()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
