"""Every table against every other, in one read transaction.

Letters: N ads, T levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from indexer.store.arrays import read_ads, read_codes, read_sids, snapshot_of
from indexer.store.audience_numbers import AudienceNumbers, canonical
from indexer.store.dead_letters import iterate_dead_letters
from indexer.store.digests import digest_problems
from indexer.store.tables import read_counters
from indexer.store.transaction import ReadTransaction, read_store
from serving.index.audience import AudienceError
from serving.index.base import read_base
from serving.index.keys import pack
from serving.index.layout import STATUSES, IndexStoreError, base_folder, change_dtype
from serving.index.overlay import log_column
from serving.index.snapshot import IndexSnapshot
from serving.keys import id_of


def verify(path: str | Path) -> list[str]:
    """Problems of an index, empty where it is sound; beside the living writer in another process."""
    try:
        with read_store(path) as reading:
            return list(find_problems(reading))
    except IndexStoreError as error:
        return [str(error)]


def find_problems(reading: ReadTransaction) -> Iterator[str]:
    """Problems of the store that is read, one a line.

    Raises:
        IndexStoreError: the tables that all others hang on cannot be read.
    """
    yield from digest_problems(reading.tables, reading.txn, where=reading.path)
    ads = read_ads(reading)
    for bad, what in (
        (ads["ad_id"] < 0, "an id below 0"),
        (ads["status"] >= len(STATUSES), "an unknown status"),
        ((ads["status_version"] < 0) | (ads["content_version"] < 0), "a version below 0"),
    ):
        if bad.any():
            yield f"ads: {int(bad.sum())} have {what}, first ad {ads['ad_id'][bad][0]}"
    audiences = AudienceNumbers.read(reading.tables.audiences, reading.txn).texts
    yield from _audiences(audiences)
    unknown = ~np.isin(ads["audience"], list(audiences))
    if unknown.any():
        first = ads["ad_id"][unknown][0]
        yield f"ads: {int(unknown.sum())} have an audience that is not in the table, first ad {first}"
    with reading.txn.cursor(db=reading.tables.content) as cursor:
        keys = b"".join(cursor.iternext(keys=True, values=False))
    yield from _only_in("content", np.frombuffer(keys, ">i8"), known=ads["ad_id"])
    yield from _keys(reading, known=ads["ad_id"])
    counters = read_counters(reading.tables, reading.txn, where=reading.path)
    for name, count in counters.items():
        if count < 0:
            yield f"counters: {name} is {count}"
    yield from _dead_letters(reading, counters)
    for name in reading.meta.generations:
        try:
            # A content change that found no encoder leaves a new ad without a SID; it was counted.
            whole = not counters.get(f"unencoded.{name}")
            yield from _generation(reading, name, ads=ads, whole=whole)
        except (IndexStoreError, ValueError) as error:
            yield f"{name}: {error}"


def _audiences(texts: Mapping[int, str]) -> Iterator[str]:
    for number, text in texts.items():
        try:
            if canonical(text) != text:
                yield f"audiences: {number} is not canonical: {text[:80]}"
        except AudienceError as error:
            yield f"audiences: {number}: {error}"


def _keys(reading: ReadTransaction, *, known: np.ndarray) -> Iterator[str]:
    if reading.tables.keys is None:
        return
    with reading.txn.cursor(db=reading.tables.keys) as cursor:
        found = {int.from_bytes(ad, "big"): bytes(key) for ad, key in cursor}
    yield from _only_in("keys", np.array(list(found), np.int64), known=known)
    for ad_id, key in found.items():
        try:
            actual = id_of(key.decode())
        except ValueError as error:
            yield f"keys: ad {ad_id}: {error}"
            continue
        if actual != ad_id:
            yield f"keys: ad {ad_id} has the key {key!r}, which is of ad {actual}"


def _generation(reading: ReadTransaction, name: str, *, ads: np.ndarray, whole: bool) -> Iterator[str]:
    generation, codes = reading.meta.generations[name], read_codes(reading, name)
    unknown = list(_only_in(f"{name}, codes", codes["ad_id"], known=ads["ad_id"]))
    yield from unknown
    if generation.ready and whole:
        yield from _only_in(f"{name}, ads without codes", ads["ad_id"], known=codes["ad_id"])
    bad = ((codes["codes"] < 0) | (codes["codes"] >= np.array(generation.level_sizes))).any(axis=1)
    if bad.any():
        row = codes[int(np.argmax(bad))]
        yield f"{name}, codes: {int(bad.sum())} not below {generation.level_sizes}, first ad {row['ad_id']}"
    if unknown or bad.any():
        return
    expected = snapshot_of(reading, name, codes=codes, ads=ads)
    yield from _reverse_table(reading, name, expected=expected)
    if generation.ready:
        yield from _base(reading, name, expected=expected)


def _reverse_table(reading: ReadTransaction, name: str, *, expected: IndexSnapshot) -> Iterator[str]:
    rows = read_sids(reading, name)
    keys = pack(rows["codes"].astype(np.int64), expected.level_sizes)
    live = expected.leaf_ads
    if len(rows) != len(live):
        yield f"{name}, sids: expected {len(live)} active ads, got {len(rows)}"
        return
    wrong = (keys != expected.ad_keys[live]) | (rows["ad_id"] != expected.ad_ids[live])
    if wrong.any():
        row = rows[int(np.argmax(wrong))]
        yield f"{name}, sids: {int(wrong.sum())} rows differ from codes, first ad {row['ad_id']}"


def _base(reading: ReadTransaction, name: str, *, expected: IndexSnapshot) -> Iterator[str]:
    """The base with the change log on top, as readers put it together."""
    generation, sequence = reading.meta.generations[name], reading.meta.sequence
    if generation.base is None or not generation.log_start <= generation.base <= sequence:
        yield f"{name}: base {generation.base}, log from {generation.log_start}, sequence {sequence}"
        return
    base = read_base(base_folder(reading.path, name, sequence=generation.base))
    if (base.version, base.tokenizer_id, base.level_sizes) != (generation.base, name, generation.level_sizes):
        yield f"{name}: base {generation.base} is of {base.tokenizer_id}, {base.version}, {base.level_sizes}"
        return
    row = change_dtype(len(generation.level_sizes), format=reading.meta.format)
    values = [np.zeros(0, row)]
    with reading.txn.cursor(db=reading.tables.generations[name].changes) as cursor:
        for key, value in cursor:
            if not generation.log_start < int.from_bytes(key, "big") <= sequence:
                yield f"{name}, changes: row set {int.from_bytes(key, 'big')} is outside of the log"
            values.append(np.frombuffer(value, row))
    for got, wanted, what in _as_readers_see(base, np.concatenate(values), expected=expected):
        if not np.array_equal(got, wanted):
            yield f"{name}: {what} of base {generation.base} and change log are not those of the store"
            return
    trie_keys = expected.ad_keys[expected.leaf_ads]
    if base.version == sequence and not np.array_equal(base.ad_keys[base.leaf_ads], trie_keys):
        yield f"{name}: leaves of base {generation.base} are not those of the store"


def _as_readers_see(
    base: IndexSnapshot, log: np.ndarray, *, expected: IndexSnapshot
) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Columns of the base with the change log on top, each with what it should be and its name."""
    last = np.unique(log["ad_id"][::-1], return_index=True)[1]
    log = log[len(log) - 1 - last]  # the last row of each ad, ads ascending
    kept = ~np.isin(base.ad_ids, log["ad_id"], assume_unique=True)
    known = log["known"] == 1
    active = np.zeros(len(base.ad_ids), bool)
    active[base.leaf_ads] = True
    ad_ids = np.concatenate([base.ad_ids[kept], log["ad_id"][known]])
    keys = np.concatenate([base.ad_keys[kept], pack(log["codes"][known], base.level_sizes)])
    actives = np.concatenate([active[kept], log["active"][known] == 1])
    order = np.argsort(ad_ids, kind="stable")
    audiences, accounts = (
        np.concatenate([of_base[kept], log_column(log, name, kind)[known]])
        for of_base, name, kind in zip(
            base.traits_of(base.ad_ids), ("audience", "account"), (np.int32, np.int64), strict=True
        )
    )
    wanted_audiences, wanted_accounts = expected.traits_of(expected.ad_ids)
    should = np.zeros(len(expected.ad_ids), bool)
    should[expected.leaf_ads] = True
    yield ad_ids[order], expected.ad_ids, "ads"
    yield keys[order], expected.ad_keys, "SIDs"
    yield actives[order], should, "active ads"
    yield audiences[order], wanted_audiences, "audiences"
    yield accounts[order], wanted_accounts, "accounts"


