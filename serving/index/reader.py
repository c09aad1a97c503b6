"""Readers of the index: immutable snapshots that are swapped between batches, never inside one.

Letters: N known ads, M distinct live SIDs, T levels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np

from serving.index.layout import (
    ACTIVE,
    ADS,
    FORMAT_VERSION,
    META,
    IndexStoreError,
    open_environment,
    record_dtype,
)
from serving.index.trie import Trie


@dataclass(frozen=True)
class IndexSnapshot:
    """The index at one version. Paused and deleted ads are known (ad -> SID) but not in the trie.

    Attributes:
        version: sequence number of the last change it holds.
        tokenizer_id: tokenizer that made the SIDs.
        level_sizes: codebook size of each level.
        ad_ids: int64 [N] sorted.
        ad_sids: int32 [N, T].
        trie: the live SIDs.
        leaf_keys: int64 [M] live SIDs packed in mixed radix, sorted: leaf i of the trie is leaf_keys[i].
        leaf_ad_ptr: int32 [M + 1] into `leaf_ad_ids`.
        leaf_ad_ids: int64, active ads by leaf, ascending within a leaf.
    """

    version: int
    tokenizer_id: str
    level_sizes: tuple[int, ...]
    ad_ids: np.ndarray
    ad_sids: np.ndarray
    trie: Trie
    leaf_keys: np.ndarray
    leaf_ad_ptr: np.ndarray
    leaf_ad_ids: np.ndarray

    @classmethod
    def build(
        cls,
        ad_ids: np.ndarray,
        sids: np.ndarray,
        *,
        active: np.ndarray,
        level_sizes: tuple[int, ...],
        version: int = 0,
        tokenizer_id: str = "",
    ) -> IndexSnapshot:
        """Build from arrays: ad_ids int64 [N] distinct, sids int32 [N, T], active bool [N].

        Raises:
            ValueError: SIDs of these level sizes do not fit into 64 bits.
        """
        if math.prod(level_sizes) >= 1 << 63:
            raise ValueError(f"expected level sizes whose product is below 2**63, got {level_sizes}")
        order = np.argsort(ad_ids)
        ad_ids, sids, active = ad_ids[order], np.ascontiguousarray(sids[order], np.int32), active[order]
        keys = pack(sids[active], level_sizes)
        by_leaf = np.argsort(keys, kind="stable")  # stable: ads stay ascending within a leaf
        leaf_keys, first = np.unique(keys[by_leaf], return_index=True)
        live = np.flatnonzero(active)[by_leaf]
        return cls(
            version,
            tokenizer_id,
            level_sizes,
            ad_ids,
            sids,
            Trie.from_sorted(sids[live[first]].reshape(len(first), sids.shape[1])),
            leaf_keys,
            np.append(first, len(live)).astype(np.int32),
            ad_ids[live],
        )

    def sids_of(self, ad_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """SIDs int32 [n, T] of ads int64 [n], and known bool [n] (rows of unknown ads are undefined)."""
        if not len(self.ad_ids):
            return np.zeros((len(ad_ids), len(self.level_sizes)), np.int32), np.zeros(len(ad_ids), bool)
        at = np.minimum(np.searchsorted(self.ad_ids, ad_ids), len(self.ad_ids) - 1)
        return self.ad_sids[at], self.ad_ids[at] == ad_ids

    def leaves_of(self, sids: np.ndarray) -> np.ndarray:
        """Leaf of each SID, int64 [n]; -1 where the SID is not live or not a SID at all."""
        valid = ((sids >= 0) & (sids < np.asarray(self.level_sizes))).all(axis=-1)
        if not len(self.leaf_keys):
            return np.full(len(sids), -1)
        keys = pack(np.where(valid[:, None], sids, 0), self.level_sizes)
        at = np.minimum(np.searchsorted(self.leaf_keys, keys), len(self.leaf_keys) - 1)
        return np.where(valid & (self.leaf_keys[at] == keys), at, -1)

    def banned_leaves(self, ad_ids: np.ndarray) -> np.ndarray:
        """Leaves, sorted int64, all of whose active ads are in `ad_ids`: beams need not go there."""
        sids, known = self.sids_of(ad_ids)
        leaves = np.unique(self.leaves_of(sids[known]))
        leaves = leaves[leaves >= 0]
        rows, ads = self.ads_of_leaves(leaves)
        kept = np.bincount(rows[~np.isin(ads, ad_ids)], minlength=len(leaves))
        return leaves[kept == 0]

    def ads_of_leaves(self, leaves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Active ads of leaves [n] (-1: none): rows int64 [k] into `leaves`, ascending, and ads int64 [k]."""
        safe = np.maximum(leaves, 0)
        if not len(self.leaf_keys):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        count = np.where(leaves >= 0, self.leaf_ad_ptr[safe + 1] - self.leaf_ad_ptr[safe], 0)
        rows = np.repeat(np.arange(len(leaves)), count)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        return rows, self.leaf_ad_ids[self.leaf_ad_ptr[safe][rows] + within]


