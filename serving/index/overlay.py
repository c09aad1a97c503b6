"""A base and the ads that changed since: a live snapshot that costs as much as the changes, not the base.

Letters: n changed ads, M leaves of the base, J leaves of the overlay, k ads of patched leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from serving.index.audience_table import AudienceTable
from serving.index.eligible import Eligible, States, before, meets
from serving.index.keys import pack, pack_valid, run_starts, unpack
from serving.index.snapshot import IndexSnapshot, Snapshot, sort_stable
from serving.index.trie import PrefixTree, Trie
from serving.index.union import UnionTrie, member, ranges


@dataclass(frozen=True)
class Changes:
    """Ads that changed since a base, as they are now; the last change of an ad counts.

    Attributes:
        ad_ids: int64 [n] ascending, distinct.
        active: bool [n].
        known: bool [n]; False is an ad that was forgotten.
        keys: int64 [n], packed SIDs; 0 for forgotten ads.
        audiences: int32 [n], numbers of their audiences.
        accounts: int64 [n], ids of their accounts' keys.
    """

    ad_ids: np.ndarray
    active: np.ndarray
    known: np.ndarray
    keys: np.ndarray
    audiences: np.ndarray
    accounts: np.ndarray

    @classmethod
    def none(cls) -> Changes:
        """No changes."""
        kinds = (np.int64, bool, bool, np.int64, np.int32, np.int64)
        return cls(*(np.zeros(0, kind) for kind in kinds))

    def with_rows(self, rows: np.ndarray, level_sizes: tuple[int, ...]) -> Changes:
        """These and then rows of `serving.index.layout.change_dtype`, oldest first.

        Raises:
            ValueError: a code is not of its level.
        """
        # The last row of each ad: the first of its run once they are reversed.
        ad_ids, last = np.unique(rows["ad_id"][::-1], return_index=True)
        rows = rows[::-1][last]
        known = rows["known"] != 0
        keys = np.zeros(len(rows), np.int64)
        keys[known] = pack(rows["codes"][known], level_sizes)
        new = Changes(
            ad_ids.astype(np.int64),
            known & (rows["active"] != 0),
            known,
            keys,
            audiences=log_column(rows, "audience", np.int32),
            accounts=log_column(rows, "account", np.int64),
        )
        if not len(self.ad_ids):
            return new
        kept = ~member(new.ad_ids, self.ad_ids)[1] if len(new.ad_ids) else np.ones(len(self.ad_ids), bool)
        at = np.searchsorted(self.ad_ids[kept], new.ad_ids)
        names = [f.name for f in fields(self)]
        return Changes(*(np.insert(getattr(self, f)[kept], at, getattr(new, f)) for f in names))


class _Live(NamedTuple):
    """Live SIDs and their ads.

    Attributes:
        trie: leaves are numbered as in `UnionTrie`.
        patched: int64, leaves whose ads are not those of the base, ascending; all J of the overlay are.
        ptr: int64 [len(patched) + 1] into `ads`.
        ads: int64 [k], active ads by patched leaf, ascending within a leaf.
    """

    trie: UnionTrie
    patched: np.ndarray
    ptr: np.ndarray
    ads: np.ndarray


@dataclass(frozen=True)
class OverlaySnapshot(Snapshot):
    """The index at one version, as a base and what changed since.

    The trie of what is live is put together when it is first asked for: who only looks up SIDs of ads, or ads
    of SIDs, never pays for it.

    Attributes:
        version: sequence number of the last change it holds.
        tokenizer_id: tokenizer that made the SIDs.
        level_sizes: codebook size of each level.
        base: the base.
        changes: ads that differ from it.
        audiences: see `Snapshot`.
    """

    version: int
    tokenizer_id: str
    level_sizes: tuple[int, ...]
    base: IndexSnapshot
    changes: Changes
    audiences: AudienceTable | None = None

    @cached_property
    def trie(self) -> PrefixTree:  # type: ignore[override]
        """The live SIDs."""
        return self._live.trie

    @cached_property
    def _live(self) -> _Live:
        return _join(self.base, self.changes)

    @cached_property
    def _active_by_key(self) -> tuple[np.ndarray, np.ndarray]:
        """Packed SIDs int64, ascending, of active ads that changed, and the ads, ascending within a SID."""
        changes = self.changes
        keys, order = sort_stable(changes.keys[changes.active], bound=math.prod(self.level_sizes))
        return keys, changes.ad_ids[changes.active][order]

    @property
    def ad_ids(self) -> np.ndarray:
        """Known ads, int64 ascending; gathered anew at each call."""
        changes = self.changes
        same = ~member(changes.ad_ids, self.base.ad_ids)[1]
        return np.sort(np.concatenate([self.base.ad_ids[same], changes.ad_ids[changes.known]]))

    @property
    def leaf_ad_ids(self) -> np.ndarray:
        """See `Snapshot.leaf_ad_ids`."""
        return self.ads_of_leaves(self._live.trie.live_leaves())[1]

    def sids_of(self, ad_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Snapshot.sids_of`."""
        at, known = member(self.base.ad_ids, ad_ids)
        keys = self.base.ad_keys[at]
        at, changed = member(self.changes.ad_ids, ad_ids)
        keys = np.where(changed, self.changes.keys[at], keys)
        return unpack(keys, self.level_sizes), np.where(changed, self.changes.known[at], known)

    def ads_of_sids(self, sids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Snapshot.ads_of_sids`."""
        rows, ads = self.base.ads_of_leaves(self.base.trie.find(sids))
        same = ~member(self.changes.ad_ids, ads)[1]
        keys, active = self._active_by_key
        wanted = pack_valid(sids, self.level_sizes)
        begin, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        changed_rows, at = ranges(begin, end - begin)
        rows, ads = np.append(rows[same], changed_rows), np.append(ads[same], active[at])
        order = np.lexsort((ads, rows))
        return rows[order], ads[order]

    def ads_of_leaves(self, leaves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Snapshot.ads_of_leaves`."""
        live = self._live
        if not len(live.patched):
            return self.base.ads_of_leaves(leaves)
        at, patched = member(live.patched, leaves)
        safe = np.where(patched, 0, np.maximum(leaves, 0))
        begin = np.where(patched, live.ptr[at], self.base.leaf_ad_ptr[safe])
        end = np.where(patched, live.ptr[at + 1], self.base.leaf_ad_ptr[safe + 1])
        count = np.where(leaves >= 0, end - begin, 0)
        rows = np.repeat(np.arange(len(leaves)), count)
        position = np.arange(len(rows)) + (begin - (np.cumsum(count) - count))[rows]
        here = patched[rows]
        ads = np.empty(len(rows), np.int64)
        ads[here] = live.ads[position[here]]
        ads[~here] = self.base.ad_ids[self.base.leaf_ads[position[~here]]]
        return rows, ads

    def traits_of(self, ad_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Snapshot.traits_of`."""
        audiences, accounts = self.base.traits_of(ad_ids)
        at, changed = member(self.changes.ad_ids, ad_ids)
        return (
            np.where(changed, self.changes.audiences[at], audiences),
            np.where(changed, self.changes.accounts[at], accounts),
        )

    @cached_property
    def _states(self) -> States:
        return States()

    def _eligible(self, satisfied: np.ndarray | None, excluded: tuple[int, ...]) -> Eligible:
        make = partial(self._made, satisfied, excluded)
        return self._states.of(make, satisfied=satisfied, excluded=excluded)

    def _made(self, satisfied: np.ndarray | None, excluded: tuple[int, ...]) -> Eligible:
        live = self._live
        audiences, accounts = self.traits_of(live.ads)
        shown = ~np.isin(accounts, excluded)
        if satisfied is not None:
            shown &= meets(satisfied, audiences)
        owner = np.repeat(np.arange(len(live.patched)), np.diff(live.ptr))
        patched = np.bincount(owner[shown], minlength=len(live.patched)) > 0
        count = self.base.trie.leaves
        in_base = np.searchsorted(live.patched, count)  # of the patched leaves, the others are the overlay's
        leaves = self.base._eligible(satisfied, excluded).leaves[:count].copy()
        leaves[live.patched[:in_base]] = patched[:in_base]
        below = partial(
            live.trie.counts_below, before=before(leaves), overlay_before=before(patched[in_base:])
        )
        every = np.concatenate([leaves, patched[in_base:], [False]])
        return Eligible(every, below, levels=live.trie.levels)


def log_column(rows: np.ndarray, name: str, kind: type) -> np.ndarray:
    """Of rows of the log, zeros where they are from before there was one."""
    return rows[name].astype(kind) if name in (rows.dtype.names or ()) else np.zeros(len(rows), kind)


def with_changes(
    base: IndexSnapshot, changes: Changes, *, version: int, audiences: AudienceTable | None = None
) -> Snapshot:
    """The base with changes and audiences; the base itself, at that version, where there are no changes."""
    if base.audiences is not audiences:
        base = replace(base, audiences=audiences)
    if not len(changes.ad_ids):
        return base if base.version == version else replace(base, version=version)
    if not base.trie.leaves:
        return _built_anew(base, changes, version=version)
    return OverlaySnapshot(
        version=version,
        tokenizer_id=base.tokenizer_id,
        level_sizes=base.level_sizes,
        base=base,
        changes=changes,
        audiences=audiences,
    )


def _join(base: IndexSnapshot, changes: Changes) -> _Live:
    sizes, leaves = base.level_sizes, base.trie.leaves
    at, in_base = member(base.ad_ids, changes.ad_ids)
    old = base.ad_keys[at[in_base]]
    added_ads = changes.ad_ids[changes.active]
    # Distinct SIDs that any change concerns, in order, and which of them those of `old` and `added_ads` are.
    keys, order = sort_stable(np.concatenate([old, changes.keys[changes.active]]), bound=math.prod(sizes))
    starts = run_starts(keys)
    group = np.empty(len(keys), np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(keys))))
    keys = keys[starts]
    path = base.trie.path(unpack(keys, sizes))  # [T, distinct SIDs]
    leaf = path[-1].astype(np.int64)
    added = group[len(old) :]
    fresh = np.zeros(len(keys), bool)  # SIDs of the overlay
    fresh[added] = True
    fresh &= leaf < 0
    overlay = Trie.from_keys(keys[fresh], sizes)
    old_leaf = leaf >= 0
    in_trie = leaf[old_leaf]  # ascending, as the SIDs are
    leaf[fresh] = leaves + np.arange(overlay.leaves)

    rows, ads = base.ads_of_leaves(in_trie)
    same = ~member(changes.ad_ids, ads)[1]
    owner = np.concatenate([in_trie[rows[same]], leaf[added]])
    ads = np.concatenate([ads[same], added_ads])
    order = np.lexsort((ads, owner))
    patched = np.concatenate([in_trie, leaves + np.arange(overlay.leaves)])
    ptr = np.append(np.searchsorted(owner[order], patched), len(owner))
    dead = np.flatnonzero(old_leaf)[np.diff(ptr)[: len(in_trie)] == 0]
    trie = UnionTrie(base.trie, overlay, dead=path[:, dead], overlaid=path[:, fresh])
    return _Live(trie, patched, ptr, ads[order])


def _built_anew(base: IndexSnapshot, changes: Changes, *, version: int) -> IndexSnapshot:
    """For a base without live ads, whose trie has no node that anything could hang on."""
    same = ~member(changes.ad_ids, base.ad_ids)[1]
    known = changes.known
    audiences, accounts = base.traits_of(base.ad_ids)
    return IndexSnapshot.build(
        np.concatenate([base.ad_ids[same], changes.ad_ids[known]]),
        unpack(np.concatenate([base.ad_keys[same], changes.keys[known]]), base.level_sizes),
        active=np.concatenate([np.zeros(int(same.sum()), bool), changes.active[known]]),
        level_sizes=base.level_sizes,
        version=version,
        tokenizer_id=base.tokenizer_id,
        audiences=np.concatenate([audiences[same], changes.audiences[known]]),
        accounts=np.concatenate([accounts[same], changes.accounts[known]]),
        table=base.audiences,
    )