def _dead_letters(reading: ReadTransaction, counters: dict[str, int]) -> Iterator[str]:
    ads: dict[int, int | None] = {}  # number -> ad
    should_wait: set[int] = set()
    try:
        for letter in iterate_dead_letters(reading):
            ads[letter.number] = letter.event["ad_id"] if letter.event else None
            if letter.waiting:
                should_wait.add(letter.number)
    except ValueError as error:
        yield str(error)
        return
    if ads and max(ads) >= counters.get("dead_letters", 0):
        yield f"dead: number {max(ads)}, but the counter stands at {counters.get('dead_letters', 0)}"
    waiting = set()
    with reading.txn.cursor(db=reading.tables.waiting) as cursor:
        for key, value in cursor:
            ad_id = int.from_bytes(key, "big")
            for number in np.frombuffer(value, ">u8").tolist():
                waiting.add(number)
                if ads.get(number) != ad_id:
                    yield f"waiting: ad {ad_id} names dead letter {number}, which is not its own"
    for number in should_wait - waiting:
        yield f"dead: {number} should wait, but is not in waiting"


def _only_in(what: str, ad_ids: np.ndarray, *, known: np.ndarray) -> Iterator[str]:
    if len(ad_ids) == len(known) and np.array_equal(ad_ids, known):
        return
    extra = np.setdiff1d(ad_ids, known, assume_unique=True)
    if len(extra):
        yield f"{what}: {len(extra)} of ads that the other side does not have, first ad {extra[0]}"
