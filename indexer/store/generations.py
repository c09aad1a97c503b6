"""A generation more, encoded from the content of the ads while events go on; and one less."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import lmdb

from indexer.encode.encoder import Encoder, encode_contents
from indexer.store.bases import place_base
from indexer.store.batch import decode_content
from indexer.store.compaction import read_snapshot
from indexer.store.tables import check_tokenizer_id
from serving.index.layout import (
    ACTIVE,
    MAX_GENERATIONS,
    Generation,
    IndexStoreError,
    ad_key,
    sid_key,
)

if TYPE_CHECKING:
    from indexer.store.index_store import IndexStore


def add_generation(store: IndexStore, encoder: Encoder) -> None:
    """Begin a generation of this encoder; `fill` completes it. One that exists goes on.

    Raises:
        IndexStoreError: too many generations, or ads came without content.
    """
    name = encoder.tokenizer_id
    check_tokenizer_id(name)
    store.check_encoder(name, encoder)
    if name not in store.meta.generations:
        if len(store.meta.generations) >= MAX_GENERATIONS:
            raise IndexStoreError(
                f"index {store.path}: expected at most {MAX_GENERATIONS} generations; drop one of "
                f"{', '.join(store.meta.generations)}"
            )
        _check_contents(store, name)
        store.add_tables(name)
        meta = store.with_generation(store.meta, name, Generation(tuple(encoder.level_sizes)))
        with store.write() as transaction:
            store.tables.write_meta(transaction, meta)
        store.committed(meta)
    store.encoders[name] = encoder


def fill(store: IndexStore, tokenizer_id: str, *, limit: int = 1024) -> int:
    """Encode up to `limit` ads that have no SID yet, in ad id order, in one transaction; how many are left.

    The call that finds none left writes the base and makes the generation ready: 0 is returned by it only.

    Raises:
        IndexStoreError: no such generation, no encoder, ads without content, or as `IndexStore.apply`.
    """
    generation, encoder = store.meta.generations.get(tokenizer_id), store.encoders.get(tokenizer_id)
    if generation is None:
        raise IndexStoreError(f"index {store.path}: no generation {tokenizer_id}")
    if generation.ready:
        return 0
    if encoder is None:
        raise IndexStoreError(f"index {store.path}: expected an encoder of {tokenizer_id}, got none")
    _check_contents(store, tokenizer_id)
    handles, tables = store.tables.generations[tokenizer_id], store.tables
    with store.write() as transaction:
        missing = _missing(transaction, store, tokenizer_id, limit=limit)
        if missing:
            raw = [transaction.get(ad_key(ad_id), db=tables.content) for ad_id, _ in missing]
            contents = [decode_content(value) for value in raw]
            sids = encode_contents(encoder, [a for a, _ in missing], contents)  # type: ignore[arg-type]
            for (ad_id, status), codes in zip(missing, sids, strict=True):
                transaction.put(ad_key(ad_id), codes.astype("<i4").tobytes(), db=handles.codes)
                if status == ACTIVE:
                    transaction.put(sid_key(codes), ad_key(ad_id), db=handles.sids)
            # Where to go on, also after a restart. Behind it may be ads again: then it begins anew.
            transaction.put(_progress_key(tokenizer_id), ad_key(missing[-1][0]), db=tables.meta)
        left = transaction.stat(tables.ads)["entries"] - transaction.stat(handles.codes)["entries"]
    if left or missing:
        return max(left, 1)
    _finish(store, tokenizer_id, generation)
    return 0


def drop_generation(store: IndexStore, tokenizer_id: str) -> None:
    """Remove a generation and its files; readers that use it must have gone to another.

    Raises:
        IndexStoreError: no such generation, or it is the only one that is ready.
    """
    generations = dict(store.meta.generations)
    if tokenizer_id not in generations:
        raise IndexStoreError(
            f"index {store.path}: no generation {tokenizer_id}, only {', '.join(generations)}"
        )
    dropped = generations.pop(tokenizer_id)
    if dropped.ready and not any(g.ready for g in generations.values()):
        raise IndexStoreError(f"index {store.path}: {tokenizer_id} is the only generation that is ready")
    meta = replace(store.meta, generations=generations)
    with store.write() as transaction:
        store.tables.write_meta(transaction, meta)
        transaction.delete(_progress_key(tokenizer_id), db=store.tables.meta)
    store.committed(meta)
    store.encoders.pop(tokenizer_id, None)
    store.remove_tables(tokenizer_id)


def _finish(store: IndexStore, tokenizer_id: str, generation: Generation) -> None:
    sequence = store.meta.sequence + 1  # a new one, so that readers look
    ready = replace(generation, ready=True, base=sequence, log_start=sequence)
    meta = store.with_generation(replace(store.meta, sequence=sequence), tokenizer_id, ready)
    base = place_base(store.path, tokenizer_id, sequence=sequence)
    with base, store.write() as transaction:
        base.write(read_snapshot(transaction, store.tables, tokenizer_id, meta=meta, where=str(store.path)))
        store.tables.write_meta(transaction, meta)
        transaction.delete(_progress_key(tokenizer_id), db=store.tables.meta)
    store.committed(meta)


def _missing(
    transaction: lmdb.Transaction, store: IndexStore, tokenizer_id: str, *, limit: int
) -> list[tuple[int, int]]:
    """Next ads without a SID, with their statuses."""
    codes, ads = store.tables.generations[tokenizer_id].codes, store.tables.ads
    progress = transaction.get(_progress_key(tokenizer_id), db=store.tables.meta)
    found: list[tuple[int, int]] = []
    with transaction.cursor(db=ads) as cursor:
        for start in (progress, None) if progress else (None,):
            if not (cursor.set_range(start) if start else cursor.first()):
                continue
            without = ((k, v) for k, v in cursor if transaction.get(k, db=codes) is None)
            found = [(int.from_bytes(key, "big"), value[0]) for key, value in islice(without, limit)]
            if found:
                break
    return found


def _check_contents(store: IndexStore, tokenizer_id: str) -> None:
    with store.read() as transaction:
        ads, contents = (
            transaction.stat(table)["entries"] for table in (store.tables.ads, store.tables.content)
        )
    if ads > contents:
        raise IndexStoreError(
            f"index {store.path}: {ads - contents} of {ads} ads came with given SIDs and have no content to "
            f"encode for {tokenizer_id}; build the generation with given SIDs, or the index with content"
        )


def _progress_key(tokenizer_id: str) -> bytes:
    return f"fill/{tokenizer_id}".encode()
