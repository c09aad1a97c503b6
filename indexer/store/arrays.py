"""Whole tables as arrays, and a generation as the arrays that readers search.

Letters: N entries, T levels.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import Any

import lmdb
import numpy as np

from indexer.store.transaction import ReadTransaction
from serving.index.layout import ACTIVE, AD, AD_2, FORMAT_VERSION, IndexStoreError
from serving.index.snapshot import IndexSnapshot

AD_KEY = np.dtype(">i8")
_CHUNK = 1 << 16  # parts (keys and values) that are read at once, one bytes object each


def read_ads(transaction: ReadTransaction) -> np.ndarray:
    """All ads [N]: `ad_id` and the fields of `AD`, 0 for those that their format does not have.

    Raises:
        IndexStoreError: an entry has another length, or a page is damaged.
    """
    fields = AD.descr if transaction.meta.format == FORMAT_VERSION else AD_2.descr
    rows = _read_rows(
        transaction, transaction.tables.ads, row=np.dtype([("ad_id", AD_KEY), *fields]), what="ads"
    )
    if fields == AD.descr:
        return rows
    found = np.zeros(len(rows), np.dtype([("ad_id", AD_KEY), *AD.descr]))
    for name in rows.dtype.names or ():
        found[name] = rows[name]
    return found


def read_codes(transaction: ReadTransaction, tokenizer_id: str) -> np.ndarray:
    """SIDs of one generation [N]: `ad_id`, `codes` [T].

    Raises:
        IndexStoreError: as `read_ads`.
    """
    levels = len(transaction.meta.generations[tokenizer_id].level_sizes)
    row = np.dtype([("ad_id", AD_KEY), ("codes", "<i4", (levels,))])
    table = transaction.tables.generations[tokenizer_id].codes
    return _read_rows(transaction, table, row=row, what=f"codes of {tokenizer_id}")


def read_sids(transaction: ReadTransaction, tokenizer_id: str) -> np.ndarray:
    """Reverse table of one generation [N]: `codes` [T], `ad_id`, in lexicographic order of both.

    Raises:
        IndexStoreError: as `read_ads`.
    """
    levels = len(transaction.meta.generations[tokenizer_id].level_sizes)
    row = np.dtype([("codes", ">u4", (levels,)), ("ad_id", AD_KEY)])
    table = transaction.tables.generations[tokenizer_id].sids
    return _read_rows(transaction, table, row=row, what=f"sids of {tokenizer_id}")


def read_snapshot(transaction: ReadTransaction, tokenizer_id: str) -> IndexSnapshot:
    """A generation as arrays, as of the transaction's sequence number.

    Raises:
        IndexStoreError: no such ready generation, or damaged tables.
    """
    generation = transaction.meta.generations.get(tokenizer_id)
    if generation is None or not generation.ready:
        raise IndexStoreError(f"index {transaction.path}: expected a ready generation, got {tokenizer_id}")
    codes = read_codes(transaction, tokenizer_id)
    return snapshot_of(transaction, tokenizer_id, codes=codes, ads=read_ads(transaction))


def snapshot_of(
    transaction: ReadTransaction, tokenizer_id: str, *, codes: np.ndarray, ads: np.ndarray
) -> IndexSnapshot:
    """Arrays of `codes` (see `read_codes`) with the statuses of `ads` (see `read_ads`).

    Raises:
        IndexStoreError: they do not fit.
    """
    where, ad_ids = f"index {transaction.path}", codes["ad_id"].astype(np.int64)
    at = np.searchsorted(ads["ad_id"], ad_ids) if len(ads) != len(ad_ids) else np.arange(len(ads))
    at = np.minimum(at, max(len(ads) - 1, 0))
    if len(ad_ids) and (not len(ads) or (ads["ad_id"][at] != ad_ids).any()):
        raise IndexStoreError(f"{where}: damaged: {tokenizer_id} has SIDs of ads that are not there")
    try:
        return IndexSnapshot.build(
            ad_ids,
            codes["codes"],
            active=ads["status"][at] == ACTIVE,
            level_sizes=transaction.meta.generations[tokenizer_id].level_sizes,
            version=transaction.meta.sequence,
            tokenizer_id=tokenizer_id,
            audiences=ads["audience"][at],
            accounts=ads["account"][at],
        )
    except ValueError as error:
        raise IndexStoreError(f"{where}: damaged codes of {tokenizer_id}: {error}") from error


def _read_rows(transaction: ReadTransaction, table: Any, *, row: np.dtype, what: str) -> np.ndarray:
    """All entries [N] of a table, key and value beside each other as `row` says, in key order."""
    rows, where = bytearray(), f"index {transaction.path}, {what}"
    try:
        with transaction.txn.cursor(db=table) as cursor:
            parts = chain.from_iterable(cursor)  # key, value, key, value ..
            while chunk := b"".join(islice(parts, _CHUNK)):
                rows += chunk
    except lmdb.Error as error:
        raise IndexStoreError(f"{where}: damaged table: {error}") from error
    entries = transaction.entries(table)
    if len(rows) != entries * row.itemsize:
        raise IndexStoreError(
            f"{where}: expected {entries} entries of {row.itemsize} bytes, got {len(rows)} bytes"
        )
    return np.frombuffer(rows, row)
