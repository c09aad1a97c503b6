"""Deleted ads are forgotten some time after: till then, events that come late meet their versions."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np

from indexer.store.file import StoreFile
from indexer.store.registers import DELETED
from serving.index.layout import AD, ad_key, change_dtype, number_key


def forget_deleted(file: StoreFile, *, before: float, after: int = -1, limit: int = 10_000) -> int | None:
    """Forget ads that were deleted before a time, so that later events meet an unknown ad.

    Args:
        file: the store.
        before: unix seconds.
        after: look at ads above this id.
        limit: most ads that are looked at.

    Returns:
        Where to go on (`after` of the next call); None at the end.

    Raises:
        IndexStoreError: the store cannot be written.
    """
    with file.read() as reading, reading.txn.cursor(db=file.tables.ads) as cursor:
        entries = list(islice(cursor, limit)) if cursor.set_range(ad_key(after + 1)) else []
    rows = np.frombuffer(b"".join(value for _, value in entries), AD)
    old = np.flatnonzero((rows["status"] == DELETED) & (rows["updated"] < before))
    if len(old):
        _forget(file, [entries[i][0] for i in old])
    return int.from_bytes(entries[-1][0], "big") if len(entries) == limit else None


def _forget(file: StoreFile, keys: list[bytes]) -> None:
    with file.write() as writing:
        writing.meta = replace(writing.meta, sequence=writing.meta.sequence + 1)
        for key in keys:
            for table in (writing.tables.ads, writing.tables.content, writing.tables.keys):
                writing.txn.delete(key, db=table)
        for name, generation in writing.meta.generations.items():
            handles = writing.tables.generations[name]
            gone = [int.from_bytes(k, "big") for k in keys if writing.txn.delete(k, db=handles.codes)]
            if gone and generation.ready:
                changes = np.zeros(len(gone), change_dtype(len(generation.level_sizes)))
                changes["ad_id"] = gone
                key = number_key(writing.meta.sequence)
                writing.txn.put(key, changes.tobytes(), db=handles.changes, append=True)
                writing.log_rows[name] += len(gone)
