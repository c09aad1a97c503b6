"""A chore: compacts and forgets from time to time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from indexer.sidecar.beside import Beside
from indexer.store.compaction import adopt_base, compact, move_on
from indexer.store.file import StoreFile
from indexer.store.forgetting import forget_deleted
from serving.index.layout import IndexStoreError

_LOG = logging.getLogger(__name__)
_RETRY_S = 60.0
_FORGET_ADS = 10_000  # that are looked at in one step


@dataclass(frozen=True)
class _Running:
    name: str
    compaction: Beside
    began: float


class Compactor:
    """`poll` it from the writer's loop. Nothing in it waits.

    Attributes:
        compactions: base arrays written and adopted.
        failures: compactions that failed.
        last_error: why the last of them did.
    """

    def __init__(
        self,
        file: StoreFile,
        *,
        max_changes: int = 5_000,
        max_age_s: float = 3600.0,
        tombstone_ttl_s: float = 30 * 86_400.0,
        forget_every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Of an open store.

        Args:
            file: the store.
            max_changes: rows of the change log of a generation that start a compaction.
            max_age_s: age of the oldest row that starts one.
            tombstone_ttl_s: time after which a deleted ad is forgotten.
            forget_every_s: time between two steps of forgetting, each of 10,000 ads that are looked at.
            clock: seconds, monotonic.
            observe: told the seconds of each compaction that was adopted.
        """
        self._file, self._max_changes, self._max_age_s = file, max_changes, max_age_s
        self._ttl_s, self._forget_every_s, self._clock = tombstone_ttl_s, forget_every_s, clock
        self._observe = observe
        self._since: dict[str, float] = {}  # generation -> time at which its log was seen not to be empty
        self._retry_at: dict[str, float] = {}
        self._running: _Running | None = None
        self._forget_after, self._forget_at = -1, clock()
        self.compactions = 0
        self.failures = 0
        self.last_error = ""

    @property
    def running(self) -> str | None:
        """Generation that is being compacted."""
        return self._running.name if self._running else None

    def poll(self) -> None:
        """Adopt what is finished, start what is due, forget the next few deleted ads.

        Raises:
            IndexStoreError: the store cannot be written. A compaction that fails is logged and tried again.
        """
        if self._running and self._running.compaction.wait(0.0):
            self._finish(self._running)
        if not self._running and (name := self._due()):
            self.start(name)
        now = self._clock()
        if now >= self._forget_at:
            self._forget_at = now + self._forget_every_s
            before = self._file.now() - self._ttl_s
            following = forget_deleted(self._file, before=before, after=self._forget_after, limit=_FORGET_ADS)
            self._forget_after = -1 if following is None else following

    def start(self, tokenizer_id: str) -> bool:
        """Compact a generation now, in a process of low priority; False where one is compacted already."""
        if self._running:
            return False
        compaction = Beside(compact, str(self._file.path), tokenizer_id)
        self._running = _Running(tokenizer_id, compaction, began=self._clock())
        return True

    def replace(self, tokenizer_id: str) -> bool:
        """As `start`, where a base is damaged: the new one has a higher number, so readers take it."""
        if self._running:
            return False
        move_on(self._file)
        return self.start(tokenizer_id)

    def close(self) -> None:
        """Stop what is running; the next one begins anew."""
        if self._running:
            self._running.compaction.stop()
            self._running = None

    def _due(self) -> str | None:
        now = self._clock()
        for name, generation in self._file.meta.generations.items():
            rows = self._file.log_rows[name] if generation.ready else 0
            if not rows:
                self._since.pop(name, None)
                continue
            since = self._since.setdefault(name, now)
            if now >= self._retry_at.get(name, now) and (
                rows > self._max_changes or now - since >= self._max_age_s
            ):
                return name
        return None

    def _finish(self, running: _Running) -> None:
        self._running = None
        try:
            adopt_base(self._file, running.name, sequence=running.compaction.result())
        except IndexStoreError as error:
            self.failures, self.last_error = self.failures + 1, str(error)
            self._retry_at[running.name] = self._clock() + _RETRY_S
            _LOG.error("compaction of %s failed, again in %.0f s: %s", running.name, _RETRY_S, error)
            return
        self.compactions += 1
        self._observe(self._clock() - running.began)
        self._since.pop(running.name, None)
        self._retry_at.pop(running.name, None)
