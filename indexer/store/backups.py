"""Snapshots of the store beside the living writer, and back."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb

from indexer.store.bases import place_base, remove_bases
from indexer.store.compaction import read_snapshot
from indexer.store.lock import WriterLock
from indexer.store.tables import Tables
from serving.files import new_folder, sha256
from serving.index.layout import BASE, STORE, IndexStoreError, open_environment

SNAPSHOT_FORMAT = 1
MANIFEST = "snapshot.json"
_UNKNOWN_SEQUENCE_STEP = 1 << 20  # above the highest base, where the target itself cannot be read


def snapshot(
    path: str | Path, out: str | Path, *, environment: lmdb.Environment | None = None
) -> dict[str, Any]:
    """Copy the store to the folder `out`, which must not exist; it appears whole or not at all.

    Args:
        path: the index.
        out: the new folder.
        environment: in the writer's process: its own (LMDB opens one once a process).

    Returns:
        The manifest: sha256, bytes, sequence, ads, SIDs of each generation, time.

    Raises:
        IndexStoreError: `out` exists, the index is missing or damaged, or the disk is full.
    """
    path, out = Path(path), Path(out)
    if out.exists():
        raise IndexStoreError(f"snapshot {out}: expected a folder that does not exist")
    own = None
    try:
        own = open_environment(path, readonly=True) if environment is None else None
        with new_folder(out) as work:
            (work / STORE).mkdir()
            (environment or own).copy(str(work / STORE), compact=True)  # type: ignore[union-attr]
            file = work / STORE / "data.mdb"
            manifest = {
                "format": SNAPSHOT_FORMAT,
                "sha256": sha256(file),
                "bytes": file.stat().st_size,
                "time": int(time.time()),
                **_counts(work),
            }
            (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    except (OSError, lmdb.Error) as error:
        raise IndexStoreError(f"snapshot {out}: cannot be written: {error}") from error
    finally:
        if own:
            own.close()
    return manifest


def restore(source: str | Path, path: str | Path, *, map_size: int = 1 << 36) -> int:
    """Put a snapshot in place of what the index at `path` holds, in one transaction; new sequence number.

    Readers follow: the sequence number goes on above the highest that the target had, and they start from new
    bases. Where the target is damaged, its store is moved aside to `store.damaged-<unix seconds>` first.

    Raises:
        IndexStoreError: the snapshot is damaged, a writer holds the target, or the disk is full; the target
            stays as it was (or is empty, where it was damaged).
    """
    source, path = Path(source), Path(path)
    _check(source)
    with ExitStack() as stack:
        lock = WriterLock(path)
        stack.callback(lock.close)
        try:
            old = _open(source / STORE)
            stack.callback(old.close)
            seen = _highest_sequence(path)
            (path / STORE).mkdir(exist_ok=True)
            new = open_environment(path, readonly=False, map_size=map_size)
            stack.callback(new.close)
            return _copy(old, new, path, seen=seen, stack=stack)
        except (OSError, lmdb.Error) as error:
            raise IndexStoreError(f"index {path}: cannot restore {source}: {error}") from error


def _copy(old: lmdb.Environment, new: lmdb.Environment, path: Path, *, seen: int, stack: ExitStack) -> int:
    with old.begin() as source:
        tables = Tables.open(old, source, create=False)
        meta = tables.read_meta(old, source)
        sequence = max(seen, meta.sequence) + 1
        generations = {
            name: replace(g, base=sequence, log_start=sequence) if g.ready else g
            for name, g in meta.generations.items()
        }
        meta = replace(meta, sequence=sequence, generations=generations)
        names = _names(old, source)
        placed = {n: place_base(path, n, sequence=sequence) for n, g in generations.items() if g.ready}
        with ExitStack() as bases:
            for base in placed.values():
                bases.enter_context(base)
            with new.begin(write=True) as target:
                for table in {*names, *_names(new, target)}:
                    _copy_table(old, new, table, source=source, target=target, empty=table not in names)
                target_tables = Tables.open(new, target, create=True)
                for handles in target_tables.generations.values():
                    target.drop(handles.changes, delete=False)
                target_tables.write_meta(target, meta)
                for name, base in placed.items():
                    base.write(read_snapshot(source, tables, name, meta=meta, where=str(old.path())))
    folder = path / BASE
    for old_base in folder.iterdir() if folder.is_dir() else ():
        if not old_base.name.startswith("."):
            remove_bases(path, old_base.name, keep=[sequence] if old_base.name in placed else [])
    return sequence


def _copy_table(
    old: lmdb.Environment,
    new: lmdb.Environment,
    name: bytes,
    *,
    source: lmdb.Transaction,
    target: lmdb.Transaction,
    empty: bool,
) -> None:
    flags = {"dupsort": True, "dupfixed": True} if name.startswith(b"sids/") else {}
    into = new.open_db(name, txn=target, **flags)
    target.drop(into, delete=False)
    if not empty:
        table = old.open_db(name, txn=source, create=False, **flags)
        with source.cursor(db=table) as cursor, target.cursor(db=into) as writer:
            writer.putmulti(iter(cursor), dupdata=bool(flags), append=not flags)


def _names(environment: lmdb.Environment, transaction: lmdb.Transaction) -> list[bytes]:
    with transaction.cursor() as cursor:  # the main database: name -> root of each
        return [bytes(name) for name in cursor.iternext(keys=True, values=False)]


def _highest_sequence(path: Path) -> int:
    """Above it, no reader of the target has seen anything. A damaged store is moved aside."""
    bases = max((int(f.name) for f in (path / BASE).glob("*/*") if f.name.isdigit()), default=0)
    if not (path / STORE / "data.mdb").exists():
        return bases
    try:
        environment = open_environment(path, readonly=True)
        try:
            with environment.begin() as transaction:
                tables = Tables.open(environment, transaction, create=False)
                return max(bases, tables.read_meta(environment, transaction).sequence)
        finally:
            environment.close()
    except (IndexStoreError, lmdb.Error):
        (path / STORE).rename(path / f"{STORE}.damaged-{int(time.time())}")
        return bases + _UNKNOWN_SEQUENCE_STEP


def _check(source: Path) -> None:
    try:
        manifest = json.loads((source / MANIFEST).read_text())
        format_, expected = manifest["format"], manifest["sha256"]
        if format_ != SNAPSHOT_FORMAT:
            raise IndexStoreError(f"snapshot {source}: expected format {SNAPSHOT_FORMAT}, got {format_}")
        actual = sha256(source / STORE / "data.mdb")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexStoreError(
            f"snapshot {source}: expected a snapshot of an index, got: {error!r}"
        ) from error
    if actual != expected:
        raise IndexStoreError(f"snapshot {source}: expected sha256 {expected}, got {actual}: it is damaged")


def _counts(work: Path) -> dict[str, Any]:
    environment = _open(work / STORE)
    try:
        with environment.begin() as transaction:
            tables = Tables.open(environment, transaction, create=False)
            meta = tables.read_meta(environment, transaction)
            count = lambda table: transaction.stat(table)["entries"]  # noqa: E731
            return {
                "sequence": meta.sequence,
                "ads": count(tables.ads),
                "dead_letters": count(tables.dead),
                "generations": {n: count(h.codes) for n, h in tables.generations.items()},
            }
    finally:
        environment.close()


def _open(folder: Path) -> lmdb.Environment:
    # Without a lock file, so that a snapshot may lie where nobody can write.
    return lmdb.open(str(folder), readonly=True, lock=False, max_dbs=64, create=False, readahead=False)
