"""The one writer of the index: one transaction holds all effects of an event."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import lmdb
import numpy as np

from indexer.encode.encoder import Encoder
from indexer.events.event import EventLimits
from indexer.store.bases import remove_bases
from indexer.store.batch import Batch, Outcome
from indexer.store.bulk_load import Content, bulk_load
from indexer.store.dead_letters import DeadLetter, DeadLetters, Incoming, list_dead_letters
from indexer.store.forgetting import forget_deleted
from indexer.store.lock import WriterLock
from indexer.store.tables import Tables, read_counters
from indexer.store.views import AdView, Neighbour, find_neighbours, view_ad
from serving.index.base import read_base
from serving.index.layout import (
    COUNTERS_KEY,
    STORE,
    Generation,
    IndexStoreError,
    StoreMeta,
    base_folder,
    change_dtype,
    number_key,
    open_environment,
)

__all__ = ["AdView", "DeadLetter", "Incoming", "IndexStore", "IndexStoreError", "Neighbour", "Outcome"]


class IndexStore:
    """Opens an index for writing; a second writer, in this process or another, is refused.

    Not for several threads at once. LMDB opens an environment once a process, so other readers of the same
    index are in other processes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        encoders: Mapping[str, Encoder] | None = None,
        accounts: Collection[str] | None = None,
        map_size: int = 1 << 36,
        max_dead_letters: int = 100_000,
        now: Callable[[], float] = time.time,
        sync: bool = True,
    ) -> None:
        """Open or create.

        Args:
            path: folder of the index.
            encoders: by tokenizer id; content events need that of a ready generation.
            accounts: account ids that events may name; None for any.
            map_size: most bytes that the store may take.
            max_dead_letters: the oldest make room for new ones.
            now: unix seconds.
            sync: False for tests only: a crash of the machine may then lose or damage the store.

        Raises:
            IndexStoreError: another writer holds it, or it is damaged or of another format.
        """
        self.path, self.encoders, self.accounts = Path(path), dict(encoders or {}), accounts
        self._max_dead_letters, self.now = max_dead_letters, now
        self._lock = WriterLock(self.path)
        try:
            (self.path / STORE).mkdir(exist_ok=True)
            self.environment = open_environment(self.path, readonly=False, map_size=map_size, sync=sync)
        except (OSError, IndexStoreError):
            self._lock.close()
            raise
        try:
            with self.write() as transaction:
                self.tables = Tables.open(self.environment, transaction, create=True)
                self._meta = self.tables.read_meta(self.environment, transaction)
                self._counters = read_counters(self.tables, transaction, where=str(self.path))
                self.log_rows = {name: self._count_log(transaction, name) for name in self._meta.generations}
            for name, encoder in self.encoders.items():
                self.check_encoder(name, encoder)
        except BaseException:
            self.close()
            raise

    @property
    def meta(self) -> StoreMeta:
        """Sequence number and generations, as committed last."""
        return self._meta

    def counters(self) -> dict[str, int]:
        """Numbers of events since the index was made.

        Names: `applied.<kind>`, `stale.<kind>`, `rejected.<reason>`, `recovered.<kind>` (a dead letter that
        took effect later), `dead_letters`, `dead_letters_forgotten`, `unencoded.<tokenizer id>` (content
        changes that a generation without an encoder missed).
        """
        return dict(self._counters)

    def apply(
        self, items: Sequence[Incoming], *, offsets: Mapping[str, bytes] | None = None
    ) -> list[Outcome]:
        """Apply events in order, in one transaction with the offsets of their sources.

        Raises:
            IndexStoreError: the disk or the map is full, the store is damaged, or an encoder failed; nothing
                of the call is in the index then, so the same events may be given again.
        """
        with self._batch(offsets or {}) as batch:
            for item in items:
                batch.take(item)
        return batch.outcomes

    def replay(
        self, numbers: Sequence[int] | None = None, *, limits: EventLimits | None = None
    ) -> list[Outcome]:
        """Try dead letters (all where None) once more, oldest first; those that take effect leave the table.

        Raises:
            ValueError: no such dead letter.
            IndexStoreError: as `apply`.
        """
        letters = self.dead_letters() if numbers is None else [self._letter(n) for n in sorted(set(numbers))]
        with self._batch({}) as batch:
            for letter in letters:
                batch.again(letter, letter.parse(limits or EventLimits()))
        return batch.outcomes

    def dead_letters(self, *, after: int = -1, limit: int | None = None) -> list[DeadLetter]:
        """Dead letters in order of their numbers, at most `limit` of those above `after`."""
        with self.read() as transaction:
            return list_dead_letters(transaction, self.tables, after=after, limit=limit)

    def drop_dead_letters(self, numbers: Sequence[int]) -> None:
        """Forget them; they are not tried again.

        Raises:
            ValueError: no such dead letter.
        """
        with self.write() as transaction:
            letters = DeadLetters(transaction, self.tables, counters={}, most=self._max_dead_letters)
            for number in set(numbers):
                letters.remove(letters.get(number))

    def offset(self, source: str) -> bytes | None:
        """Offset of the last event of a source that was committed."""
        with self.read() as transaction:
            value = transaction.get(_source_key(source), db=self.tables.offsets)
        return None if value is None else bytes(value)

    def ad(self, ad_id: int) -> AdView | None:
        """What the index has of an ad."""
        with self.read() as transaction:
            return view_ad(transaction, self.tables, ad_id)

    def neighbours(self, ad_id: int, tokenizer_id: str, *, limit: int = 20) -> list[Neighbour]:
        """Active ads with the same SID, then those that share ever shorter prefixes, at most `limit`."""
        with self.read() as transaction:
            return find_neighbours(transaction, self.tables, ad_id, tokenizer_id=tokenizer_id, limit=limit)

    def build(
        self,
        tokenizer_id: str,
        level_sizes: tuple[int, ...],
        *,
        ad_ids: np.ndarray,
        sids: np.ndarray,
        statuses: np.ndarray,
        content: Content | None = None,
        versions: np.ndarray | int = 0,
        replace_all: bool = False,
    ) -> int:
        """Bulk load of a generation in one transaction, with its base; it is ready then.

        In an empty index, where this is the only generation, or with `replace_all`, the ads become those that
        are given. Else the ads stay as they are and the generation is added (or replaced) for them.

        Args:
            tokenizer_id: of the generation.
            level_sizes: codebook sizes V_1 .. V_T.
            ad_ids: int64 [N], distinct.
            sids: int32 [N, T].
            statuses: str [N], one of `STATUSES` each.
            content: columns of N strings; without it, partial updates of the ads are refused.
            versions: of both registers of the ads, int64 [N] or one for all.
            replace_all: drop all ads and generations first.

        Returns:
            The sequence number of the load.

        Raises:
            ValueError: values that do not fit; the old content stays.
            IndexStoreError: as `apply`.
        """
        sequence = bulk_load(
            self,
            tokenizer_id,
            tuple(level_sizes),
            ad_ids=ad_ids,
            sids=sids,
            statuses=statuses,
            content=content,
            versions=versions,
            replace_all=replace_all,
        )
        waiting = [letter.number for letter in self.dead_letters() if letter.waiting]
        if waiting:
            self.replay(waiting)
        return sequence

    def adopt_base(self, tokenizer_id: str, sequence: int) -> None:
        """Readers start from these arrays from now on; change rows that they hold are deleted.

        Raises:
            IndexStoreError: the arrays are not there, are older than those in use, or the generation is gone.
        """
        generation = self._meta.generations.get(tokenizer_id)
        if generation is None or not generation.ready:
            raise IndexStoreError(f"index {self.path}: expected a ready generation, got {tokenizer_id}")
        if not generation.log_start <= sequence <= self._meta.sequence:
            raise IndexStoreError(
                f"index {self.path}: expected a base of {tokenizer_id} in {generation.log_start} .. "
                f"{self._meta.sequence}, got {sequence}"
            )
        snapshot = read_base(base_folder(self.path, tokenizer_id, sequence=sequence))
        if (snapshot.version, snapshot.level_sizes) != (sequence, generation.level_sizes):
            raise IndexStoreError(
                f"index {self.path}: base {sequence} of {tokenizer_id} holds version {snapshot.version}, "
                f"levels {snapshot.level_sizes}"
            )
        kept = [s for s in (generation.base, sequence) if s is not None]
        with self.write() as transaction:
            table = self.tables.generations[tokenizer_id].changes
            with transaction.cursor(db=table) as cursor:
                while cursor.first() and bytes(cursor.key()) <= number_key(sequence):
                    cursor.delete()
            meta = self.with_generation(
                self._meta, tokenizer_id, replace(generation, base=sequence, log_start=sequence)
            )
            self.tables.write_meta(transaction, meta)
            rows = self._count_log(transaction, tokenizer_id)
        self.committed(meta)
        self.log_rows[tokenizer_id] = rows
        self.remove_bases(tokenizer_id, keep=kept)

    def remove_bases(self, tokenizer_id: str, *, keep: Collection[int]) -> None:
        """Remove base folders of a generation but these; what a reader has mapped stays until it lets go."""
        remove_bases(self.path, tokenizer_id, keep=keep)

    def forget_deleted(self, *, before: float, after: int = -1, limit: int = 10_000) -> int | None:
        """Forget ads that were deleted before a time, so that later events meet an unknown ad.

        Args:
            before: unix seconds.
            after: look at ads above this id.
            limit: most ads that are looked at.

        Returns:
            Where to go on (`after` of the next call); None at the end.
        """
        return forget_deleted(self, before=before, after=after, limit=limit)

    @contextmanager
    def read(self) -> Iterator[lmdb.Transaction]:
        """A read transaction; LMDB's errors become `IndexStoreError`."""
        try:
            with self.environment.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise self._error(error) from error

    @contextmanager
    def write(self) -> Iterator[lmdb.Transaction]:
        """A write transaction: committed at the end, undone on any exception."""
        try:
            with self.environment.begin(write=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise self._error(error) from error
        self._fill_up()

    def committed(self, meta: StoreMeta, *, log_rows: Mapping[str, int] | None = None) -> None:
        """Take over what a transaction of `write` has committed; `log_rows` were added to the change log."""
        self._meta = meta
        added = log_rows or {}
        self.log_rows = {name: self.log_rows.get(name, 0) + added.get(name, 0) for name in meta.generations}

    def add_tables(self, tokenizer_id: str) -> None:
        """Make empty tables of a generation to come: handles of a transaction that fails are of no use."""
        with self.write() as transaction:
            self.tables.add(self.environment, transaction, tokenizer_id, create=True)

    def remove_tables(self, tokenizer_id: str) -> None:
        """Remove what is left of a generation that `meta` names no more."""
        handles = self.tables.generations.pop(tokenizer_id)
        with self.write() as transaction:
            for table in vars(handles).values():
                transaction.drop(table)
        self.remove_bases(tokenizer_id, keep=())

    @staticmethod
    def with_generation(meta: StoreMeta, tokenizer_id: str, generation: Generation) -> StoreMeta:
        """`meta` with one generation added or replaced."""
        return replace(meta, generations=meta.generations | {tokenizer_id: generation})

    def check_encoder(self, name: str, encoder: Encoder) -> None:
        """Raises IndexStoreError where an encoder is not that of its generation."""
        generation = self._meta.generations.get(name)
        sizes = tuple(encoder.level_sizes)
        if encoder.tokenizer_id != name or (generation and generation.level_sizes != sizes):
            raise IndexStoreError(
                f"index {self.path}: expected an encoder of {name} with levels "
                f"{generation.level_sizes if generation else sizes}, got {encoder.tokenizer_id} with {sizes}"
            )

    def close(self) -> None:
        """Release the file and the writer's lock."""
        self.environment.close()
        self._lock.close()

    def __enter__(self) -> IndexStore:
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @contextmanager
    def _batch(self, offsets: Mapping[str, bytes]) -> Iterator[Batch]:
        counters = dict(self._counters)
        with self.write() as transaction:
            batch = Batch(
                transaction,
                self.tables,
                meta=self._meta,
                counters=counters,
                encoders=self.encoders,
                accounts=self.accounts,
                now=int(self.now()),
                max_dead_letters=self._max_dead_letters,
            )
            yield batch
            meta = batch.finish()
            for source, offset in offsets.items():
                transaction.put(_source_key(source), offset, db=self.tables.offsets)
            if meta != self._meta:
                self.tables.write_meta(transaction, meta)
            if counters != self._counters:
                transaction.put(COUNTERS_KEY, json.dumps(counters).encode(), db=self.tables.meta)
        self.committed(meta, log_rows=batch.log_rows)
        self._counters = counters

    def _letter(self, number: int) -> DeadLetter:
        with self.read() as transaction:
            return DeadLetters(transaction, self.tables, counters={}, most=0).get(number)

    def _count_log(self, transaction: lmdb.Transaction, name: str) -> int:
        size = change_dtype(len(self._meta.generations[name].level_sizes)).itemsize
        with transaction.cursor(db=self.tables.generations[name].changes) as cursor:
            return sum(len(value) for _, value in cursor) // size

    def _fill_up(self) -> None:
        # LMDB does not write a page at the end that it took and gave back in one transaction; to readers, the
        # file would look truncated.
        expected = (self.environment.info()["last_pgno"] + 1) * self.environment.stat()["psize"]
        file = self.path / STORE / "data.mdb"
        if file.stat().st_size < expected:
            os.truncate(file, expected)

    def _error(self, error: lmdb.Error) -> IndexStoreError:
        advice = "free disk space or check the disk, then open the index again"
        if isinstance(error, lmdb.MapFullError):
            advice = f"it has its {self.environment.info()['map_size']} bytes; open it with a larger map_size"
        elif isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
            advice = "it is damaged; restore a snapshot or build it anew"
        return IndexStoreError(f"index {self.path}: {error}; nothing of the transaction was kept; {advice}")


def _source_key(source: str) -> bytes:
    key = source.encode()
    if not 0 < len(key) <= 500:
        raise ValueError(f"source: expected a name of 1 to 500 bytes, got {len(key)}")
    return key
