"""A store that remembers what it was told: shows an event applied twice, which the real one hides."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from indexer.events.error import EventError
from indexer.store.gaps import Gap
from indexer.store.incoming import Incoming, Outcome


def event(ad_id: int, version: int = 1, kind: str = "pause", **content: str) -> bytes:
    """JSON of an event."""
    return json.dumps({"kind": kind, "ad_id": ad_id, "version": version, **content}).encode()


class RecordingStore:
    """Applies every event, rejects what is none; `fail` is raised by `apply` while it is set."""

    def __init__(self) -> None:
        self.applied: list[tuple[int, int]] = []  # ad_id, version
        self.rejected: list[tuple[str, bytes]] = []  # reason, raw
        self.batches: list[int] = []
        self.offsets: dict[str, bytes] = {}
        self.gaps: list[tuple[str, Gap]] = []
        self.fail: Exception | None = None
        self.poison: int | None = None  # an ad that brings out a fault
        self.fault: Exception = RuntimeError("a fault")
        self.gate = threading.Event()  # closed: apply waits
        self.gate.set()

    def apply(self, items: Sequence[Incoming], *, offsets: Mapping[str, bytes]) -> list[Outcome]:
        self.gate.wait(30)
        if self.fail is not None:
            raise self.fail
        outcomes = []
        applied: list[Any] = []
        rejected: list[Any] = []
        for item in items:
            if isinstance(item.event, EventError):
                rejected.append((item.event.reason, item.raw))
                outcomes.append(Outcome("rejected", item.event.reason, str(item.event), 0))
            elif item.event.ad_id == self.poison:
                raise self.fault
            else:
                applied.append((item.event.ad_id, item.event.version))
                outcomes.append(Outcome("applied", "", "", len(self.batches) + 1))
        self.applied += applied
        self.rejected += rejected
        self.offsets.update(offsets)
        self.batches.append(len(items))
        return outcomes

    def offset(self, source: str) -> bytes | None:
        return self.offsets.get(source)

    def record_gap(self, source: str, gap: Gap) -> None:
        self.gaps.append((source, gap))
