"""The store's file, open for writing: the ground that all writing stands on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import lmdb

from indexer.store.audience_numbers import AudienceNumbers, NewAudiences
from indexer.store.checked import CheckedTransaction
from indexer.store.digests import read_digests, scan, write_digests
from indexer.store.lock import WriterLock
from indexer.store.tables import Tables, read_counters, read_meta, write_counters, write_meta
from indexer.store.transaction import ReadTransaction, WriteTransaction
from serving.index.layout import MAX_GENERATIONS, STORE, IndexStoreError, change_dtype, open_environment

log = logging.getLogger("gr4ad.indexer")


class StoreFile:
    """One open store; a second writer, in this process or another, is refused.

    Not for several threads at once. LMDB opens an environment once a process, so other readers of the same
    index are in other processes.

    Attributes:
        path: folder of the index.
        environment: LMDB's.
        tables: handles of all sub-databases.
        meta: sequence number and generations, as committed last.
        counters: events since the index was made: `applied.<kind>`, `stale.<kind>`, `rejected.<reason>`,
            `recovered.<kind>` (a dead letter that took effect later), `dead_letters`,
            `dead_letters_forgotten`, `unencoded.<tokenizer id>` (content changes that a generation without
            an encoder missed), `unknown_text.<tokenizer id>` (texts encoded without one known word).
        log_rows: rows of the change log of each generation.
        audiences: by number.
        now: unix seconds.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        map_size: int = 1 << 36,
        now: Callable[[], float] = time.time,
        sync: bool = True,
    ) -> None:
        """Open or create.

        Args:
            path: folder of the index.
            map_size: most bytes that the store may take.
            now: unix seconds.
            sync: False for tests only: a crash of the machine may then lose or damage the store.

        Raises:
            IndexStoreError: another writer holds it, or it is damaged or of another format.
        """
        self.path, self.now = Path(path), now
        self._lock = WriterLock(self.path)
        try:
            (self.path / STORE).mkdir(exist_ok=True)
            self.environment = open_environment(self.path, readonly=False, map_size=map_size, sync=sync)
        except (OSError, IndexStoreError):
            self._lock.close()
            raise
        try:
            with self._begin(write=True) as txn:
                self.tables = Tables.open(self.environment, txn, create=True)
                self.meta = read_meta(self.tables, txn, where=self.path)
                self.counters = read_counters(self.tables, txn, where=self.path)
                self._digests = self._read_digests(txn)
                self.audiences = AudienceNumbers.read(self.tables.audiences, txn)
                self.log_rows = {name: self._count_log(txn, name) for name in self.meta.generations}
            self._inode = (self.path / STORE / "data.mdb").stat().st_ino
            fill_up(self.environment)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[ReadTransaction]:
        """A read transaction.

        Raises:
            IndexStoreError: LMDB cannot read.
        """
        with self._begin(write=False) as txn:
            meta = read_meta(self.tables, txn, where=self.path)
            yield ReadTransaction(self.path, txn, self.tables, meta)

    @contextmanager
    def write(self) -> Iterator[WriteTransaction]:
        """A write transaction: committed at the end of the block, undone on any exception in it.

        Raises:
            IndexStoreError: the disk or the map is full, or the store is damaged; nothing is kept.
        """
        with self._begin(write=True) as txn:
            checked = CheckedTransaction(txn, self.tables, self._digests)
            transaction = WriteTransaction(
                path=self.path,
                txn=checked,
                tables=self.tables,
                meta=self.meta,
                counters=dict(self.counters),
                log_rows=dict(self.log_rows),
                audiences=NewAudiences(self.audiences, checked, self.tables.audiences),
            )
            yield transaction
            if transaction.audiences.changed:
                meta = transaction.meta
                transaction.meta = replace(meta, audiences=meta.sequence)
            if transaction.meta != self.meta:
                write_meta(self.tables, checked, meta=transaction.meta)
            if transaction.counters != self.counters:
                write_counters(self.tables, checked, counters=transaction.counters)
            digests = checked.named()
            if digests != self._digests:
                write_digests(self.tables, txn, digests=digests)
        self.meta, self.counters, self._digests = transaction.meta, transaction.counters, digests
        self.audiences = transaction.audiences.after()
        self.log_rows = {name: transaction.log_rows.get(name, 0) for name in self.meta.generations}
        fill_up(self.environment)

    def free_bytes(self) -> int:
        """Of the file, what no table has: pages that are free or that a reader still sees, and their list."""
        with self.read() as reading:
            stats = [reading.txn.stat(table) for table in self.tables.named().values()]
        stats.append(self.environment.stat())
        used = sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
        return (self.environment.info()["last_pgno"] + 1 - used) * stats[0]["psize"]

    def file_problem(self) -> str:
        """What has become of the file under our hands: gone, replaced or cut off; empty where it is whole."""
        file = self.path / STORE / "data.mdb"
        try:
            status = file.stat()
        except OSError as error:
            return f"{file}: cannot be looked at: {error}"
        if status.st_ino != self._inode:
            return f"{file}: another file is in its place"
        expected = (self.environment.info()["last_pgno"] + 1) * self.environment.stat()["psize"]
        if status.st_size < expected:
            return f"{file}: expected {expected} bytes, got {status.st_size}: it is truncated"
        return ""

    def check_room(self) -> None:
        """Another generation fits in.

        Raises:
            IndexStoreError: it does not.
        """
        if len(self.meta.generations) >= MAX_GENERATIONS:
            raise IndexStoreError(
                f"index {self.path}: expected at most {MAX_GENERATIONS} generations; drop one of "
                f"{', '.join(self.meta.generations)}"
            )

    def add_tables(self, tokenizer_id: str) -> None:
        """Make empty tables of a generation to come: handles of a transaction that fails are of no use."""
        with self._begin(write=True) as txn:
            self.tables.add(self.environment, txn, tokenizer_id=tokenizer_id, create=True)
        fill_up(self.environment)

    def remove_tables(self, tokenizer_id: str) -> None:
        """Remove the tables of a generation that `meta` names no more."""
        handles = self.tables.generations.pop(tokenizer_id)
        with self.write() as writing:
            for table in vars(handles).values():
                writing.txn.drop(table)

    def close(self) -> None:
        """Release the file and the writer's lock."""
        self.environment.close()
        self._lock.close()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @contextmanager
    def _begin(self, *, write: bool) -> Iterator[lmdb.Transaction]:
        try:
            with self.environment.begin(write=write) as txn:
                yield txn
        except lmdb.Error as error:
            raise self._error(error) from error

    def _read_digests(self, txn: lmdb.Transaction) -> dict[str, int]:
        digests = read_digests(self.tables, txn, where=self.path)
        if digests is None:
            if self.meta.sequence:
                log.warning("index %s has no checksums yet: they are made from what it holds", self.path)
            digests = scan(self.tables, txn)
            write_digests(self.tables, txn, digests=digests)
        return digests

    def _count_log(self, txn: lmdb.Transaction, name: str) -> int:
        levels = len(self.meta.generations[name].level_sizes)
        size = change_dtype(levels, format=self.meta.format).itemsize
        with txn.cursor(db=self.tables.generations[name].changes) as cursor:
            return sum(len(value) for _, value in cursor) // size

    def _error(self, error: lmdb.Error) -> IndexStoreError:
        advice = "free disk space or check the disk, then open the index again"
        if isinstance(error, lmdb.MapFullError):
            advice = f"it has its {self.environment.info()['map_size']} bytes; open it with a larger map_size"
        elif isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
            advice = "it is damaged; restore a backup or build it anew"
        return IndexStoreError(f"index {self.path}: {error}; nothing of the transaction was kept; {advice}")


def fill_up(environment: lmdb.Environment) -> None:
    """Make the file as long as LMDB says it is; after every commit.

    LMDB does not write a page at the end that a transaction took and gave back. To whoever opens the store,
    the file would look truncated.
    """
    file = Path(environment.path()) / "data.mdb"
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    try:
        if file.stat().st_size < expected:
            os.truncate(file, expected)
    except OSError as error:  # what was committed is: nobody must be told that it was not
        log.error("%s: who opens it finds it truncated, till the next commit: %s", file, error)
