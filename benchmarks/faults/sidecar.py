"""Faults of the sidecar. Each function brings one about on a running sidecar and returns its figures.

`failed` counts requests without the answer they should have, `lost` what was acknowledged and is gone.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from benchmarks.faults.probe import Probe, ask

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
        ask(url, "POST", "/events/bulk", b"\n".join([BIG] * 50), **{"Content-Type": "application/x-ndjson"})
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
            kind = {"Content-Type": "application/x-ndjson"}
            statuses.append(ask(url, "POST", "/events/bulk", b"\n".join([row] * rows), **kind)[0])
            statuses.append(ask(url, "POST", "/events/bulk", b"[" + b",".join([row] * rows) + b"]")[0])

    took, figures = _beside(url, [sending], ad_id=ad_id)
    wrong = sum(status not in (200, 422) for status in statuses)
    return figures | {"wrong": wrong, "seconds": took, "statuses": statuses}


def _beside(url: str, work: list[Any], *, ad_id: int) -> tuple[float, dict[str, Any]]:
    began = time.monotonic()
    with Probe(url, ad_id=ad_id) as probe:
        threads = [threading.Thread(target=one) for one in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return round(time.monotonic() - began, 2), probe.figures()
