"""Help for tests of the index store: an encoder that is a pure function, and readings of the files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from indexer.events.content import Content
from indexer.events.event import AdEvent, CreateEvent, DeleteEvent, PauseEvent, ResumeEvent, UpdateEvent
from indexer.store.incoming import Incoming, Outcome
from indexer.store.index_store import IndexStore
from indexer.store.verify import find_problems
from serving.index.base import read_base
from serving.index.layout import base_folder, change_dtype, generation_tables

SIZES = (4, 3, 5)


class FakeEncoder:
    """Digits of a hash of the ad and its content; other tokenizers give other SIDs."""

    from_content = True

    def __init__(self, tokenizer_id: str = "tok", level_sizes: tuple[int, ...] = SIZES) -> None:
        self.tokenizer_id, self.level_sizes = tokenizer_id, level_sizes
        self.calls: list[list[int]] = []

    def refusal(self, content: Content) -> str | None:
        return None

    def knows(self, text: str) -> bool:
        return "unheard-of" not in text

    def encode(self, ad_ids: np.ndarray, contents: Sequence[Content]) -> np.ndarray:
        self.calls.append(ad_ids.tolist())
        pairs = zip(ad_ids.tolist(), contents, strict=True)
        return np.array([self.sid(ad_id, **content) for ad_id, content in pairs], np.int32)

    def sid(
        self, ad_id: int, account_id: str, conversion_type: str, text: str, **given: object
    ) -> tuple[int, ...]:
        content = repr((self.tokenizer_id, ad_id, account_id, conversion_type, text, *given.items())).encode()
        number = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        codes = []
        for size in self.level_sizes:
            number, code = divmod(number, size)
            codes.append(code)
        return tuple(codes)


def incoming(event: AdEvent, *, source: str = "test") -> Incoming:
    return Incoming(event, repr(event).encode(), source)


def create(ad_id: int, version: int, text: str = "text", account_id: str = "a") -> AdEvent:
    return CreateEvent(ad_id=ad_id, version=version, account_id=account_id, conversion_type="buy", text=text)


def update(ad_id: int, version: int, **content: object) -> AdEvent:
    return UpdateEvent(ad_id=ad_id, version=version, **content)  # type: ignore[arg-type]


def pause(ad_id: int, version: int) -> AdEvent:
    return PauseEvent(ad_id=ad_id, version=version)


def resume(ad_id: int, version: int) -> AdEvent:
    return ResumeEvent(ad_id=ad_id, version=version)


def delete(ad_id: int, version: int) -> AdEvent:
    return DeleteEvent(ad_id=ad_id, version=version)


def results(outcomes: Iterable[Outcome]) -> list[str]:
    """Of each event: why it was rejected, else what became of it."""
    return [outcome.reason or outcome.result for outcome in outcomes]


def sound(store: IndexStore) -> bool:
    """Every table of an open store agrees with every other."""
    with store.file.read() as reading:
        assert list(find_problems(reading)) == []
    return True


def apply(store: IndexStore, *events: AdEvent, offset: int | None = None) -> list[Outcome]:
    offsets = {} if offset is None else {"test": str(offset).encode()}
    return store.apply([incoming(e) for e in events], offsets=offsets)


def open_store(path: Path, *encoders: FakeEncoder, sync: bool = False, **options: object) -> IndexStore:
    """Store that does not wait for the disk: only a power cut could tell."""
    return IndexStore(path, encoders=encoders, sync=sync, **options)  # type: ignore[arg-type]


def empty_store(path: Path, *encoders: FakeEncoder, **options: object) -> IndexStore:
    """Store with ready generations, no ads."""
    encoders = encoders or (FakeEncoder(),)
    store = open_store(path, *encoders, **options)  # type: ignore[arg-type]
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


def random_ads(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, SIDs and statuses of ads, in no order."""
    generator = np.random.default_rng(seed)
    ad_ids = generator.choice(max(1000, count), count, replace=False).astype(np.int64)
    sids = np.stack([generator.integers(0, v, count) for v in SIZES], axis=1).astype(np.int32)
    return ad_ids, sids, generator.choice(["active", "paused", "deleted"], count)


def load(store: IndexStore, seed: int = 0, count: int = 40, **options: object) -> dict:
    """Bulk load of `random_ads`; what readers should see then."""
    ad_ids, sids, statuses = random_ads(count, seed)
    store.build("tok", SIZES, ad_ids=ad_ids, sids=sids, statuses=statuses, **options)  # type: ignore[arg-type]
    return {
        a: (s == "active", tuple(c)) for a, c, s in zip(ad_ids.tolist(), sids.tolist(), statuses, strict=True)
    }


def as_reader_sees(store: IndexStore, tokenizer_id: str = "tok") -> dict[int, tuple[bool, tuple[int, ...]]]:
    """Ad -> whether it is active and its SID: the base, then the change log row by row."""
    generation = store.meta.generations[tokenizer_id]
    assert generation.base is not None
    base = read_base(base_folder(store.file.path, tokenizer_id, sequence=generation.base))
    sids, _ = base.sids_of(base.ad_ids)
    live = set(base.leaf_ads.tolist())
    ads = {
        a: (i in live, tuple(s))
        for i, (a, s) in enumerate(zip(base.ad_ids.tolist(), sids.tolist(), strict=True))
    }
    rows = change_dtype(len(generation.level_sizes))
    table = store.file.environment.open_db(generation_tables(tokenizer_id).changes)
    with store.file.environment.begin() as transaction:
        for key, value in transaction.cursor(db=table):
            assert generation.log_start < int.from_bytes(key, "big") <= store.meta.sequence
            for ad_id, active, known, codes, *_ in np.frombuffer(value, rows).tolist():
                if known:
                    ads[ad_id] = (bool(active), tuple(codes))
                else:
                    del ads[ad_id]
    return ads


def reverse_table(store: IndexStore, tokenizer_id: str = "tok") -> set[tuple[tuple[int, ...], int]]:
    """SIDs and their active ads."""
    name = generation_tables(tokenizer_id).sids
    table = store.file.environment.open_db(name, dupsort=True, dupfixed=True)
    with store.file.environment.begin() as transaction:
        return {
            (tuple(np.frombuffer(key, ">u4").tolist()), int.from_bytes(value, "big"))
            for key, value in transaction.cursor(db=table)
        }
