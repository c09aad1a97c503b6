"""A checksum of every table, kept in the transaction that changes it: LMDB itself has none.

The checksum of a table is the sum of (CRC-32 of key and value)^2 over its records, modulo 2^64. So a change
costs what its records cost, whatever else the table holds, and a bit that flips anywhere changes the sum.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import lmdb

from indexer.store.tables import Tables
from serving.index.layout import IndexStoreError

DIGESTS_KEY = b"digests"  # in `meta`; its own checksum is in it, and it is in no sum
MODULUS = 1 << 64


def mark(key: bytes, value: bytes) -> int:
    """What one record adds to the sum of its table."""
    return zlib.crc32(value, zlib.crc32(key)) ** 2


def read_digests(tables: Tables, txn: Any, *, where: object) -> dict[str, int] | None:
    """Checksums on record, by name of a table; None in a store that has none yet.

    Raises:
        IndexStoreError: the record is damaged.
    """
    raw = txn.get(DIGESTS_KEY, db=tables.meta)
    if raw is None:
        return None
    text, _, check = bytes(raw).rpartition(b" ")
    try:
        if zlib.crc32(text) == int(check):
            return {str(name): int(value) for name, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        pass
    raise IndexStoreError(f"index {where}: damaged: the record of its checksums is unreadable")


def write_digests(tables: Tables, txn: Any, *, digests: Mapping[str, int]) -> None:
    """Replace the record, in a transaction of LMDB's own."""
    text = json.dumps(digests, sort_keys=True).encode()
    txn.put(DIGESTS_KEY, b"%b %d" % (text, zlib.crc32(text)), db=tables.meta)


def scan(tables: Tables, txn: Any) -> dict[str, int]:
    """Checksums of what the tables hold, each record read."""
    return {name: _sum_of(txn, handle) for name, handle in tables.named().items()}


def digest_problems(tables: Tables, txn: Any, *, where: object) -> Iterator[str]:
    """Tables that do not hold what was written, one a line.

    Raises:
        IndexStoreError: a page or the record is damaged.
    """
    recorded = read_digests(tables, txn, where=where)
    for name, handle in tables.named().items() if recorded is not None else ():
        try:
            found = _sum_of(txn, handle)
        except lmdb.Error as error:
            raise IndexStoreError(f"index {where}: damaged table {name}: {error}") from error
        if recorded is not None and found != recorded.get(name, 0):
            yield f"{name}: damaged: its records do not have the checksum that was written with them"


def _sum_of(txn: Any, table: Any) -> int:
    crc = zlib.crc32
    with txn.cursor(db=table) as cursor:
        total = sum(crc(value, crc(key)) ** 2 for key, value in cursor if key != DIGESTS_KEY)
    return total % MODULUS
