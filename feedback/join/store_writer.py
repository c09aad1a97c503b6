"""The writer of the store: opens it, begins transactions, says what is in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from feedback.join.rules import JoinConfig
from feedback.join.work import Work
from feedback.store.layout import EVENT, STORE, TABLES, FeedbackStoreError, number_key, open_environment
from feedback.store.meta import STATE, Meta
from feedback.store.requests import RequestState, digest_of
from indexer.store.lock import WriterLock
from serving.index.layout import IndexStoreError


class StoreWriter:
    """One open store; a second writer, in this process or another, is refused. For one thread."""

    def __init__(
        self,
        folder: str | Path,
        config: JoinConfig | None = None,
        *,
        now: Callable[[], float] = time.time,
        map_size: int = 1 << 36,
    ) -> None:
        """Open or create.

        Args:
            folder: of the store.
            config: times and bounds.
            now: unix seconds.
            map_size: most bytes that the store may take.

        Raises:
            FeedbackStoreError: another writer holds it, or it is damaged or of another format.
        """
        self.folder, self.config, self.time = Path(folder), config or JoinConfig(), now
        try:
            self._lock = WriterLock(self.folder / STORE)
        except IndexStoreError as error:
            raise FeedbackStoreError(f"feedback {error}") from error
        try:
            self.environment = open_environment(self.folder, readonly=False, map_size=map_size)
            self._tables = {name: self.environment.open_db(name.encode()) for name in TABLES}
            self.meta()
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Let go of the store."""
        self.environment.close()
        self._lock.close()

    def offset(self, source: str) -> bytes | None:
        """Where a source stood after its last event that took effect."""
        with self.environment.begin() as txn:
            found = txn.get(source.encode(), db=self._tables["offsets"])
            return None if found is None else bytes(found)

    def offsets(self) -> dict[str, bytes]:
        """Of all sources."""
        with self.environment.begin() as txn, txn.cursor(db=self._tables["offsets"]) as cursor:
            return {bytes(k).decode(): bytes(v) for k, v in cursor.iternext()}

    def meta(self) -> Meta:
        """What the store says of itself.

        Raises:
            FeedbackStoreError: it is damaged, or of another format.
        """
        with self.environment.begin() as txn:
            return Meta.decode(txn.get(STATE, db=self._tables["meta"]))

    def record_gap(self, source: str, text: str, *, lost: int | None) -> None:
        """A source lost something before it was read; the same words again are the same gap."""
        with self.environment.begin(write=True) as txn:
            meta = Meta.decode(txn.get(STATE, db=self._tables["meta"]))
            if meta.gaps.get(source) == text:
                return
            values: dict[str, Any] = vars(meta) | {"gaps": {**meta.gaps, source: text}}
            name = f"lost.{source}"
            values["counters"] = {**meta.counters, name: meta.counters.get(name, 0) + (lost or 1)}
            txn.put(STATE, Meta(**values).encode(), db=self._tables["meta"])

    def history(self, user: int) -> np.ndarray:
        """Events of a user, `EVENT` [N], oldest first."""
        with self.environment.begin() as txn:
            return np.frombuffer(txn.get(number_key(user), db=self._tables["histories"]) or b"", EVENT).copy()

    def request(self, request_id: str) -> RequestState | None:
        """What is known of a request; None for nothing."""
        with self.environment.begin() as txn:
            raw = txn.get(digest_of(request_id), db=self._tables["requests"])
            return None if raw is None else RequestState.decode(bytes(raw))

    def rejected(self, *, limit: int) -> list[dict[str, Any]]:
        """What was not taken, newest first."""
        with self.environment.begin() as txn, txn.cursor(db=self._tables["rejected"]) as cursor:
            rows = cursor.iterprev(keys=False, values=True) if cursor.last() else ()
            return [json.loads(bytes(value)) for value, _ in zip(rows, range(limit), strict=False)]

    @contextmanager
    def work(self, offsets: Mapping[str, bytes]) -> Iterator[Work]:
        """A write transaction: committed at the end of the block, undone on any exception in it."""
        with self.environment.begin(write=True) as txn:
            work = Work(txn, self._tables, config=self.config)
            yield work
            work.finish(offsets)

    def now_of(self, newest: int) -> float:
        """Seconds by the clock that windows go by; `newest` is the newest request's own time."""
        return self.time() if self.config.clock == "wall" else float(newest)
