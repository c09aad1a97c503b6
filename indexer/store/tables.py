"""Handles of the sub-databases, and the records of `meta`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from serving.index.layout import (
    ADS,
    AUDIENCES,
    CONTENT,
    COUNTERS_KEY,
    DEAD,
    INDEX_KEY,
    KEYS,
    META,
    OFFSETS,
    WAITING,
    IndexStoreError,
    StoreMeta,
    generation_tables,
)

_NAMES = {
    "meta": META,
    "ads": ADS,
    "content": CONTENT,
    "keys": KEYS,
    "audiences": AUDIENCES,
    "offsets": OFFSETS,
    "dead": DEAD,
    "waiting": WAITING,
}
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class GenerationHandles:
    """Sub-databases of one generation."""

    codes: Any
    sids: Any
    changes: Any


@dataclass(frozen=True)
class Tables:
    """Sub-databases of an index; one that its format did not have yet is None, open for reading."""

    meta: Any
    ads: Any
    content: Any
    keys: Any
    audiences: Any
    offsets: Any
    dead: Any
    waiting: Any
    generations: dict[str, GenerationHandles]

    @classmethod
    def open(cls, environment: lmdb.Environment, txn: lmdb.Transaction, *, create: bool) -> Tables:
        """Open those of all generations that `meta` names.

        Raises:
            IndexStoreError: one is missing, or `meta` is unreadable.
        """
        where = Path(environment.path()).parent
        try:
            missing = {f for f in ("keys", "audiences") if not create and not _has(txn, _NAMES[f])}
            named = {
                field: None if field in missing else environment.open_db(name, txn=txn, create=create)
                for field, name in _NAMES.items()
            }
            tables = cls(**named, generations={})
            for tokenizer_id in read_meta(tables, txn, where=where).generations:
                tables.add(environment, txn, tokenizer_id=tokenizer_id, create=create)
        except lmdb.Error as error:
            raise IndexStoreError(f"index {where}: a table is missing or damaged: {error}") from error
        return tables

    def named(self) -> dict[str, Any]:
        """All handles by the name of the sub-database."""
        every = {name.decode(): getattr(self, field) for field, name in _NAMES.items()}
        found = {name: handle for name, handle in every.items() if handle is not None}
        for tokenizer_id, handles in self.generations.items():
            tables = vars(generation_tables(tokenizer_id))
            found |= {name.decode(): getattr(handles, field) for field, name in tables.items()}
        return found

    def add(
        self, environment: lmdb.Environment, txn: lmdb.Transaction, *, tokenizer_id: str, create: bool
    ) -> None:
        """Open those of one generation."""
        names = generation_tables(tokenizer_id)
        self.generations[tokenizer_id] = GenerationHandles(
            environment.open_db(names.codes, txn=txn, create=create),
            environment.open_db(names.sids, txn=txn, create=create, dupsort=True, dupfixed=True),
            environment.open_db(names.changes, txn=txn, create=create),
        )


def _has(txn: lmdb.Transaction, name: bytes) -> bool:
    return txn.get(name) is not None  # the main database: name -> root of each


def read_meta(tables: Tables, txn: lmdb.Transaction, *, where: Path) -> StoreMeta:
    """Sequence number and generations; an index that nobody has written to is empty.

    Raises:
        IndexStoreError: unreadable, or of another format.
    """
    raw = txn.get(INDEX_KEY, db=tables.meta)
    if raw is None and not txn.stat(tables.ads)["entries"]:
        return StoreMeta()
    return StoreMeta.decode(bytes(raw or b"null"), where=where)


def write_meta(tables: Tables, txn: Any, *, meta: StoreMeta) -> None:
    """Replace the record."""
    txn.put(INDEX_KEY, meta.encode(), db=tables.meta)


def read_counters(tables: Tables, txn: lmdb.Transaction, *, where: Path) -> dict[str, int]:
    """Counters as stored.

    Raises:
        IndexStoreError: unreadable.
    """
    try:
        values = json.loads(bytes(txn.get(COUNTERS_KEY, db=tables.meta) or b"{}"))
        return {str(name): int(value) for name, value in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise IndexStoreError(f"index {where}: unreadable counters: {error!r}") from error


def write_counters(tables: Tables, txn: Any, *, counters: dict[str, int]) -> None:
    """Replace the record."""
    txn.put(COUNTERS_KEY, json.dumps(counters).encode(), db=tables.meta)


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
