"""Help for tests of the index store: an encoder that is a pure function, and readings of the files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from indexer.events.event import AdEvent
from indexer.store.index_store import Incoming, IndexStore, Outcome
from serving.index.base import read_base
from serving.index.layout import base_folder, change_dtype, generation_tables

SIZES = (4, 3, 5)


class FakeEncoder:
    """Digits of a hash of the ad and its content; other tokenizers give other SIDs."""

    def __init__(self, tokenizer_id: str = "tok", level_sizes: tuple[int, ...] = SIZES) -> None:
        self.tokenizer_id, self.level_sizes = tokenizer_id, level_sizes
        self.calls: list[list[int]] = []

    def encode(
        self,
        ad_ids: np.ndarray,
        *,
        account_ids: Sequence[str],
        conversion_types: Sequence[str],
        texts: Sequence[str],
    ) -> np.ndarray:
        self.calls.append(ad_ids.tolist())
        columns = zip(ad_ids.tolist(), account_ids, conversion_types, texts, strict=True)
        return np.array([self.sid(*values) for values in columns], np.int32)

    def sid(self, ad_id: int, account_id: str, conversion_type: str, text: str) -> tuple[int, ...]:
        content = repr((self.tokenizer_id, ad_id, account_id, conversion_type, text)).encode()
        number = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        codes = []
        for size in self.level_sizes:
            number, code = divmod(number, size)
            codes.append(code)
        return tuple(codes)


def incoming(event: AdEvent, *, source: str = "test") -> Incoming:
    return Incoming(event, repr(event).encode(), source)


def create(ad_id: int, version: int, text: str = "text", account_id: str = "a") -> AdEvent:
    return AdEvent("create", ad_id, version, account_id, "buy", text)


def apply(store: IndexStore, *events: AdEvent, offset: int | None = None) -> list[Outcome]:
    offsets = {} if offset is None else {"test": str(offset).encode()}
    return store.apply([incoming(e) for e in events], offsets=offsets)


def empty_store(path: Path, *encoders: FakeEncoder, **options: object) -> IndexStore:
    """Store with ready generations, no ads."""
    encoders = encoders or (FakeEncoder(),)
    store = IndexStore(path, encoders={e.tokenizer_id: e for e in encoders}, **options)  # type: ignore[arg-type]
    for e in encoders:
        if e.tokenizer_id not in store.meta.generations:
            build(store, {}, e)
    return store


def build(store: IndexStore, ads: dict[int, tuple[tuple[int, ...], str]], encoder: FakeEncoder) -> int:
    """Bulk load of ad -> SID, status."""
    sids = np.array([sid for sid, _ in ads.values()], np.int32).reshape(-1, len(encoder.level_sizes))
    return store.build(
        encoder.tokenizer_id,
        encoder.level_sizes,
        ad_ids=np.array(list(ads), np.int64),
        sids=sids,
        statuses=np.array([status for _, status in ads.values()], "U8"),
    )


def as_reader_sees(store: IndexStore, tokenizer_id: str = "tok") -> dict[int, tuple[bool, tuple[int, ...]]]:
    """Ad -> whether it is active and its SID: the base, then the change log row by row."""
    generation = store.meta.generations[tokenizer_id]
    assert generation.base is not None
    base = read_base(base_folder(store.path, tokenizer_id, sequence=generation.base))
    sids, _ = base.sids_of(base.ad_ids)
    live = set(base.leaf_ads.tolist())
    ads = {
        a: (i in live, tuple(s))
        for i, (a, s) in enumerate(zip(base.ad_ids.tolist(), sids.tolist(), strict=True))
    }
    rows = change_dtype(len(generation.level_sizes))
    table = store.environment.open_db(generation_tables(tokenizer_id).changes)
    with store.environment.begin() as transaction:
        for key, value in transaction.cursor(db=table):
            assert generation.log_start < int.from_bytes(key, "big") <= store.meta.sequence
            for ad_id, active, known, codes in np.frombuffer(value, rows).tolist():
                if known:
                    ads[ad_id] = (bool(active), tuple(codes))
                else:
                    del ads[ad_id]
    return ads


def reverse_table(store: IndexStore, tokenizer_id: str = "tok") -> set[tuple[tuple[int, ...], int]]:
    """SIDs and their active ads."""
    name = generation_tables(tokenizer_id).sids
    table = store.environment.open_db(name, dupsort=True, dupfixed=True)
    with store.environment.begin() as transaction:
        return {
            (tuple(np.frombuffer(key, ">u4").tolist()), int.from_bytes(value, "big"))
            for key, value in transaction.cursor(db=table)
        }
