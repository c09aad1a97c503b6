"""The one writer of the index. Layout: `serving.index.layout`."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import lmdb
import numpy as np

from serving.index.layout import (
    ACTIVE,
    ADS,
    FORMAT_VERSION,
    META,
    SIDS,
    STATUSES,
    IndexStoreError,
    ad_key,
    open_environment,
    record_dtype,
    sid_key,
)


@dataclass(frozen=True)
class AdRecord:
    """One ad as the index keeps it."""

    ad_id: int
    codes: tuple[int, ...]
    status: str = "active"
    version: int = 0


class IndexWriter:
    """Opens an index for writing; a second writer is refused. Every `apply` is one durable transaction."""

    def __init__(self, path: Path, *, level_sizes: tuple[int, ...], tokenizer_id: str) -> None:
        """Open or create.

        Raises:
            IndexStoreError: another writer holds it, or it belongs to another tokenizer.
        """
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.level_sizes, self.tokenizer_id = path, level_sizes, tokenizer_id
        self._lock = (path / "writer.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise IndexStoreError(f"index {path}: another writer holds it; stop it first") from error
        self._environment = open_environment(path, readonly=False)
        self._meta = self._environment.open_db(META)
        self._ads = self._environment.open_db(ADS)
        self._sids = self._environment.open_db(SIDS, dupsort=True, dupfixed=True)
        self._dtype = record_dtype(len(level_sizes))
        with self._environment.begin() as transaction:
            meta = json.loads(bytes(transaction.get(b"index", db=self._meta) or b"null"))
        wanted = {"format": FORMAT_VERSION, "tokenizer_id": tokenizer_id, "level_sizes": list(level_sizes)}
        differing = [k for k in wanted if meta and meta.get(k) != wanted[k]]
        if differing:
            key = differing[0]
            self.close()
            raise IndexStoreError(
                f"index {path}: expected {key} {wanted[key]}, it holds {meta.get(key)}; build a new one"
            )

    def apply(self, records: Iterable[AdRecord]) -> int:
        """Create or replace ads in one transaction; returns the new sequence number.

        Raises:
            ValueError: a record does not fit; nothing of the call is applied.
        """
        with self._environment.begin(write=True) as transaction:
            for record in records:
                self._check(record)
                key, codes = ad_key(record.ad_id), np.asarray(record.codes, np.int32)
                old = transaction.get(key, db=self._ads)
                if old is not None:
                    before = np.frombuffer(old, self._dtype)[0]
                    if before["status"] == ACTIVE:
                        transaction.delete(sid_key(before["codes"]), key, db=self._sids)
                row = np.zeros((), self._dtype)
                row["status"], row["version"] = STATUSES.index(record.status), record.version
                row["codes"] = codes
                transaction.put(key, row.tobytes(), db=self._ads)
                if record.status == "active":
                    transaction.put(sid_key(codes), key, db=self._sids)
            return self._bump(transaction)

    def build(self, ad_ids: np.ndarray, sids: np.ndarray, *, statuses: np.ndarray) -> int:
        """Replace the whole content in one transaction.

        Args:
            ad_ids: int64 [N], distinct.
            sids: int32 [N, T].
            statuses: str [N], one of `STATUSES` each.

        Raises:
            ValueError: ids, codes or statuses that do not fit; the old content stays.
        """
        self._check_arrays(ad_ids, sids, statuses)
        order = np.argsort(ad_ids)
        ad_ids, sids, statuses = ad_ids[order], sids[order], statuses[order]
        rows = np.zeros(len(ad_ids), self._dtype)
        for code, status in enumerate(STATUSES):
            rows["status"][statuses == status] = code
        rows["codes"] = sids
        keys = [ad_key(a) for a in ad_ids.tolist()]
        live = np.flatnonzero(rows["status"] == ACTIVE)
        live = live[np.lexsort(sids[live].T[::-1])]
        with self._environment.begin(write=True) as transaction:
            for database in (self._ads, self._sids):
                transaction.drop(database, delete=False)
            # Both lists are in key order, so LMDB can append instead of searching for each.
            with transaction.cursor(db=self._ads) as cursor:
                cursor.putmulti(zip(keys, (r.tobytes() for r in rows), strict=True), append=True)
            with transaction.cursor(db=self._sids) as cursor:
                cursor.putmulti(((sid_key(sids[i]), keys[i]) for i in live), dupdata=True)
            return self._bump(transaction)

    def close(self) -> None:
        """Release the file and the writer's lock."""
        self._environment.close()
        self._lock.close()

    def __enter__(self) -> IndexWriter:
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _bump(self, transaction: lmdb.Transaction) -> int:
        meta = json.loads(bytes(transaction.get(b"index", db=self._meta) or b"{}"))
        sequence = int(meta.get("sequence", 0)) + 1
        content = {
            "format": FORMAT_VERSION,
            "sequence": sequence,
            "tokenizer_id": self.tokenizer_id,
            "level_sizes": list(self.level_sizes),
        }
        transaction.put(b"index", json.dumps(content).encode(), db=self._meta)
        return sequence

    def _check(self, record: AdRecord) -> None:
        if not 0 <= record.ad_id < 1 << 63:
            raise ValueError(f"ad {record.ad_id}: expected an id in 0 .. 2**63 - 1")
        if record.status not in STATUSES:
            raise ValueError(
                f"ad {record.ad_id}: expected status {' | '.join(STATUSES)}, got {record.status!r}"
            )
        if len(record.codes) != len(self.level_sizes) or not all(
            0 <= c < v for c, v in zip(record.codes, self.level_sizes, strict=False)
        ):
            raise ValueError(
                f"ad {record.ad_id}: expected one code a level below {self.level_sizes}, got {record.codes}"
            )

    def _check_arrays(self, ad_ids: np.ndarray, sids: np.ndarray, statuses: np.ndarray) -> None:
        if sids.shape != (len(ad_ids), len(self.level_sizes)) or len(statuses) != len(ad_ids):
            raise ValueError(
                f"expected SIDs {(len(ad_ids), len(self.level_sizes))} and as many statuses, got "
                f"{sids.shape} and {len(statuses)}"
            )
        bad = np.flatnonzero(
            ((sids < 0) | (sids >= np.array(self.level_sizes))).any(axis=1)
            | (ad_ids < 0)
            | ~np.isin(statuses, STATUSES)
        )
        if len(bad):
            i = bad[0]
            self._check(AdRecord(int(ad_ids[i]), tuple(sids[i].tolist()), str(statuses[i])))
        ids, counts = np.unique(ad_ids, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"expected distinct ads, ad {ids[counts > 1][0]} occurs {counts.max()} times")
