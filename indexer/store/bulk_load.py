"""Bulk load of a generation: tables in key order, so that LMDB appends, and the base arrays with them.

Letters: N ads, T levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np

from indexer.events.event import CONTENT_FIELDS
from indexer.store.bases import place_base
from indexer.store.batch import encode_content
from indexer.store.tables import check_tokenizer_id, read_ads
from serving.index.layout import (
    ACTIVE,
    AD,
    MAX_GENERATIONS,
    STATUSES,
    Generation,
    IndexStoreError,
    StoreMeta,
)
from serving.index.snapshot import IndexSnapshot

if TYPE_CHECKING:
    from indexer.store.index_store import IndexStore

Content = Mapping[str, Any]
"""Columns account_id, conversion_type, text: N strings each, as list, array or polars Series."""
_CHUNK = 1 << 16


def bulk_load(
    store: IndexStore,
    tokenizer_id: str,
    level_sizes: tuple[int, ...],
    *,
    ad_ids: np.ndarray,
    sids: np.ndarray,
    statuses: np.ndarray,
    content: Content | None,
    versions: np.ndarray | int,
    replace_all: bool,
) -> int:
    """See `IndexStore.build`."""
    check_tokenizer_id(tokenizer_id)
    versions = np.broadcast_to(np.asarray(versions, np.int64), (len(ad_ids),))
    codes_of_status = _check(ad_ids, sids, statuses, versions, level_sizes=level_sizes, content=content)
    ad_ids, order = np.asarray(ad_ids, np.int64), None
    if (ad_ids[1:] < ad_ids[:-1]).any():
        order = np.argsort(ad_ids)
        ad_ids, sids, codes_of_status = ad_ids[order], sids[order], codes_of_status[order]
        versions = versions[order]
    twice = np.flatnonzero(ad_ids[1:] == ad_ids[:-1])
    if len(twice):
        raise ValueError(f"expected distinct ads, ad {ad_ids[twice[0]]} occurs more than once")

    old = store.meta
    alone = replace_all or not (old.generations.keys() - {tokenizer_id})
    if len(old.generations.keys() | {tokenizer_id}) > MAX_GENERATIONS and not alone:
        raise IndexStoreError(
            f"index {store.path}: expected at most {MAX_GENERATIONS} generations; drop one of "
            f"{', '.join(old.generations)}"
        )
    sequence = old.sequence + 1
    if tokenizer_id not in store.tables.generations:
        store.add_tables(tokenizer_id)
    base = place_base(store.path, tokenizer_id, sequence=sequence)
    with base, store.write() as transaction:
        if not alone:
            rows = read_ads(transaction, store.tables, where=str(store.path))
            _check_same_ads(rows["ad_id"], ad_ids)
            codes_of_status = rows["status"]
        snapshot = IndexSnapshot.build(
            ad_ids,
            sids,
            active=codes_of_status == ACTIVE,
            level_sizes=level_sizes,
            version=sequence,
            tokenizer_id=tokenizer_id,
        )
        meta = StoreMeta(sequence, {} if alone else dict(old.generations))
        meta.generations[tokenizer_id] = Generation(
            level_sizes, ready=True, base=sequence, log_start=sequence
        )
        ids = ad_ids.astype(">i8").view("V8")
        if alone:
            for table in (store.tables.ads, store.tables.content):
                transaction.drop(table, delete=False)
            for handles in store.tables.generations.values():
                for table in vars(handles).values():
                    transaction.drop(table, delete=False)
            records = np.zeros(len(ad_ids), AD)
            records["status"], records["updated"] = codes_of_status, int(store.now())
            records["status_version"] = records["content_version"] = versions
            _append(transaction, store.tables.ads, _pairs(ids, records.view(f"V{AD.itemsize}")))
            if content is not None:
                _append(transaction, store.tables.content, _contents(ids, content, order))
        fill_generation(transaction, store, snapshot, sids=sids)
        store.tables.write_meta(transaction, meta)
        base.write(snapshot)
    store.log_rows[tokenizer_id] = 0
    store.committed(meta)
    for name in store.tables.generations.keys() - meta.generations.keys():
        store.remove_tables(name)
    previous = old.generations.get(tokenizer_id)
    store.remove_bases(
        tokenizer_id, keep=[sequence, *([previous.base] if previous and previous.base else [])]
    )
    return sequence


def fill_generation(
    transaction: lmdb.Transaction, store: IndexStore, snapshot: IndexSnapshot, *, sids: np.ndarray
) -> None:
    """Replace the tables of a generation by what a snapshot holds; sids int32 [N, T] are those of its ads."""
    handles = store.tables.generations[snapshot.tokenizer_id]
    for table in (handles.codes, handles.sids, handles.changes):
        transaction.drop(table, delete=False)
    width = f"V{4 * len(snapshot.level_sizes)}"
    ids = snapshot.ad_ids.astype(">i8").view("V8")
    codes = np.ascontiguousarray(sids, "<i4").view(width)[:, 0] if len(sids) else np.empty(0, width)
    _append(transaction, handles.codes, _pairs(ids, codes))
    live = snapshot.leaf_ads  # in the order of the SIDs, then of the ads
    keys = np.ascontiguousarray(sids[live], ">u4").view(width)[:, 0] if len(live) else np.empty(0, width)
    _append(transaction, handles.sids, _pairs(keys, ids[live]), duplicates=True)


def _append(
    transaction: lmdb.Transaction,
    table: Any,
    pairs: Iterator[tuple[bytes, bytes]],
    *,
    duplicates: bool = False,
) -> None:
    with transaction.cursor(db=table) as cursor:
        # Told to append, a table with duplicates would not check their order; in key order it is fast anyway.
        cursor.putmulti(pairs, dupdata=duplicates, append=not duplicates)


def _pairs(keys: np.ndarray, values: np.ndarray) -> Iterator[tuple[bytes, bytes]]:
    for start in range(0, len(keys), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield from zip(keys[part].tolist(), values[part].tolist(), strict=True)


def _contents(ids: np.ndarray, content: Content, order: np.ndarray | None) -> Iterator[tuple[bytes, bytes]]:
    for start in range(0, len(ids), _CHUNK):
        at = slice(start, start + _CHUNK)
        positions = np.arange(len(ids))[at] if order is None else order[at]
        columns = [_take(content[name], positions) for name in CONTENT_FIELDS]
        for name, column in zip(CONTENT_FIELDS, columns, strict=True):
            wrong = next((i for i, value in enumerate(column) if type(value) is not str), None)
            if wrong is not None:
                ad_id = int.from_bytes(ids[at][wrong].item(), "big")
                raise ValueError(f"content of ad {ad_id}: expected {name} as text, got {column[wrong]!r}")
        for key, *values in zip(ids[at].tolist(), *columns, strict=True):
            yield key, encode_content(dict(zip(CONTENT_FIELDS, values, strict=True)))


def _take(column: Any, positions: np.ndarray) -> list[Any]:
    if hasattr(column, "gather"):  # polars
        return column.gather(positions).to_list()
    return (
        column[positions].tolist()
        if isinstance(column, np.ndarray)
        else [column[i] for i in positions.tolist()]
    )


def _check(
    ad_ids: np.ndarray,
    sids: np.ndarray,
    statuses: np.ndarray,
    versions: np.ndarray,
    *,
    level_sizes: tuple[int, ...],
    content: Content | None,
) -> np.ndarray:
    """Codes of the statuses uint8 [N]."""
    if sids.shape != (len(ad_ids), len(level_sizes)) or len(statuses) != len(ad_ids):
        raise ValueError(
            f"expected SIDs {(len(ad_ids), len(level_sizes))} and as many statuses, got {sids.shape} and "
            f"{len(statuses)}"
        )
    codes = np.full(len(ad_ids), len(STATUSES), np.uint8)
    for code, status in enumerate(STATUSES):
        codes[statuses == status] = code
    checks = (
        (ad_ids < 0, "an id in 0 .. 2**63 - 1", ad_ids),
        (codes == len(STATUSES), f"status {' | '.join(STATUSES)}", statuses),
        (
            ((sids < 0) | (sids >= np.array(level_sizes))).any(axis=1),
            f"one code a level below {level_sizes}",
            sids,
        ),
        (versions < 0, "a version of 0 or more", versions),
    )
    for bad, expected, values in checks:
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"ad {ad_ids[row]}: expected {expected}, got {values[row].tolist()!r}")
    for name in CONTENT_FIELDS if content is not None else ():
        if name not in content or len(content[name]) != len(ad_ids):  # type: ignore[operator, index]
            raise ValueError(f"expected the content column {name} of {len(ad_ids)} ads")
    return codes


def _check_same_ads(stored: np.ndarray, given: np.ndarray) -> None:
    without, unknown = np.setdiff1d(stored, given), np.setdiff1d(given, stored)
    for ads, what in ((without, "in the index have no SID"), (unknown, "are not in the index")):
        if len(ads):
            raise ValueError(
                f"expected SIDs of exactly the ads of the index, which has another generation; {len(ads)} "
                f"{what}, first ad {ads[0]}; build with replacement to begin anew"
            )
