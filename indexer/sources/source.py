"""What all stream sources share: a thread of their own, reconnecting, and what is told about them."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from indexer.sources.submission import Item, Submission
from indexer.store.gaps import Gap

log = logging.getLogger("gr4ad.indexer")

_MAX_PAUSE_S = 5.0


class Taker(Protocol):
    """What a source needs of `indexer.sidecar.worker.Worker`."""

    def submit(
        self, items: Iterable[Item], *, kept: bool = False, stop: threading.Event | None = None
    ) -> Submission | None:
        """Hand events over."""


OffsetOf = Callable[[str], bytes | None]
"""Name of a source -> offset of its last event that took effect."""

OnGap = Callable[[str, Gap], None]
"""Name of a source, and what it misses: returns once the index has it on record. The same may come again."""


@dataclass
class SourceState:
    """What readyz and metrics tell of a source.

    Attributes:
        connected: its broker answers.
        error: why not.
        received: events handed to the worker.
        redelivered: events that had been applied before and were only acknowledged.
        tombstones: messages without a value, which were skipped (Kafka).
        failures: times the broker was lost.
        lag_events: events not applied yet; None when the broker does not know.
        lag_seconds: age of the oldest event that is not applied yet.
    """

    connected: bool = False
    error: str = "not connected yet"
    received: int = 0
    redelivered: int = 0
    tombstones: int = 0
    failures: int = 0
    lag_events: int | None = None
    lag_seconds: float | None = None


class Source(ABC):
    """Reads a stream in its own thread. The store knows what was applied; the broker is only told.

    Subclasses connect in `_open`, hand events over in `_poll`, which takes at most about half a second, and
    tell the broker what was committed in `_acknowledge`. All three run in the source's thread, the last one
    also in the thread that calls `close`, after the source's own has ended.
    """

    name: str
    failures: tuple[type[Exception], ...]

    def __init__(self, worker: Taker, *, offset_of: OffsetOf, on_gap: OnGap) -> None:
        """Prepare; `start` begins."""
        self.state = SourceState()
        self._worker, self._offset_of, self._on_gap = worker, offset_of, on_gap
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more events; returns at once."""
        self._stop.set()

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Acknowledge what was committed until now and disconnect. Call after the worker has stopped."""
        self._stop.set()
        if self._thread.ident:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error("%s: still busy after %.0f s, left behind", self.name, timeout_s)
            return
        try:
            if self.state.connected:
                self._acknowledge()
        except self.failures as error:  # they come again and are known by their offsets
            log.warning("%s: last events not acknowledged: %s", self.name, error)
        finally:
            self._close()

    @abstractmethod
    def _open(self) -> None:
        """Connect and go to the first event that was not handed over yet."""

    @abstractmethod
    def _poll(self) -> None:
        """Hand over the next events and acknowledge those committed meanwhile."""

    @abstractmethod
    def _acknowledge(self) -> None:
        """Tell the broker what was committed."""

    @abstractmethod
    def _close(self) -> None:
        """Disconnect; may be called when not connected."""

    def _run(self) -> None:
        pause = 0.1
        while not self._stop.is_set():
            try:
                self._open()
                if self.state.failures and not self.state.connected:
                    log.warning("%s: connected again", self.name)
                self.state.connected, self.state.error = True, ""
                while not self._stop.is_set():
                    self._poll()
                    pause = 0.1
            except Exception as error:
                if self._stop.is_set():
                    return
                self._lost(error)
                self._stop.wait(pause)
                pause = min(2 * pause, _MAX_PAUSE_S)

    def _lost(self, error: Exception) -> None:
        message = f"{type(error).__name__}: {error}"
        first = self.state.connected or not self.state.failures
        self.state.connected, self.state.error = False, message
        self.state.failures += 1
        if not isinstance(error, self.failures):
            log.error("%s: unexpected failure", self.name, exc_info=error)
        elif first:  # once, not at every try
            log.warning("%s: not connected, tried again until it is: %s", self.name, message)
