"""Deleted ads are forgotten some time after: till then, events that come late meet their versions."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from indexer.store.registers import DELETED
from serving.index.layout import AD, ad_key, change_dtype, number_key

if TYPE_CHECKING:
    from indexer.store.index_store import IndexStore


def forget_deleted(store: IndexStore, *, before: float, after: int, limit: int) -> int | None:
    """See `IndexStore.forget_deleted`."""
    meta, tables = store.meta, store.tables
    with store.read() as transaction, transaction.cursor(db=tables.ads) as cursor:
        entries = list(islice(cursor, limit)) if cursor.set_range(ad_key(after + 1)) else []
    rows = np.frombuffer(b"".join(value for _, value in entries), AD)
    old = np.flatnonzero((rows["status"] == DELETED) & (rows["updated"] < before))
    following = int.from_bytes(entries[-1][0], "big") if len(entries) == limit else None
    if not len(old):
        return following
    keys = [entries[i][0] for i in old]
    meta = replace(meta, sequence=meta.sequence + 1)
    rows_of = {}
    with store.write() as transaction:
        for key in keys:
            for table in (tables.ads, tables.content):
                transaction.delete(key, db=table)
        for name, generation in meta.generations.items():
            handles = tables.generations[name]
            gone = [int.from_bytes(k, "big") for k in keys if transaction.delete(k, db=handles.codes)]
            if gone and generation.ready:
                changes = np.zeros(len(gone), change_dtype(len(generation.level_sizes)))
                changes["ad_id"] = gone
                transaction.put(number_key(meta.sequence), changes.tobytes(), db=handles.changes)
                rows_of[name] = len(gone)
        tables.write_meta(transaction, meta)
    store.committed(meta, log_rows=rows_of)
    return following
