"""Readers of the index: live snapshots that are swapped between batches, never inside one.

A snapshot is a base, mapped into memory and shared by all processes, and the changes since, which every
reader holds for itself (`serving.index.overlay`).
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np

from serving.index.audience import AudienceError
from serving.index.audience_table import AudienceTable
from serving.index.base import read_base
from serving.index.layout import (
    AUDIENCES,
    HEARTBEAT,
    INDEX_KEY,
    META,
    Generation,
    IndexStoreError,
    StoreMeta,
    base_folder,
    change_dtype,
    generation_tables,
    number_key,
    open_environment,
)
from serving.index.overlay import Changes, with_changes
from serving.index.snapshot import IndexSnapshot, Snapshot

logger = logging.getLogger(__name__)

RETRY_S = 1.0  # between two tries to catch up after one that failed
MAX_WAIT_S = 0.1  # longest that a change is left for a later refresh
_SHARE = 0.1  # of the time, at most, goes into catching up, until MAX_WAIT_S is reached


@dataclass(frozen=True)
class _Followed:
    """A generation as far as it has been read."""

    base_sequence: int | None
    base: IndexSnapshot
    changes: Changes
    snapshot: Snapshot


class _BaseError(IndexStoreError):
    """A base cannot be read; `base` says which."""

    def __init__(self, error: IndexStoreError, *, base: Path) -> None:
        super().__init__(str(error))
        self.base = base


class IndexReader:
    """Follows an index on disk. One a process, since LMDB does not open a store twice in one.

    A snapshot stays valid as long as somebody holds it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tokenizer_id: str | None = None,
        max_wait_s: float = MAX_WAIT_S,
        search: bool = True,
    ) -> None:
        """Open the index and one generation.

        Args:
            path: folder of the index.
            tokenizer_id: generation that `snapshot` gives; None for the first ready one by name.
            max_wait_s: after a refresh that took a while, the next changes are left for later ones until 9
                times that while has passed, at most this long: the search knows an ad that is new or back in
                every batch that starts so much later. 0 to take every change at once.
            search: False where snapshots are only asked for the SIDs of ads, which makes catching up cheap.

        Raises:
            IndexStoreError: missing, corrupted, of another format version, or without that generation.
        """
        self.path, self._max_wait_s, self._search = Path(path), max_wait_s, search
        self._environment = open_environment(self.path, readonly=True)
        self._followed: dict[str, _Followed] = {}
        self._primary = tokenizer_id
        self._raw, self._meta, self._audiences = b"", StoreMeta(), AudienceTable()
        self._not_before, self._failures = 0.0, set[str]()
        try:
            self._catch_up(also=tokenizer_id, primary=True)
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """Sequence number as of the last refresh."""
        return self._meta.sequence

    @property
    def generations(self) -> tuple[str, ...]:
        """Tokenizer ids of the generations that are ready, as of the last refresh."""
        return tuple(name for name, generation in self._meta.generations.items() if generation.ready)

    @property
    def snapshot(self) -> Snapshot:
        """Of the generation that was asked for when the reader was opened; once it is gone, of the next one.

        Raises:
            IndexStoreError: no generation is ready.
        """
        return self.snapshot_of(self._primary_now())

    def snapshot_of(self, tokenizer_id: str) -> Snapshot:
        """Of one generation. One that is not followed yet is read now, and followed from then on.

        That is a look at the disk, whatever `refresh` has put off: another process may know of it already.

        Raises:
            IndexStoreError: it is not ready, or cannot be read.
        """
        if tokenizer_id not in self._followed:
            self._catch_up(also=tokenizer_id)
        return self._followed[tokenizer_id].snapshot

    def forget(self, tokenizer_id: str) -> None:
        """No longer follow a generation, which frees its memory once nobody holds a snapshot of it."""
        self._followed.pop(tokenizer_id, None)

    def refresh(self) -> bool:
        """Catch up with the writer; True when there was something new. Call between batches.

        All generations that are followed get to the same sequence number. A refresh that fails is logged
        once, leaves everything as it was, and is tried again a second later.
        """
        began = time.monotonic()
        if began < self._not_before:
            return False
        try:
            changed = self._catch_up()
        except IndexStoreError as error:
            if str(error) not in self._failures:
                logger.error("index stays at sequence number %d: %s", self._meta.sequence, error)
                self._failures.add(str(error))
            self._not_before = time.monotonic() + RETRY_S
            return False
        self._failures.clear()
        if changed:
            ended = time.monotonic()
            self._not_before = ended + min(self._max_wait_s, (ended - began) * (1 / _SHARE - 1))
        return changed

    def lag_s(self) -> float:
        """Seconds since a sidecar was last seen alive; inf where none ever was."""
        try:
            return max(time.time() - (self.path / HEARTBEAT).stat().st_mtime, 0.0)
        except OSError:
            return math.inf

    def close(self) -> None:
        """Release the file. Snapshots stay valid."""
        self._environment.close()

    def _primary_now(self) -> str:
        ready = self.generations
        if self._primary not in ready:
            if not ready:
                raise IndexStoreError(f"index {self.path}: expected a ready generation, found none")
            self._primary = ready[0]
        return self._primary

    def _require(self, tokenizer_id: str) -> None:
        if tokenizer_id not in self.generations:
            raise IndexStoreError(
                f"index {self.path}: expected a ready generation, got {tokenizer_id}; ready: "
                f"{', '.join(self.generations) or 'none'}"
            )

    def _catch_up(self, *, also: str | None = None, primary: bool = False) -> bool:
        """Read on in one transaction; `also` is followed from now on, or the generation of `snapshot`."""
        failed: Path | None = None
        while True:
            try:
                with self._environment.begin() as transaction:
                    return self._read(transaction, also=also, primary=primary)
            except _BaseError as error:
                # The next compaction may have removed it since `meta` was read: then `meta` names another.
                if error.base == failed:
                    raise
                failed = error.base
            except lmdb.Error as error:
                raise IndexStoreError(f"index {self.path}: cannot be read: {error}") from error

    def _read(self, transaction: lmdb.Transaction, *, also: str | None, primary: bool) -> bool:
        try:
            table = self._environment.open_db(META, txn=transaction, create=False)
            raw = bytes(transaction.get(INDEX_KEY, db=table) or b"")
        except lmdb.NotFoundError:
            raw = b""
        if raw and raw == self._raw and also is None:
            return False
        before, primary_before = (self._meta, self._audiences), self._primary
        self._meta = StoreMeta.decode(raw, where=self.path)
        try:
            if also is not None:
                self._require(also)
            wanted = {name for name in self._followed if name in self.generations}
            wanted |= {also} if also is not None else set()
            wanted |= {self._primary_now()} if primary else set()
            if self._meta.audiences != before[0].audiences:
                self._audiences = self._read_audiences(transaction)
            found = {name: self._follow(transaction, name) for name in sorted(wanted)}
        except BaseException:
            (self._meta, self._audiences), self._primary = before, primary_before
            raise
        self._raw, self._followed = raw, found
        return self._meta != before[0]

    def _read_audiences(self, transaction: lmdb.Transaction) -> AudienceTable:
        table = self._environment.open_db(AUDIENCES, txn=transaction, create=False)
        with transaction.cursor(db=table) as cursor:
            texts = {int.from_bytes(number, "big"): bytes(text).decode() for number, text in cursor}
        try:
            return self._audiences.now(texts)
        except AudienceError as error:
            raise IndexStoreError(f"index {self.path}: corrupted audiences: {error}") from error

    def _follow(self, transaction: lmdb.Transaction, name: str) -> _Followed:
        generation, sequence = self._meta.generations[name], self._meta.sequence
        audiences = self._audiences if self._audiences.texts else None
        old = self._followed.get(name)
        fits = old is not None and old.base_sequence == generation.base
        if old is None or not fits or not generation.log_start <= old.snapshot.version <= sequence:
            base = self._base(name, generation)
            if base.version < generation.log_start:
                raise IndexStoreError(
                    f"index {self.path}: generation {name}: expected a base as of {generation.log_start} or "
                    f"later, where its changes begin, got {generation.base}"
                )
            none = Changes.none()
            bare = with_changes(base, none, version=base.version, audiences=audiences)
            old = _Followed(generation.base, base, none, bare)
        if old.snapshot.version == sequence:
            return old
        rows = self._rows(transaction, name, generation, after=old.snapshot.version)
        try:
            changes = old.changes.with_rows(rows, generation.level_sizes) if len(rows) else old.changes
        except ValueError as error:
            raise IndexStoreError(
                f"index {self.path}: generation {name}: corrupted changes: {error}"
            ) from error
        snapshot = with_changes(old.base, changes, version=sequence, audiences=audiences)
        if self._search:
            _ = snapshot.trie  # put together here, where its time counts as the refresh's
        return _Followed(old.base_sequence, old.base, changes, snapshot)

    def _rows(
        self, transaction: lmdb.Transaction, name: str, generation: Generation, *, after: int
    ) -> np.ndarray:
        dtype = change_dtype(len(generation.level_sizes), format=self._meta.format)
        try:
            table = self._environment.open_db(generation_tables(name).changes, txn=transaction, create=False)
        except lmdb.NotFoundError:  # nothing was written yet
            return np.zeros(0, dtype)
        with transaction.cursor(db=table) as cursor:
            found = cursor.set_range(number_key(after + 1))
            raw = b"".join(cursor.iternext(keys=False, values=True)) if found else b""
        if len(raw) % dtype.itemsize:
            raise IndexStoreError(
                f"index {self.path}: generation {name}: corrupted changes after {after}: expected rows of "
                f"{dtype.itemsize} bytes, got {len(raw)} bytes"
            )
        return np.frombuffer(raw, dtype)

    def _base(self, name: str, generation: Generation) -> IndexSnapshot:
        """A generation that only ever got events has no base yet: its log goes back to its beginning."""
        sizes = generation.level_sizes
        if generation.base is None:
            return IndexSnapshot.build(
                np.zeros(0, np.int64),
                np.zeros((0, len(sizes)), np.int32),
                active=np.zeros(0, bool),
                level_sizes=sizes,
                version=generation.log_start,
                tokenizer_id=name,
            )
        folder = base_folder(self.path, name, sequence=generation.base)
        try:
            base = read_base(folder)
        except IndexStoreError as error:
            raise _BaseError(error, base=folder) from error
        expected = (generation.base, name, sizes)
        got = (base.version, base.tokenizer_id, base.level_sizes)
        if got != expected:
            raise IndexStoreError(
                f"{folder}: expected sequence number, tokenizer and level sizes {expected}, got {got}"
            )
        return base
