"""Backups of the store, made beside the living writer, and back."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb

from indexer.store.arrays import read_snapshot
from indexer.store.bases import place_base, remove_bases
from indexer.store.digests import digest_problems, scan, write_digests
from indexer.store.file import fill_up
from indexer.store.lock import WriterLock
from indexer.store.tables import Tables, write_meta
from indexer.store.transaction import ReadTransaction, read_environment, read_store
from serving.files import new_folder, number_of, read_object, sha256
from serving.index.layout import BASE, STORE, IndexStoreError, StoreMeta, open_environment

BACKUP_FORMAT = 1
MANIFEST = "backup.json"
_UNKNOWN_SEQUENCE_STEP = 1 << 20  # above the highest base, where the target itself cannot be read


def back_up(path: str | Path, out: str | Path) -> dict[str, Any]:
    """Copy the store to the folder `out`, which must not exist; it appears whole or not at all.

    For another process than the writer's: LMDB opens an environment once a process.

    Returns:
        The manifest: sha256, bytes, sequence, ads, SIDs of each generation, time.

    Raises:
        IndexStoreError: `out` exists, the index is missing or damaged, or the disk is full.
    """
    out = Path(out)
    if out.exists():
        raise IndexStoreError(f"backup {out}: expected a folder that does not exist")
    try:
        with closing(open_environment(Path(path), readonly=True)) as environment, new_folder(out) as work:
            (work / STORE).mkdir()
            environment.copy(str(work / STORE), compact=True)
            file = work / STORE / "data.mdb"
            manifest = {
                "format": BACKUP_FORMAT,
                "sha256": sha256(file),
                "bytes": file.stat().st_size,
                "time": int(time.time()),
                **_counts(work),
            }
            (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    except (OSError, lmdb.Error) as error:
        raise IndexStoreError(f"backup {out}: cannot be written: {error}") from error
    return manifest


def restore(backup: str | Path, path: str | Path, *, map_size: int = 1 << 36) -> int:
    """Put a backup in place of what the index at `path` holds, in one transaction; new sequence number.

    Readers follow: the sequence number goes on above the highest that the target had, and they start from new
    bases. Where the target is damaged, its store is moved aside to `store.damaged-<unix seconds>` first.

    Raises:
        IndexStoreError: the backup is damaged, a writer holds the target, or the disk is full; the target
            stays as it was (or is empty, where it was damaged).
    """
    backup, path = Path(backup), Path(path)
    _check(backup)
    try:
        with closing(WriterLock(path)), closing(_open(backup / STORE)) as source:
            seen = _highest_sequence(path)
            (path / STORE).mkdir(exist_ok=True)
            with (
                closing(open_environment(path, readonly=False, map_size=map_size)) as target,
                read_environment(source) as reading,
            ):
                return _replace(target, path, source=source, reading=reading, seen=seen)
    except (OSError, lmdb.Error) as error:
        raise IndexStoreError(f"index {path}: cannot restore {backup}: {error}") from error


def _replace(
    target: lmdb.Environment, path: Path, *, source: lmdb.Environment, reading: ReadTransaction, seen: int
) -> int:
    """Replace all of the target by what is read of the source; new sequence number, above `seen`."""
    sequence = max(seen, reading.meta.sequence) + 1
    reading.meta = _moved_on(reading.meta, sequence)
    names = _names(reading.txn)
    placed = {
        name: place_base(path, name, sequence=sequence)
        for name, generation in reading.meta.generations.items()
        if generation.ready
    }
    with ExitStack() as bases:
        for base in placed.values():
            bases.enter_context(base)
        with target.begin(write=True) as txn:
            for table in {*names, *_names(txn)}:
                known = table in names and not table.startswith(b"changes/")  # they are in the new bases
                _copy_table(
                    table, source=source, target=target, reading=reading.txn if known else None, txn=txn
                )
            tables = Tables.open(target, txn, create=True)
            write_meta(tables, txn, meta=reading.meta)
            for name, base in placed.items():
                base.write(read_snapshot(reading, name))
            write_digests(tables, txn, digests=scan(tables, txn))
        fill_up(target)
    folder = path / BASE
    for old in folder.iterdir() if folder.is_dir() else ():
        if not old.name.startswith("."):
            remove_bases(path, old.name, keep=[sequence] if old.name in placed else [])
    return sequence


def _moved_on(meta: StoreMeta, sequence: int) -> StoreMeta:
    """Ready generations begin anew at a sequence number."""
    generations = {
        name: replace(g, base=sequence, log_start=sequence) if g.ready else g
        for name, g in meta.generations.items()
    }
    return replace(meta, sequence=sequence, generations=generations)


def _copy_table(
    name: bytes,
    *,
    source: lmdb.Environment,
    target: lmdb.Environment,
    reading: lmdb.Transaction | None,
    txn: lmdb.Transaction,
) -> None:
    """One table of the target as in the source; `reading` None: empty."""
    flags = {"dupsort": True, "dupfixed": True} if name.startswith(b"sids/") else {}
    into = target.open_db(name, txn=txn, **flags)
    txn.drop(into, delete=False)
    if reading is not None:
        table = source.open_db(name, txn=reading, create=False, **flags)
        with reading.cursor(db=table) as cursor, txn.cursor(db=into) as writer:
            writer.putmulti(iter(cursor), dupdata=bool(flags), append=not flags)


def _names(txn: lmdb.Transaction) -> list[bytes]:
    with txn.cursor() as cursor:  # the main database: name -> root of each
        return [bytes(name) for name in cursor.iternext(keys=True, values=False)]


def _highest_sequence(path: Path) -> int:
    """Above it, no reader of the target has seen anything. A damaged store is moved aside."""
    bases = max((number_of(f.name) or 0 for f in (path / BASE).glob("*/*")), default=0)
    if not (path / STORE / "data.mdb").exists():
        return bases
    try:
        with read_store(path) as reading:
            return max(bases, reading.meta.sequence)
    except (IndexStoreError, lmdb.Error):
        (path / STORE).rename(path / f"{STORE}.damaged-{int(time.time())}")
        return bases + _UNKNOWN_SEQUENCE_STEP


def _check(backup: Path) -> None:
    try:
        manifest = read_object(backup / MANIFEST)
        format_, expected = manifest["format"], manifest["sha256"]
        if format_ != BACKUP_FORMAT:
            raise IndexStoreError(f"backup {backup}: expected format {BACKUP_FORMAT}, got {format_}")
        actual = sha256(backup / STORE / "data.mdb")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexStoreError(f"backup {backup}: expected a backup of an index, got: {error!r}") from error
    if actual != expected:
        raise IndexStoreError(f"backup {backup}: expected sha256 {expected}, got {actual}: it is damaged")


def _counts(work: Path) -> dict[str, Any]:
    with closing(_open(work / STORE)) as environment, read_environment(environment) as reading:
        for problem in digest_problems(reading.tables, reading.txn, where=reading.path):
            raise IndexStoreError(f"index: {problem}; it is not worth a backup")
        handles = reading.tables.generations
        return {
            "sequence": reading.meta.sequence,
            "ads": reading.entries(reading.tables.ads),
            "dead_letters": reading.entries(reading.tables.dead),
            "generations": {name: reading.entries(h.codes) for name, h in handles.items()},
        }


def _open(folder: Path) -> lmdb.Environment:
    # Without a lock file, so that a backup may lie where nobody can write.
    return lmdb.open(str(folder), readonly=True, lock=False, max_dbs=64, create=False, readahead=False)
