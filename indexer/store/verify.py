"""Every table against every other, in one read transaction.

Letters: N ads, T levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np

from indexer.store.compaction import snapshot_of
from indexer.store.dead_letters import DeadLetter, list_dead_letters
from indexer.store.tables import Tables, read_ads, read_codes, read_counters, read_sids
from serving.index.base import read_base
from serving.index.keys import pack
from serving.index.layout import (
    STATUSES,
    Generation,
    IndexStoreError,
    StoreMeta,
    base_folder,
    change_dtype,
    open_environment,
)
from serving.index.snapshot import IndexSnapshot


def verify(path: str | Path, *, environment: lmdb.Environment | None = None) -> list[str]:
    """Problems of an index, empty where it is sound; `environment` in the writer's process: its own."""
    path = Path(path)
    own = None
    try:
        own = open_environment(path, readonly=True) if environment is None else None
        environment = environment or own
        assert environment is not None
        with environment.begin() as transaction:
            tables = Tables.open(environment, transaction, create=False)
            meta = tables.read_meta(environment, transaction)
            return list(_problems(transaction, tables, meta, path))
    except (IndexStoreError, lmdb.Error) as error:
        return [str(error)]
    finally:
        if own:
            own.close()


def _problems(transaction: lmdb.Transaction, tables: Tables, meta: StoreMeta, path: Path) -> Iterator[str]:
    ads = read_ads(transaction, tables, where=str(path))
    for bad, what in (
        (ads["ad_id"] < 0, "an id below 0"),
        (ads["status"] >= len(STATUSES), "an unknown status"),
        ((ads["status_version"] < 0) | (ads["content_version"] < 0), "a version below 0"),
    ):
        if bad.any():
            yield f"ads: {int(bad.sum())} have {what}, first ad {ads['ad_id'][bad][0]}"
    with transaction.cursor(db=tables.content) as cursor:
        keys = b"".join(cursor.iternext(keys=True, values=False))
    yield from _only_in("content", np.frombuffer(keys, ">i8"), ads["ad_id"])
    counters = read_counters(tables, transaction, where=str(path))
    for name, count in counters.items():
        if count < 0:
            yield f"counters: {name} is {count}"
    yield from _dead(transaction, tables, counters)
    for name, generation in meta.generations.items():
        try:
            yield from _generation(
                transaction, tables, meta, name, generation, path=path, ads=ads, counters=counters
            )
        except (IndexStoreError, ValueError) as error:
            yield f"{name}: {error}"


def _generation(
    transaction: lmdb.Transaction,
    tables: Tables,
    meta: StoreMeta,
    name: str,
    generation: Generation,
    *,
    path: Path,
    ads: np.ndarray,
    counters: dict[str, int],
) -> Iterator[str]:
    handles, levels = tables.generations[name], len(generation.level_sizes)
    codes = read_codes(transaction, handles, levels=levels, where=name)
    unknown = list(_only_in(f"{name}, codes", codes["ad_id"], ads["ad_id"]))
    yield from unknown
    # A content change that found no encoder leaves a new ad without a SID; it was counted.
    if generation.ready and not counters.get(f"unencoded.{name}"):
        yield from _only_in(f"{name}, ads without codes", ads["ad_id"], codes["ad_id"])
    bad = ((codes["codes"] < 0) | (codes["codes"] >= np.array(generation.level_sizes))).any(axis=1)
    if bad.any():
        row = codes[int(np.argmax(bad))]
        yield f"{name}, codes: {int(bad.sum())} not below {generation.level_sizes}, first ad {row['ad_id']}"
    if unknown or bad.any():
        return
    ad_ids = codes["ad_id"].astype(np.int64)
    expected = snapshot_of(
        ad_ids, codes["codes"], ads, meta=meta, tokenizer_id=name, where=name, sequence=meta.sequence
    )
    yield from _reverse_table(transaction, tables, name, generation, expected)
    if generation.ready:
        yield from _base(transaction, tables, meta, name, generation, path=path, expected=expected)


def _reverse_table(
    transaction: lmdb.Transaction, tables: Tables, name: str, generation: Generation, expected: IndexSnapshot
) -> Iterator[str]:
    rows = read_sids(transaction, tables.generations[name], levels=len(generation.level_sizes), where=name)
    keys = pack(rows["codes"].astype(np.int64), generation.level_sizes)
    live = expected.leaf_ads
    if len(rows) != len(live):
        yield f"{name}, sids: expected {len(live)} active ads, got {len(rows)}"
        return
    wrong = (keys != expected.ad_keys[live]) | (rows["ad_id"] != expected.ad_ids[live])
    if wrong.any():
        row = rows[int(np.argmax(wrong))]
        yield f"{name}, sids: {int(wrong.sum())} rows differ from codes, first ad {row['ad_id']}"


