"""A generation more, encoded from the content of the ads while events go on; and one less."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from indexer.encode.encoder import Encoder, encode_contents
from indexer.events.content import Content
from indexer.store.arrays import read_snapshot
from indexer.store.bases import place_base, remove_bases
from indexer.store.file import StoreFile
from indexer.store.records import decode_content
from indexer.store.tables import check_tokenizer_id
from indexer.store.transaction import WriteTransaction
from serving.index.layout import (
    ACTIVE,
    Generation,
    IndexStoreError,
    ad_key,
    sid_key,
)


def check_encoder(file: StoreFile, encoder: Encoder) -> None:
    """It has the levels of its generation, where there is one.

    Raises:
        IndexStoreError: it has others.
    """
    generation = file.meta.generations.get(encoder.tokenizer_id)
    if generation and generation.level_sizes != tuple(encoder.level_sizes):
        raise IndexStoreError(
            f"index {file.path}: expected an encoder of {encoder.tokenizer_id} with levels "
            f"{generation.level_sizes}, got {tuple(encoder.level_sizes)}"
        )


def add_generation(file: StoreFile, encoder: Encoder) -> None:
    """Begin a generation of this encoder; `fill` completes it. One that exists goes on.

    Raises:
        IndexStoreError: too many generations, ads came without content or their SIDs with the tables, or the
            levels are others.
        ValueError: a tokenizer id that cannot name tables.
    """
    name = encoder.tokenizer_id
    check_tokenizer_id(name)
    check_encoder(file, encoder)
    if name in file.meta.generations:
        return
    if not encoder.from_content:
        raise IndexStoreError(
            f"index {file.path}: SIDs of {name} are given: they come with the tables; run `make index`"
        )
    file.check_room()
    _check_contents(file, name)
    file.add_tables(name)
    with file.write() as writing:
        _set_generation(writing, name, generation=Generation(tuple(encoder.level_sizes)))


def fill(file: StoreFile, encoder: Encoder, *, limit: int = 1024) -> int:
    """Encode up to `limit` ads that have no SID yet, in ad id order, in one transaction; how many are left.

    The call that finds none left writes the base and makes the generation ready: 0 is returned by it only.

    Raises:
        IndexStoreError: no such generation, the encoder failed, ads without content, or the store cannot be
            written.
    """
    name = encoder.tokenizer_id
    generation = file.meta.generations.get(name)
    if generation is None:
        raise IndexStoreError(f"index {file.path}: no generation {name}")
    if generation.ready:
        return 0
    _check_contents(file, name)
    handles = file.tables.generations[name]
    with file.write() as writing:
        missing = _missing(writing, name, limit=limit)
        if missing:
            _encode_missing(writing, encoder, missing=missing)
        left = writing.entries(writing.tables.ads) - writing.entries(handles.codes)
    if left or missing:
        return max(left, 1)
    _finish(file, name, generation=generation)
    return 0


def drop_generation(file: StoreFile, tokenizer_id: str) -> None:
    """Remove a generation and its files; readers that use it must have gone to another.

    Raises:
        IndexStoreError: no such generation, or it is the only one that is ready.
    """
    generations = dict(file.meta.generations)
    if tokenizer_id not in generations:
        raise IndexStoreError(
            f"index {file.path}: no generation {tokenizer_id}, only {', '.join(generations)}"
        )
    dropped = generations.pop(tokenizer_id)
    if dropped.ready and not any(g.ready for g in generations.values()):
        raise IndexStoreError(f"index {file.path}: {tokenizer_id} is the only generation that is ready")
    with file.write() as writing:
        writing.meta = replace(writing.meta, generations=generations)
        writing.txn.delete(_progress_key(tokenizer_id), db=writing.tables.meta)
    file.remove_tables(tokenizer_id)
    remove_bases(file.path, tokenizer_id, keep=())


def _encode_missing(writing: WriteTransaction, encoder: Encoder, *, missing: list[tuple[int, int]]) -> None:
    handles = writing.tables.generations[encoder.tokenizer_id]
    ad_ids = [ad_id for ad_id, _ in missing]
    contents = [_content(writing, ad_id) for ad_id in ad_ids]
    sids = encode_contents(encoder, ad_ids, contents=contents)
    if unknown := sum(not encoder.knows(content["text"]) for content in contents):
        writing.count(f"unknown_text.{encoder.tokenizer_id}", unknown)
    for (ad_id, status), codes in zip(missing, sids, strict=True):
        writing.txn.put(ad_key(ad_id), codes.astype("<i4").tobytes(), db=handles.codes)
        if status == ACTIVE:
            writing.txn.put(sid_key(codes), ad_key(ad_id), db=handles.sids)
    # Where to go on, also after a restart. Behind it may be ads again: then it begins anew.
    writing.txn.put(_progress_key(encoder.tokenizer_id), ad_key(ad_ids[-1]), db=writing.tables.meta)


def _content(writing: WriteTransaction, ad_id: int) -> Content:
    content = decode_content(writing.txn.get(ad_key(ad_id), db=writing.tables.content))
    if content is None:
        raise IndexStoreError(f"index {writing.path}: damaged: ad {ad_id} has no content to encode")
    return content


def _finish(file: StoreFile, tokenizer_id: str, *, generation: Generation) -> None:
    sequence = file.meta.sequence + 1  # a new one, so that readers look
    with place_base(file.path, tokenizer_id, sequence=sequence) as base, file.write() as writing:
        writing.meta = replace(writing.meta, sequence=sequence)
        ready = replace(generation, ready=True, base=sequence, log_start=sequence)
        _set_generation(writing, tokenizer_id, generation=ready)
        writing.txn.delete(_progress_key(tokenizer_id), db=writing.tables.meta)
        base.write(read_snapshot(writing, tokenizer_id))


def _set_generation(writing: WriteTransaction, tokenizer_id: str, *, generation: Generation) -> None:
    writing.meta = replace(writing.meta, generations=writing.meta.generations | {tokenizer_id: generation})


def _missing(writing: WriteTransaction, tokenizer_id: str, *, limit: int) -> list[tuple[int, int]]:
    """Next ads without a SID, with their statuses."""
    codes = writing.tables.generations[tokenizer_id].codes
    progress = writing.txn.get(_progress_key(tokenizer_id), db=writing.tables.meta)
    found: list[tuple[int, int]] = []
    with writing.txn.cursor(db=writing.tables.ads) as cursor:
        for start in (progress, None) if progress else (None,):
            if not (cursor.set_range(start) if start else cursor.first()):
                continue
            without = ((k, v) for k, v in cursor if writing.txn.get(k, db=codes) is None)
            found = [(int.from_bytes(key, "big"), value[0]) for key, value in islice(without, limit)]
            if found:
                break
    return found


def _check_contents(file: StoreFile, tokenizer_id: str) -> None:
    with file.read() as reading:
        ads, contents = reading.entries(reading.tables.ads), reading.entries(reading.tables.content)
    if ads > contents:
        raise IndexStoreError(
            f"index {file.path}: {ads - contents} of {ads} ads came with given SIDs and have no content to "
            f"encode for {tokenizer_id}; build the generation with given SIDs, or the index with content"
        )


def _progress_key(tokenizer_id: str) -> bytes:
    return f"fill/{tokenizer_id}".encode()
