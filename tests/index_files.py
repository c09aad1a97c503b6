"""Writes an index as `serving.index.layout` says it lies on disk, as far as readers look at it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from serving.index.base import write_base
from serving.index.layout import (
    INDEX_KEY,
    META,
    STORE,
    Generation,
    StoreMeta,
    base_folder,
    change_dtype,
    generation_tables,
    number_key,
)
from serving.index.snapshot import IndexSnapshot

Change = tuple[int, tuple[int, ...], bool, bool]
"""(ad, SID, active, known)."""


class IndexFiles:
    """An index on disk and, in `state`, what must be read from it: tokenizer id -> {ad: (sid, active)}.

    LMDB opens a store once a process, and this one may have a reader: every step is a process of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.meta = path, StoreMeta()
        self.state: dict[str, dict[int, tuple[tuple[int, ...], bool]]] = {}

    def generation(self, name: str, level_sizes: tuple[int, ...], *, ready: bool = True) -> None:
        """A new generation without ads and without a base."""
        self.state[name] = {}
        self._set(name, Generation(level_sizes, ready=ready, log_start=self.meta.sequence))

    def apply(self, changes: dict[str, list[Change]]) -> int:
        """One transaction that changes ads in several generations."""
        self.meta = replace(self.meta, sequence=self.meta.sequence + 1)
        rows = {}
        for name, ads in changes.items():
            generation = self.meta.generations[name]
            table = np.zeros(len(ads), change_dtype(len(generation.level_sizes)))
            for row, (ad, sid, active, known) in zip(table, ads, strict=True):
                row["ad_id"], row["codes"], row["active"], row["known"] = ad, sid, active, known
                if known:
                    self.state[name][ad] = (sid, active)
                else:
                    self.state[name].pop(ad, None)
            rows[generation_tables(name).changes, number_key(self.meta.sequence)] = table.tobytes()
        self.put(rows)
        return self.meta.sequence

    def compact(self, name: str, *, keep_log: int = 0) -> Path:
        """Write the state as the base; changes that it holds are removed but for the last `keep_log`."""
        snapshot = self.snapshot(name)
        folder = base_folder(self.path, name, sequence=snapshot.version)
        write_base(snapshot, folder)
        start = max(self.meta.sequence - keep_log, self.meta.generations[name].log_start)
        gone = {(generation_tables(name).changes, number_key(s)): None for s in range(1, start + 1)}
        generation = self.meta.generations[name]
        self._set(name, replace(generation, base=snapshot.version, log_start=start), also=gone)
        return folder

    def drop(self, name: str) -> None:
        """The generation is no longer there."""
        self.meta = replace(
            self.meta, generations={k: v for k, v in self.meta.generations.items() if k != name}
        )
        self.put({})

    def snapshot(self, name: str) -> IndexSnapshot:
        """What a reader must see."""
        state, level_sizes = self.state[name], self.meta.generations[name].level_sizes
        ads = sorted(state)
        return IndexSnapshot.build(
            np.array(ads, np.int64),
            np.array([state[a][0] for a in ads], np.int32).reshape(len(ads), len(level_sizes)),
            active=np.array([state[a][1] for a in ads], bool),
            level_sizes=level_sizes,
            version=self.meta.sequence,
            tokenizer_id=name,
        )

    def put(self, rows: dict[tuple[bytes, bytes], bytes | None]) -> None:
        """Write (table, key) -> value (None removes it) and `meta`, in one transaction."""
        content: dict[tuple[bytes, bytes], bytes | None] = {(META, INDEX_KEY): self.meta.encode(), **rows}
        found = [[t.hex(), k.hex(), v if v is None else v.hex()] for (t, k), v in content.items()]
        text = json.dumps([str(self.path / STORE), found]).encode()
        subprocess.run([sys.executable, "-c", _PUT], input=text, check=True)

    def _set(self, name: str, generation: Generation, *, also: dict | None = None) -> None:
        self.meta = replace(self.meta, generations={**self.meta.generations, name: generation})
        self.put(also or {})


_PUT = """
import json, lmdb, pathlib, sys
path, rows = json.load(sys.stdin)
pathlib.Path(path).mkdir(parents=True, exist_ok=True)
environment = lmdb.open(path, max_dbs=30, map_size=1 << 28)
with environment, environment.begin(write=True) as transaction:
    for row in rows:
        table, key, value = (None if part is None else bytes.fromhex(part) for part in row)
        database = environment.open_db(table, txn=transaction)
        if value is None:
            transaction.delete(key, db=database)
        else:
            transaction.put(key, value, db=database)
"""
