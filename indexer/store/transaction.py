"""Transactions of the store: what one sees, and what one makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from indexer.store.audience_numbers import NewAudiences
from indexer.store.checked import CheckedTransaction
from indexer.store.tables import Tables, read_meta
from serving.index.layout import IndexStoreError, StoreMeta, open_environment


@dataclass
class ReadTransaction:
    """The store as of one sequence number.

    Attributes:
        path: folder of the index.
        txn: LMDB's transaction.
        tables: handles, good within `txn`.
        meta: sequence number and generations.
    """

    path: Path
    txn: Any
    tables: Tables
    meta: StoreMeta

    def entries(self, table: Any) -> int:
        """Number of entries of a table."""
        return self.txn.stat(table)["entries"]


@dataclass
class WriteTransaction(ReadTransaction):
    """What a transaction makes of the store; `StoreFile.write` commits it, or nothing of it.

    Attributes:
        txn: keeps the checksums.
        meta: to be replaced by that of after the transaction.
        counters: events by what became of them; to be changed in place.
        log_rows: rows of the change log of each generation; to be changed in place.
        audiences: by number.
    """

    txn: CheckedTransaction
    counters: dict[str, int]
    log_rows: dict[str, int]
    audiences: NewAudiences

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""
        self.counters[name] = self.counters.get(name, 0) + number


@contextmanager
def read_environment(environment: lmdb.Environment) -> Iterator[ReadTransaction]:
    """A read transaction of a store that is open; the index is the folder around the environment's.

    Raises:
        IndexStoreError: a table is missing, or `meta` is unreadable.
        lmdb.Error: a damaged page.
    """
    path = Path(environment.path()).parent
    with environment.begin() as txn:
        tables = Tables.open(environment, txn, create=False)
        yield ReadTransaction(path, txn, tables, read_meta(tables, txn, where=path))


@contextmanager
def read_store(path: str | Path) -> Iterator[ReadTransaction]:
    """A read transaction beside the living writer, in another process: LMDB opens a store once a process.

    Raises:
        IndexStoreError: no index, or a damaged one.
    """
    environment = open_environment(Path(path), readonly=True)
    try:
        with read_environment(environment) as transaction:
            yield transaction
    except lmdb.Error as error:
        raise IndexStoreError(f"index {path}: damaged store: {error}") from error
    finally:
        environment.close()
