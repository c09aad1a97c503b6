"""Off the request path: a bounded queue and one thread that writes. Who answers does not wait."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Literal, Protocol

from serving.served_log.record import ServedRecord

logger = logging.getLogger(__name__)

Result = Literal["written", "dropped", "failed"]
_EVERY_S = 0.05  # between two looks at the queue: what a record waits
_BATCH = 256
_MAX_PAUSE_S = 5.0


class Sink(Protocol):
    """Where lines go."""

    def write(self, lines: Sequence[bytes]) -> None:
        """Append; an `OSError` where that cannot be done now."""

    def close(self) -> None:
        """Let go of what is open."""


class ServedLogWriter:
    """Takes records as functions that make them, so that even that is done in its thread.

    Attributes:
        counts: records since the start: written; dropped, since the queue was full or the end came; failed,
            that could not be made.
    """

    def __init__(self, sink: Sink, *, queue: int) -> None:
        """Start the thread.

        Args:
            sink: where lines go.
            queue: records that may wait.
        """
        self.counts = Counter[Result]()
        self._sink, self._limit = sink, queue
        self._waiting = deque[Callable[[], ServedRecord]]()
        self._stopping = threading.Event()
        self._lines: list[bytes] = []  # taken from the queue, not written yet
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="served-log", daemon=True)
        self._thread.start()

    def add(self, make: Callable[[], ServedRecord]) -> None:
        """Have a record written; it is dropped where the queue is full. Returns at once, raises nothing."""
        if len(self._waiting) >= self._limit or self._stopping.is_set():
            self.counts["dropped"] += 1
        else:
            self._waiting.append(make)

    def close(self, *, timeout_s: float = 2.0) -> None:
        """Write what waits, for a moment; the rest is dropped and counted."""
        self._stopping.set()
        self._thread.join(timeout_s)
        if lost := len(self._waiting) + len(self._lines):
            self.counts["dropped"] += lost
            logger.warning("served log: %d records were not written in time, dropped", lost)

    def _run(self) -> None:
        pause = _EVERY_S
        while not self._stopping.wait(pause) or self._has_more():
            try:
                while self._has_more():
                    self._write()
                pause = _EVERY_S
            except Exception as error:  # noqa: BLE001  (whatever a sink does, the thread goes on)
                if not self._failures:
                    logger.error("served log: not written, tried again until it is: %s", error)
                self._failures += 1
                pause = min(0.25 * 2.0 ** min(self._failures, 8), _MAX_PAUSE_S)
                if self._stopping.is_set():
                    break
        self._sink.close()

    def _has_more(self) -> bool:
        return bool(self._lines or self._waiting)

    def _write(self) -> None:
        while self._waiting and len(self._lines) < _BATCH:
            try:
                self._lines.append(self._waiting.popleft()().encode())
                time.sleep(0)  # lets go of the interpreter: who answers must not wait for a row of records
            except Exception:
                self.counts["failed"] += 1
                if self.counts["failed"] == 1:
                    logger.exception("served log: a record could not be made; further ones are counted only")
        if self._lines:
            self._sink.write(self._lines)
            self.counts["written"] += len(self._lines)
            self._lines = []
        if self._failures:
            logger.warning("served log: written again after %d failures", self._failures)
            self._failures = 0


def is_sampled(request_id: str | None, *, share: float) -> bool:
    """Whether a request leaves a record: by a hash of its id, by chance where it has none.

    The hash is keyed: whoever else draws requests by their ids draws others.
    """
    if share >= 1:
        return True
    given = request_id if request_id is not None else str(time.time_ns())
    digest = blake2b(given.encode(errors="replace"), digest_size=8, key=b"served log").digest()
    return int.from_bytes(digest, "big") < share * (1 << 64)