def _base(
    transaction: lmdb.Transaction,
    tables: Tables,
    meta: StoreMeta,
    name: str,
    generation: Generation,
    *,
    path: Path,
    expected: IndexSnapshot,
) -> Iterator[str]:
    if generation.base is None or not generation.log_start <= generation.base <= meta.sequence:
        yield f"{name}: base {generation.base}, log from {generation.log_start}, sequence {meta.sequence}"
        return
    base = read_base(base_folder(path, name, sequence=generation.base))
    if (base.version, base.tokenizer_id, base.level_sizes) != (generation.base, name, generation.level_sizes):
        yield f"{name}: base {generation.base} is of {base.tokenizer_id}, {base.version}, {base.level_sizes}"
        return
    row = change_dtype(len(generation.level_sizes))
    values = [np.zeros(0, row)]
    with transaction.cursor(db=tables.generations[name].changes) as cursor:
        for key, value in cursor:
            if not generation.log_start < int.from_bytes(key, "big") <= meta.sequence:
                yield f"{name}, changes: row set {int.from_bytes(key, 'big')} is outside of the log"
            values.append(np.frombuffer(value, row))
    log = np.concatenate(values)
    last = np.unique(log["ad_id"][::-1], return_index=True)[1]
    log = log[len(log) - 1 - last]  # the last row of each ad, ads ascending
    kept = ~np.isin(base.ad_ids, log["ad_id"], assume_unique=True)
    known = log["known"] == 1
    active = np.zeros(len(base.ad_ids), bool)
    active[base.leaf_ads] = True
    ad_ids = np.concatenate([base.ad_ids[kept], log["ad_id"][known]])
    keys = np.concatenate([base.ad_keys[kept], pack(log["codes"][known], generation.level_sizes)])
    actives = np.concatenate([active[kept], log["active"][known] == 1])
    order = np.argsort(ad_ids, kind="stable")
    should = np.zeros(len(expected.ad_ids), bool)
    should[expected.leaf_ads] = True
    for got, wanted, what in (
        (ad_ids[order], expected.ad_ids, "ads"),
        (keys[order], expected.ad_keys, "SIDs"),
        (actives[order], should, "active ads"),
    ):
        if not np.array_equal(got, wanted):
            yield f"{name}: {what} of base {generation.base} and change log are not those of the store"
            return
    trie_keys = expected.ad_keys[expected.leaf_ads]
    if base.version == meta.sequence and not np.array_equal(base.ad_keys[base.leaf_ads], trie_keys):
        yield f"{name}: leaves of base {generation.base} are not those of the store"


def _dead(transaction: lmdb.Transaction, tables: Tables, counters: dict[str, int]) -> Iterator[str]:
    try:
        letters: dict[int, DeadLetter] = {x.number: x for x in list_dead_letters(transaction, tables)}
    except ValueError as error:
        yield str(error)
        return
    if letters and max(letters) >= counters.get("dead_letters", 0):
        yield f"dead: number {max(letters)}, but the counter stands at {counters.get('dead_letters', 0)}"
    waiting = set()
    with transaction.cursor(db=tables.waiting) as cursor:
        for key, value in cursor:
            for number in np.frombuffer(value, ">u8").tolist():
                waiting.add(number)
                letter = letters.get(number)
                ad_id = int.from_bytes(key, "big")
                if not letter or not letter.event or letter.event["ad_id"] != ad_id:
                    yield f"waiting: ad {ad_id} names dead letter {number}, which is not its own"
    for number in {n for n, letter in letters.items() if letter.waiting} - waiting:
        yield f"dead: {number} should wait, but is not in waiting"


def _only_in(what: str, ad_ids: np.ndarray, known: np.ndarray) -> Iterator[str]:
    if len(ad_ids) == len(known) and np.array_equal(ad_ids, known):
        return
    extra = np.setdiff1d(ad_ids, known, assume_unique=True)
    if len(extra):
        yield f"{what}: {len(extra)} of ads that the other side does not have, first ad {extra[0]}"