class IndexReader:
    """Follows an index on disk. One reader a process; `snapshot` stays valid as long as somebody holds it."""

    def __init__(self, path: str | Path) -> None:
        """Open the index and read it whole.

        Raises:
            IndexStoreError: missing, corrupted, or of another format version.
        """
        self.path = Path(path)
        self._environment = open_environment(self.path, readonly=True)
        self.snapshot = self._read()

    def refresh(self) -> bool:
        """Catch up with the writer; True when there was something new. Call between batches."""
        with self._environment.begin() as transaction:
            sequence = self._meta(transaction)["sequence"]
        if sequence == self.snapshot.version:
            return False
        self.snapshot = self._read()
        return True

    def close(self) -> None:
        """Release the file."""
        self._environment.close()

    def _meta(self, transaction: lmdb.Transaction) -> dict:
        try:
            database = self._environment.open_db(META, txn=transaction, create=False)
            meta = json.loads(bytes(transaction.get(b"index", db=database) or b"null"))
        except (lmdb.Error, ValueError) as error:
            raise IndexStoreError(
                f"index {self.path}: expected a readable `meta` record, got: {error}"
            ) from error
        if not isinstance(meta, dict):
            raise IndexStoreError(
                f"index {self.path}: expected a complete build, but it carries no `meta` record"
            )
        if meta.get("format") != FORMAT_VERSION:
            raise IndexStoreError(
                f"index {self.path}: expected format {FORMAT_VERSION}, got {meta.get('format')}"
            )
        missing = [k for k in ("sequence", "tokenizer_id", "level_sizes") if k not in meta]
        if missing:
            raise IndexStoreError(f"index {self.path}: expected {missing[0]} in `meta`, got {sorted(meta)}")
        return meta

    def _read(self) -> IndexSnapshot:
        with self._environment.begin() as transaction:
            meta = self._meta(transaction)
            level_sizes = tuple(meta["level_sizes"])
            try:
                database = self._environment.open_db(ADS, txn=transaction, create=False)
                with transaction.cursor(db=database) as cursor:
                    pairs = [(bytes(k), bytes(v)) for k, v in cursor]
            except lmdb.Error as error:
                raise IndexStoreError(f"index {self.path}: corrupted `ads` table: {error}") from error
        try:
            ad_ids = np.frombuffer(b"".join(k for k, _ in pairs), ">i8").astype(np.int64)
            records = np.frombuffer(b"".join(v for _, v in pairs), record_dtype(len(level_sizes)))
        except ValueError as error:
            raise IndexStoreError(f"index {self.path}: corrupted `ads` records: {error}") from error
        if len(records) != len(ad_ids):
            raise IndexStoreError(f"index {self.path}: expected {len(ad_ids)} records, got {len(records)}")
        return IndexSnapshot.build(
            ad_ids,
            records["codes"],
            active=records["status"] == ACTIVE,
            level_sizes=level_sizes,
            version=int(meta["sequence"]),
            tokenizer_id=str(meta["tokenizer_id"]),
        )


def pack(sids: np.ndarray, level_sizes: tuple[int, ...]) -> np.ndarray:
    """Mixed-radix int64 [n] of SIDs [n, T]; order of the numbers is lexicographic order of the SIDs."""
    keys = np.zeros(len(sids), np.int64)
    for level, size in enumerate(level_sizes):
        keys = keys * size + sids[:, level]
    return keys
