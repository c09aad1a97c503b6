"""Readers of the index: immutable snapshots that are swapped between batches, never inside one.

Letters: N known ads, M distinct live SIDs, T levels.
"""

from __future__ import annotations

import json
from itertools import chain, islice
from pathlib import Path

import lmdb
import numpy as np

from serving.index.layout import (
    ACTIVE,
    ADS,
    FORMAT_VERSION,
    META,
    IndexStoreError,
    open_environment,
    record_dtype,
)


class IndexReader:
    """Follows an index on disk. One reader a process; `snapshot` stays valid as long as somebody holds it."""

    def __init__(self, path: str | Path) -> None:
        """Open the index and read it whole.

        Raises:
            IndexStoreError: missing, corrupted, or of another format version.
        """
        self.path = Path(path)
        self._environment = open_environment(self.path, readonly=True)
        self.snapshot = self._read()

    def refresh(self) -> bool:
        """Catch up with the writer; True when there was something new. Call between batches."""
        with self._environment.begin() as transaction:
            sequence = self._meta(transaction)["sequence"]
        if sequence == self.snapshot.version:
            return False
        self.snapshot = self._read()
        return True

    def close(self) -> None:
        """Release the file."""
        self._environment.close()

    def _meta(self, transaction: lmdb.Transaction) -> dict:
        try:
            database = self._environment.open_db(META, txn=transaction, create=False)
            meta = json.loads(bytes(transaction.get(b"index", db=database) or b"null"))
        except (lmdb.Error, ValueError) as error:
            raise IndexStoreError(
                f"index {self.path}: expected a readable `meta` record, got: {error}"
            ) from error
        if not isinstance(meta, dict):
            raise IndexStoreError(
                f"index {self.path}: expected a complete build, but it carries no `meta` record"
            )
        if meta.get("format") != FORMAT_VERSION:
            raise IndexStoreError(
                f"index {self.path}: expected format {FORMAT_VERSION}, got {meta.get('format')}"
            )
        missing = [k for k in ("sequence", "tokenizer_id", "level_sizes") if k not in meta]
        if missing:
            raise IndexStoreError(f"index {self.path}: expected {missing[0]} in `meta`, got {sorted(meta)}")
        return meta

    def _read(self) -> IndexSnapshot:
        with self._environment.begin() as transaction:
            meta = self._meta(transaction)
            level_sizes = tuple(meta["level_sizes"])
            row = np.dtype([("ad_id", ">i8"), *record_dtype(len(level_sizes)).descr])
            try:
                database = self._environment.open_db(ADS, txn=transaction, create=False)
                expected = transaction.stat(database)["entries"] * row.itemsize
                rows = bytearray()
                with transaction.cursor(db=database) as cursor:
                    parts = chain.from_iterable(cursor)  # key, value, key, value ..
                    while chunk := b"".join(islice(parts, 1 << 16)):  # one bytes object each: not all at once
                        rows += chunk
            except lmdb.Error as error:
                raise IndexStoreError(f"index {self.path}: corrupted `ads` table: {error}") from error
        if len(rows) != expected:
            raise IndexStoreError(
                f"index {self.path}: corrupted `ads` records: expected {expected} bytes, got {len(rows)}"
            )
        records = np.frombuffer(rows, row)
        try:
            return IndexSnapshot.build(
                records["ad_id"].astype(np.int64),
                records["codes"],
                active=records["status"] == ACTIVE,
                level_sizes=level_sizes,
                version=int(meta["sequence"]),
                tokenizer_id=str(meta["tokenizer_id"]),
            )
        except ValueError as error:
            raise IndexStoreError(f"index {self.path}: corrupted `ads` records: {error}") from error
