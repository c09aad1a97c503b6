"""New base arrays from the store, made beside the living writer, which then adopts them."""

from __future__ import annotations

import fcntl
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from indexer.store.arrays import read_snapshot
from indexer.store.bases import remove_bases
from indexer.store.file import StoreFile
from indexer.store.transaction import WriteTransaction, read_store
from serving.index.base import read_base, write_base
from serving.index.layout import BASE, IndexStoreError, base_folder, change_dtype, number_key


def compact(path: str | Path, tokenizer_id: str) -> int:
    """Write the base of a generation as of now; returns its sequence number, for `adopt_base`.

    For another process than the writer's: LMDB opens an environment once a process.

    Raises:
        IndexStoreError: no such ready generation, damaged tables, a full disk, or another compaction is
            at work.
    """
    path = Path(path)
    try:
        with read_store(path) as reading:
            (path / BASE).mkdir(exist_ok=True)
            with (path / BASE / f".{tokenizer_id}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                sequence = reading.meta.sequence
                write_base(
                    read_snapshot(reading, tokenizer_id), base_folder(path, tokenizer_id, sequence=sequence)
                )
    except BlockingIOError as error:
        raise IndexStoreError(f"index {path}: another compaction of {tokenizer_id} is at work") from error
    except OSError as error:
        raise IndexStoreError(f"index {path}: cannot write a base: {error}") from error
    return sequence


def move_on(file: StoreFile) -> None:
    """The next sequence number, with nothing changed: a base as of it is a new one to readers.

    Raises:
        IndexStoreError: the store cannot be written.
    """
    with file.write() as writing:
        writing.meta = replace(writing.meta, sequence=writing.meta.sequence + 1)


def adopt_base(file: StoreFile, tokenizer_id: str, *, sequence: int) -> None:
    """Readers start from these arrays from now on; change rows that they hold are deleted.

    Raises:
        IndexStoreError: the arrays are not there, are older than those in use, or the generation is gone.
    """
    generation = file.meta.generations.get(tokenizer_id)
    if generation is None or not generation.ready:
        raise IndexStoreError(f"index {file.path}: expected a ready generation, got {tokenizer_id}")
    if not generation.log_start <= sequence <= file.meta.sequence:
        raise IndexStoreError(
            f"index {file.path}: expected a base of {tokenizer_id} in {generation.log_start} .. "
            f"{file.meta.sequence}, got {sequence}"
        )
    base = read_base(base_folder(file.path, tokenizer_id, sequence=sequence))
    if (base.version, base.level_sizes) != (sequence, generation.level_sizes):
        raise IndexStoreError(
            f"index {file.path}: base {sequence} of {tokenizer_id} holds version {base.version}, "
            f"levels {base.level_sizes}"
        )
    with file.write() as writing:
        rows = _delete_changes(writing, tokenizer_id, upto=sequence)
        writing.log_rows[tokenizer_id] -= rows
        adopted = {tokenizer_id: replace(generation, base=sequence, log_start=sequence)}
        writing.meta = replace(writing.meta, generations=writing.meta.generations | adopted)
    remove_bases(file.path, tokenizer_id, keep=[s for s in (generation.base, sequence) if s is not None])


def _delete_changes(writing: WriteTransaction, tokenizer_id: str, *, upto: int) -> int:
    """Delete the change log up to a sequence number; returns how many rows that were."""
    size = change_dtype(len(writing.meta.generations[tokenizer_id].level_sizes)).itemsize
    table = writing.tables.generations[tokenizer_id].changes
    with writing.txn.cursor(db=table) as cursor:
        rows = {key: len(value) for key, value in takewhile(lambda row: row[0] <= number_key(upto), cursor)}
    for key in rows:
        writing.txn.delete(key, db=table)
    return sum(rows.values()) // size
