"""An index of the format before becomes one of this, in one transaction of the first writer."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from indexer.store.arrays import read_ads, read_snapshot
from indexer.store.bases import place_base, remove_bases
from indexer.store.file import StoreFile
from indexer.store.transaction import WriteTransaction
from serving.index.layout import AD, FORMAT_VERSION
from serving.keys import hash_of

log = logging.getLogger("gr4ad.indexer")


def upgrade(file: StoreFile) -> None:
    """Give ads of format 2 an audience (everybody) and the number of their account, and write new bases.

    Raises:
        IndexStoreError: the store cannot be written, or a table is damaged; all of it is as it was then.
    """
    if file.meta.format == FORMAT_VERSION:
        return
    log.warning("index %s is of format %d: it becomes %d", file.path, file.meta.format, FORMAT_VERSION)
    old, sequence = file.meta, file.meta.sequence + 1
    ready = [name for name, generation in old.generations.items() if generation.ready]
    with ExitStack() as bases:
        placed = {n: bases.enter_context(place_base(file.path, n, sequence=sequence)) for n in ready}
        with file.write() as writing:
            _rewrite_ads(writing)
            based = {n: replace(old.generations[n], base=sequence, log_start=sequence) for n in ready}
            generations = old.generations | based
            writing.meta = replace(old, sequence=sequence, generations=generations, format=FORMAT_VERSION)
            for name, base in placed.items():
                writing.txn.drop(writing.tables.generations[name].changes, delete=False)
                writing.log_rows[name] = 0
                base.write(read_snapshot(writing, name))
    for name in ready:
        before = old.generations[name].base
        remove_bases(file.path, name, keep=[s for s in (before, sequence) if s is not None])


def _rewrite_ads(writing: WriteTransaction) -> None:
    stored = read_ads(writing)
    records = stored[list(AD.names or ())].astype(AD)
    known: dict[str, int] = {}
    with writing.txn.cursor(db=writing.tables.content) as cursor:
        for key, value in cursor:
            account = json.loads(bytes(value)).get("account_id", "")
            if account not in known:
                known[account] = hash_of(account)
            at = np.searchsorted(stored["ad_id"], int.from_bytes(key, "big"))
            records["account"][at] = known[account]
    writing.txn.drop(writing.tables.ads, delete=False)
    keys, values = np.ascontiguousarray(stored["ad_id"]).view("V8"), records.view(f"V{AD.itemsize}")
    writing.txn.fill(writing.tables.ads, zip(keys.tolist(), values.tolist(), strict=True))
