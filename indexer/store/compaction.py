"""New base arrays from the store, made beside the living writer, which then adopts them.

Letters: N ads, T levels.
"""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import numpy as np

from indexer.store.tables import Tables, read_ads, read_codes
from serving.index.base import write_base
from serving.index.layout import (
    ACTIVE,
    BASE,
    IndexStoreError,
    StoreMeta,
    base_folder,
    open_environment,
)
from serving.index.snapshot import IndexSnapshot

if TYPE_CHECKING:
    from indexer.store.index_store import IndexStore

_LOG = logging.getLogger(__name__)
_RETRY_S = 60.0
_FORGET_ADS = 10_000  # that are looked at in one step


def compact(path: str | Path, tokenizer_id: str) -> int:
    """Write the base of a generation as of now; returns its sequence number, for `IndexStore.adopt_base`.

    For another process than the writer's: LMDB opens an environment once a process.

    Raises:
        IndexStoreError: no such ready generation, damaged tables, a full disk, or another compaction is
            at work.
    """
    path = Path(path)
    environment = open_environment(path, readonly=True)
    try:
        with environment.begin() as transaction:
            tables = Tables.open(environment, transaction, create=False)
            meta = tables.read_meta(environment, transaction)
            (path / BASE).mkdir(exist_ok=True)
            with (path / BASE / f".{tokenizer_id}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                snapshot = read_snapshot(transaction, tables, tokenizer_id, meta=meta, where=str(path))
                write_base(snapshot, base_folder(path, tokenizer_id, sequence=meta.sequence))
    except BlockingIOError as error:
        raise IndexStoreError(f"index {path}: another compaction of {tokenizer_id} is at work") from error
    except OSError as error:
        raise IndexStoreError(f"index {path}: cannot write a base: {error}") from error
    except lmdb.Error as error:
        raise IndexStoreError(f"index {path}: damaged store: {error}") from error
    finally:
        environment.close()
    return meta.sequence


def read_snapshot(
    transaction: lmdb.Transaction, tables: Tables, tokenizer_id: str, *, meta: StoreMeta, where: str
) -> IndexSnapshot:
    """A generation as arrays.

    Raises:
        IndexStoreError: no such ready generation, or damaged tables.
    """
    generation = meta.generations.get(tokenizer_id)
    if generation is None or not generation.ready:
        raise IndexStoreError(f"{where}: expected a ready generation, got {tokenizer_id}")
    handles = tables.generations[tokenizer_id]
    ads = read_ads(transaction, tables, where=where)
    codes = read_codes(transaction, handles, levels=len(generation.level_sizes), where=where)
    ad_ids = codes["ad_id"].astype(np.int64)
    return snapshot_of(ad_ids, codes["codes"], ads, meta=meta, tokenizer_id=tokenizer_id, where=where)


def snapshot_of(
    ad_ids: np.ndarray,
    sids: np.ndarray,
    ads: np.ndarray,
    *,
    meta: StoreMeta,
    tokenizer_id: str,
    where: str,
    sequence: int | None = None,
) -> IndexSnapshot:
    """Snapshot of ads int64 [N] sorted with SIDs [N, T]; their statuses are in `ads` (see `read_ads`).

    Raises:
        IndexStoreError: they do not fit.
    """
    at = np.searchsorted(ads["ad_id"], ad_ids) if len(ads) != len(ad_ids) else np.arange(len(ads))
    at = np.minimum(at, max(len(ads) - 1, 0))
    if len(ad_ids) and (not len(ads) or (ads["ad_id"][at] != ad_ids).any()):
        raise IndexStoreError(f"{where}: damaged: {tokenizer_id} has SIDs of ads that are not there")
    try:
        return IndexSnapshot.build(
            ad_ids,
            sids,
            active=ads["status"][at] == ACTIVE,
            level_sizes=meta.generations[tokenizer_id].level_sizes,
            version=meta.sequence if sequence is None else sequence,
            tokenizer_id=tokenizer_id,
        )
    except ValueError as error:
        raise IndexStoreError(f"{where}: damaged codes of {tokenizer_id}: {error}") from error


class Compactor:
    """Compacts and forgets from time to time; `poll` it from the writer's loop. Nothing in it waits."""

    def __init__(
        self,
        store: IndexStore,
        *,
        max_changes: int = 5_000,
        max_age_s: float = 3600.0,
        tombstone_ttl_s: float = 30 * 86_400.0,
        forget_every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Of an open store.

        Args:
            store: the writer.
            max_changes: rows of the change log of a generation that start a compaction.
            max_age_s: age of the oldest row that starts one.
            tombstone_ttl_s: time after which a deleted ad is forgotten.
            forget_every_s: time between two steps of forgetting, each of 10,000 ads that are looked at.
            clock: seconds, monotonic.
        """
        self._store, self._max_changes, self._max_age_s = store, max_changes, max_age_s
        self._ttl_s, self._forget_every_s, self._clock = tombstone_ttl_s, forget_every_s, clock
        self._since: dict[str, float] = {}  # generation -> time at which its log was seen not to be empty
        self._retry_at: dict[str, float] = {}
        self._running: tuple[str, BaseProcess, Connection] | None = None
        self._forget_after, self._forget_at = -1, clock()
        self.compactions = 0
        self.failures = 0
        self.last_error = ""

    @property
    def running(self) -> str | None:
        """Generation that is being compacted."""
        return self._running[0] if self._running else None

    def poll(self) -> None:
        """Adopt what is finished, start what is due, forget the next few deleted ads.

        Raises:
            IndexStoreError: the store cannot be written. A compaction that fails is logged and tried again.
        """
        if self._running:
            self._finish()
        if not self._running and (name := self._due()):
            self.start(name)
        now = self._clock()
        if now >= self._forget_at:
            self._forget_at = now + self._forget_every_s
            before = self._store.now() - self._ttl_s
            following = self._store.forget_deleted(before=before, after=self._forget_after, limit=_FORGET_ADS)
            self._forget_after = -1 if following is None else following

    def start(self, tokenizer_id: str) -> None:
        """Compact a generation now, in a process of low priority; not where one is compacted already."""
        if self._running:
            return
        context = multiprocessing.get_context("spawn")  # a fork would share the writer's LMDB
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_in_process, args=(str(self._store.path), tokenizer_id, theirs), daemon=True
        )
        process.start()
        theirs.close()
        self._running = (tokenizer_id, process, ours)

    def close(self) -> None:
        """Stop what is running; the next one begins anew."""
        if self._running:
            _, process, ours = self._running
            process.terminate()
            process.join()
            ours.close()
            self._running = None

    def _due(self) -> str | None:
        now = self._clock()
        for name, generation in self._store.meta.generations.items():
            rows = self._store.log_rows.get(name, 0) if generation.ready else 0
            if not rows:
                self._since.pop(name, None)
                continue
            since = self._since.setdefault(name, now)
            if now >= self._retry_at.get(name, now) and (
                rows > self._max_changes or now - since >= self._max_age_s
            ):
                return name
        return None

    def _finish(self) -> None:
        assert self._running
        name, process, ours = self._running
        if process.is_alive():
            return
        process.join()
        result = ours.recv() if ours.poll() else f"its process ended with {process.exitcode}"
        ours.close()
        self._running = None
        try:
            if not isinstance(result, int):
                raise IndexStoreError(str(result))
            self._store.adopt_base(name, result)
        except IndexStoreError as error:
            self.failures, self.last_error = self.failures + 1, str(error)
            self._retry_at[name] = self._clock() + _RETRY_S
            _LOG.error("compaction of %s failed, again in %.0f s: %s", name, _RETRY_S, error)
            return
        self.compactions += 1
        self._since.pop(name, None)
        self._retry_at.pop(name, None)


def _in_process(path: str, tokenizer_id: str, result: Connection) -> None:
    os.nice(10)
    try:
        result.send(compact(path, tokenizer_id))
    except Exception as error:  # whatever it is, the writer goes on
        result.send(str(error) or repr(error))
