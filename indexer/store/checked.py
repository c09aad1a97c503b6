"""A write transaction that keeps the checksums of the tables it changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import lmdb

from indexer.store.digests import MODULUS, mark
from indexer.store.tables import Tables


class CheckedTransaction:
    """An LMDB write transaction that keeps the checksums of what it changes; cursors are for reading.

    Attributes:
        digests: by handle of a table.
    """

    def __init__(self, txn: lmdb.Transaction[Any], tables: Tables, digests: Mapping[str, int]) -> None:
        """Of a transaction that has just begun, with the checksums on record, by name of a table."""
        self._txn, self._tables = txn, tables
        named = tables.named()
        self.digests = {handle: digests.get(name, 0) for name, handle in named.items()}
        self._with_duplicates = {handle for name, handle in named.items() if name.startswith("sids/")}
        self.get, self.stat, self.cursor = txn.get, txn.stat, txn.cursor

    def put(self, key: bytes, value: bytes, *, db: Any, append: bool = False) -> None:
        """Set a record; in a table with several values a key, add one."""
        if db in self._with_duplicates:
            if self._txn.put(key, value, db=db, dupdata=False):
                self._add(db, mark(key, value))
            return
        old = self._txn.get(key, db=db)
        self._txn.put(key, value, db=db, append=append)
        self._add(db, mark(key, value) - (mark(key, old) if old is not None else 0))

    def delete(self, key: bytes, value: bytes = b"", *, db: Any) -> bool:
        """Delete a record, with several values a key that of this value; whether it was there."""
        old = value if db in self._with_duplicates else self._txn.get(key, db=db)
        if old is None or not self._txn.delete(key, value, db=db):
            return False
        self._add(db, -mark(key, old))
        return True

    def drop(self, db: Any, *, delete: bool = True) -> None:
        """Empty a table, and remove it."""
        self._txn.drop(db, delete=delete)
        self.digests[db] = 0

    def fill(self, db: Any, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Records of an empty table, in the order of their keys where a key has one value."""
        several = db in self._with_duplicates
        total = 0

        def marked() -> Iterator[tuple[bytes, bytes]]:
            nonlocal total
            for key, value in records:
                total += mark(key, value)
                yield key, value

        with self._txn.cursor(db=db) as cursor:
            # Told to append, LMDB would not check the order of values; in key order it is fast anyway.
            cursor.putmulti(marked(), dupdata=several, append=not several)
        self._add(db, total)

    def named(self) -> dict[str, int]:
        """Checksums by name of a table."""
        return {name: self.digests.get(handle, 0) for name, handle in self._tables.named().items()}

    def _add(self, db: Any, number: int) -> None:
        self.digests[db] = (self.digests.get(db, 0) + number) % MODULUS
