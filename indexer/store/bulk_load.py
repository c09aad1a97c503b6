"""Bulk load of a generation: tables in key order, so that LMDB appends, and the base arrays with them.

Letters: N ads, T levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from indexer.store.ad_columns import AdColumns
from indexer.store.arrays import read_ads
from indexer.store.bases import place_base, remove_bases
from indexer.store.file import StoreFile
from indexer.store.tables import check_tokenizer_id
from indexer.store.transaction import WriteTransaction
from serving.index.layout import ACTIVE, AD, Generation
from serving.index.snapshot import IndexSnapshot

_CHUNK = 1 << 16


def bulk_load(
    file: StoreFile,
    tokenizer_id: str,
    *,
    level_sizes: tuple[int, ...],
    ads: AdColumns,
    replace_all: bool = False,
) -> int:
    """Load a generation in one transaction, with its base; it is ready then.

    In an empty index, where this is the only generation, or with `replace_all`, the ads become those that
    are given. Else the ads stay as they are and the generation is added (or replaced) for them.

    Returns:
        The sequence number of the load.

    Raises:
        ValueError: a tokenizer id that cannot name tables, or ads that are not those of the index; the old
            content stays.
        IndexStoreError: too many generations, or the store cannot be written.
    """
    check_tokenizer_id(tokenizer_id)
    old = file.meta
    alone = replace_all or not (old.generations.keys() - {tokenizer_id})
    if not alone and tokenizer_id not in old.generations:
        file.check_room()
    if tokenizer_id not in file.tables.generations:
        file.add_tables(tokenizer_id)
    sequence = old.sequence + 1
    generation = Generation(level_sizes, ready=True, base=sequence, log_start=sequence)
    with place_base(file.path, tokenizer_id, sequence=sequence) as base, file.write() as writing:
        stored = _replace_ads(writing, ads, now=int(file.now())) if alone else _same_ads(writing, ads)
        snapshot = IndexSnapshot.build(
            ads.ad_ids,
            ads.sids,
            active=stored["status"] == ACTIVE,
            level_sizes=level_sizes,
            version=sequence,
            tokenizer_id=tokenizer_id,
            audiences=stored["audience"],
            accounts=stored["account"],
        )
        _fill_generation(writing, snapshot, sids=ads.sids)
        others = {} if alone else old.generations
        writing.meta = replace(old, sequence=sequence, generations=others | {tokenizer_id: generation})
        writing.log_rows[tokenizer_id] = 0
        base.write(snapshot)
    for name in file.tables.generations.keys() - file.meta.generations.keys():
        file.remove_tables(name)
        remove_bases(file.path, name, keep=())
    before = old.generations.get(tokenizer_id)
    kept = [sequence, *([before.base] if before and before.base is not None else [])]
    remove_bases(file.path, tokenizer_id, keep=kept)
    return sequence


def _replace_ads(writing: WriteTransaction, ads: AdColumns, *, now: int) -> np.ndarray:
    """All ads become these; the tables of every generation are empty then. Returns their `AD` [N]."""
    tables = writing.tables
    of_generations = [t for handles in tables.generations.values() for t in vars(handles).values()]
    for table in (tables.ads, tables.content, tables.keys, *of_generations):
        writing.txn.drop(table, delete=False)
    records = np.zeros(len(ads.ad_ids), AD)
    records["status"], records["updated"] = ads.statuses, now
    records["status_version"] = records["content_version"] = ads.versions
    records["account"] = ads.accounts
    if ads.audiences is not None or len(writing.audiences):
        writing.audiences.clear()
    if ads.audiences is not None:
        records["audience"] = [writing.audiences.number_of(text) for text in ads.audiences]
    keys = _ad_keys(ads.ad_ids)
    writing.txn.fill(tables.ads, _pairs(keys, _parts(records.view(f"V{AD.itemsize}"))))
    if ads.content is not None:
        writing.txn.fill(tables.content, _pairs(keys, ads.encoded_content()))
    if ads.keys is not None:
        writing.txn.fill(tables.keys, _pairs(keys, ads.encoded_keys()))
    return records


def _fill_generation(writing: WriteTransaction, snapshot: IndexSnapshot, *, sids: np.ndarray) -> None:
    """Replace the tables of a generation by what a snapshot holds; sids int32 [N, T] are those of its ads."""
    handles = writing.tables.generations[snapshot.tokenizer_id]
    for table in vars(handles).values():
        writing.txn.drop(table, delete=False)
    keys = _ad_keys(snapshot.ad_ids)
    writing.txn.fill(handles.codes, _pairs(keys, _parts(_rows(sids, "<i4"))))
    live = snapshot.leaf_ads  # in the order of the SIDs, then of the ads
    writing.txn.fill(handles.sids, _pairs(_rows(sids[live], ">u4"), _parts(keys[live])))


def _same_ads(writing: WriteTransaction, ads: AdColumns) -> np.ndarray:
    """What the index has of these ads, which must be all of its ads, [N] with the fields of `AD`."""
    stored = read_ads(writing)
    missing = np.setdiff1d(stored["ad_id"], ads.ad_ids), "in the index have no SID"
    unknown = np.setdiff1d(ads.ad_ids, stored["ad_id"]), "are not in the index"
    for ad_ids, what in (missing, unknown):
        if len(ad_ids):
            raise ValueError(
                f"expected SIDs of exactly the ads of the index, which has another generation; {len(ad_ids)} "
                f"{what}, first ad {ad_ids[0]}; build with replacement to begin anew"
            )
    return stored


def _pairs(keys: np.ndarray, values: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(_parts(keys), values, strict=True)


def _parts(rows: np.ndarray) -> Iterator[bytes]:
    """Rows [N] of one type as bytes each; as lists of some thousand, which is faster and takes no memory."""
    for start in range(0, len(rows), _CHUNK):
        yield from rows[start : start + _CHUNK].tolist()


def _ad_keys(ad_ids: np.ndarray) -> np.ndarray:
    return ad_ids.astype(">i8").view("V8")


def _rows(sids: np.ndarray, code: str) -> np.ndarray:
    """SIDs [N, T] as N values of bytes."""
    width = f"V{4 * sids.shape[1]}"
    return np.ascontiguousarray(sids, code).view(width)[:, 0] if len(sids) else np.empty(0, width)
