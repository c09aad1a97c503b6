"""Handles of the index's sub-databases, and whole tables as arrays.

Letters: N entries, T levels.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from serving.index.layout import (
    AD,
    ADS,
    CONTENT,
    COUNTERS_KEY,
    DEAD,
    INDEX_KEY,
    META,
    OFFSETS,
    WAITING,
    IndexStoreError,
    StoreMeta,
    generation_tables,
)

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_CHUNK = 1 << 16  # parts (keys and values) that are read at once, one bytes object each
AD_KEY = np.dtype(">i8")


@dataclass(frozen=True)
class GenerationHandles:
    """Sub-databases of one generation."""

    codes: Any
    sids: Any
    changes: Any


@dataclass(frozen=True)
class Tables:
    """Sub-databases of an index."""

    meta: Any
    ads: Any
    content: Any
    offsets: Any
    dead: Any
    waiting: Any
    generations: dict[str, GenerationHandles]

    @classmethod
    def open(cls, environment: lmdb.Environment, transaction: lmdb.Transaction, *, create: bool) -> Tables:
        """Open those of all generations that `meta` names.

        Raises:
            IndexStoreError: one is missing, or `meta` is unreadable.
        """
        try:
            names = {"meta": META, "ads": ADS, "content": CONTENT, "offsets": OFFSETS, "dead": DEAD}
            named = {
                field: environment.open_db(name, txn=transaction, create=create)
                for field, name in (names | {"waiting": WAITING}).items()
            }
            tables = cls(**named, generations={})
            for tokenizer_id in tables.read_meta(environment, transaction).generations:
                tables.add(environment, transaction, tokenizer_id, create=create)
        except lmdb.Error as error:
            raise IndexStoreError(
                f"index {Path(environment.path()).parent}: a table is missing or damaged: {error}"
            ) from error
        return tables

    def add(
        self, environment: lmdb.Environment, transaction: lmdb.Transaction, tokenizer_id: str, *, create: bool
    ) -> None:
        """Open those of one generation."""
        names = generation_tables(tokenizer_id)
        self.generations[tokenizer_id] = GenerationHandles(
            environment.open_db(names.codes, txn=transaction, create=create),
            environment.open_db(names.sids, txn=transaction, create=create, dupsort=True, dupfixed=True),
            environment.open_db(names.changes, txn=transaction, create=create),
        )

    def read_meta(self, environment: lmdb.Environment, transaction: lmdb.Transaction) -> StoreMeta:
        """`StoreMeta`; an index that nobody has written to is empty.

        Raises:
            IndexStoreError: unreadable, or of another format.
        """
        raw = transaction.get(INDEX_KEY, db=self.meta)
        if raw is None and not transaction.stat(self.ads)["entries"]:
            return StoreMeta()
        return StoreMeta.decode(bytes(raw or b"null"), where=Path(environment.path()).parent)

    def write_meta(self, transaction: lmdb.Transaction, meta: StoreMeta) -> None:
        """Replace the record."""
        transaction.put(INDEX_KEY, meta.encode(), db=self.meta)


def read_counters(tables: Tables, transaction: lmdb.Transaction, *, where: str) -> dict[str, int]:
    """Counters as stored.

    Raises:
        IndexStoreError: unreadable.
    """
    try:
        values = json.loads(bytes(transaction.get(COUNTERS_KEY, db=tables.meta) or b"{}"))
        return {str(name): int(value) for name, value in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise IndexStoreError(f"index {where}: unreadable counters: {error!r}") from error


def check_tokenizer_id(tokenizer_id: str) -> None:
    """It names tables and folders.

    Raises:
        ValueError: it cannot.
    """
    if not _NAME.fullmatch(tokenizer_id):
        raise ValueError(
            f"tokenizer id: expected 1 to 128 letters, digits, '_', '-' or '.' (not first), got "
            f"{tokenizer_id!r}"
        )


def read_rows(transaction: lmdb.Transaction, table: Any, *, row: np.dtype, where: str) -> np.ndarray:
    """All entries of a table as an array [N] of key and value beside each other, in key order.

    Args:
        transaction: to read in.
        table: handle; keys and values of one length each.
        row: structure of a key followed by its value.
        where: for the error.

    Raises:
        IndexStoreError: an entry has another length, or a page is damaged.
    """
    entries = transaction.stat(table)["entries"]
    rows = bytearray()
    try:
        with transaction.cursor(db=table) as cursor:
            parts = chain.from_iterable(cursor)  # key, value, key, value ..
            while chunk := b"".join(islice(parts, _CHUNK)):
                rows += chunk
    except lmdb.Error as error:
        raise IndexStoreError(f"{where}: damaged table: {error}") from error
    if len(rows) != entries * row.itemsize:
        raise IndexStoreError(
            f"{where}: expected {entries} entries of {row.itemsize} bytes, got {len(rows)} bytes"
        )
    return np.frombuffer(rows, row)


def read_ads(transaction: lmdb.Transaction, tables: Tables, *, where: str) -> np.ndarray:
    """All ads [N]: `ad_id` and the fields of `AD`."""
    row = np.dtype([("ad_id", AD_KEY), *AD.descr])
    return read_rows(transaction, tables.ads, row=row, where=f"{where}, ads")


def read_codes(
    transaction: lmdb.Transaction, handles: GenerationHandles, *, levels: int, where: str
) -> np.ndarray:
    """SIDs of one generation [N]: `ad_id`, `codes` [T]."""
    row = np.dtype([("ad_id", AD_KEY), ("codes", "<i4", (levels,))])
    return read_rows(transaction, handles.codes, row=row, where=f"{where}, codes")


def read_sids(
    transaction: lmdb.Transaction, handles: GenerationHandles, *, levels: int, where: str
) -> np.ndarray:
    """Reverse table of one generation [N]: `codes` [T], `ad_id`, in lexicographic order of both."""
    row = np.dtype([("codes", ">u4", (levels,)), ("ad_id", AD_KEY)])
    return read_rows(transaction, handles.sids, row=row, where=f"{where}, sids")
