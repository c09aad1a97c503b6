"""The index at one version, as arrays.

Letters: N known ads, M distinct live SIDs, T levels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from serving.index.audience_table import AudienceTable
from serving.index.eligible import NO_ACCOUNT, Eligible, States, Terms, Traits, before, meets
from serving.index.keys import pack, run_starts, unpack
from serving.index.trie import PrefixTree, Trie


class Snapshot(ABC):
    """The index at one version. Paused and deleted ads are known (ad -> SID) but not in the trie.

    Attributes:
        version: sequence number of the last change it holds.
        tokenizer_id: tokenizer that made the SIDs.
        level_sizes: codebook size of each level.
        trie: the live SIDs.
        audiences: of the ads; None where all are for everybody.
    """

    version: int
    tokenizer_id: str
    level_sizes: tuple[int, ...]
    trie: PrefixTree
    audiences: AudienceTable | None

    @property
    @abstractmethod
    def leaf_ad_ids(self) -> np.ndarray:
        """Active ads by leaf, int64, ascending within a leaf; gathered anew at each call."""

    @abstractmethod
    def sids_of(self, ad_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """SIDs int32 [n, T] of ads int64 [n], and known bool [n] (rows of unknown ads are undefined)."""

    @abstractmethod
    def ads_of_leaves(self, leaves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Active ads of leaves [n] (-1: none): rows int64 [k] into `leaves`, ascending, and ads int64 [k].

        The ads of a leaf come ascending.
        """

    def leaves_of(self, sids: np.ndarray) -> np.ndarray:
        """Leaf of each SID, int64 [n]; -1 where the SID is not live or not a SID at all."""
        return self.trie.find(sids)

    def ads_of_sids(self, sids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Active ads of SIDs int32 [n, T], as `ads_of_leaves` gives them; no SID at all has none."""
        return self.ads_of_leaves(self.leaves_of(sids))

    @abstractmethod
    def traits_of(self, ad_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Audience (number) int32 [n] and account (id of its key) int64 [n] of known ads int64 [n].

        An account that is not known is `NO_ACCOUNT`.
        """

    @abstractmethod
    def _eligible(self, satisfied: np.ndarray | None, excluded: tuple[int, ...]) -> Eligible: ...

    def satisfied(self, terms: Terms) -> np.ndarray | None:
        """Audiences that a request is in, bool by number; None where all ads are for everybody."""
        return None if self.audiences is None else self.audiences.satisfied(terms.values, now=terms.now)

    def eligible(self, terms: Terms) -> Eligible | None:
        """What a request may be shown; None where that is everything."""
        satisfied = self.satisfied(terms)
        if satisfied is None and not terms.excluded_accounts:
            return None
        return self._eligible(satisfied, terms.excluded_accounts)

    def shown(self, ad_ids: np.ndarray, terms: Terms) -> np.ndarray:
        """Whether a request may be shown known ads int64 [n], bool [n]."""
        satisfied = self.satisfied(terms)
        if satisfied is None and not terms.excluded_accounts:
            return np.ones(len(ad_ids), bool)
        audiences, accounts = self.traits_of(ad_ids)
        shown = np.ones(len(ad_ids), bool) if satisfied is None else meets(satisfied, audiences)
        return shown & ~np.isin(accounts, terms.excluded_accounts)

    def banned_leaves(self, ad_ids: np.ndarray, terms: Terms | None = None) -> np.ndarray:
        """Leaves, sorted int64, all of whose active ads are in `ad_ids`: beams need not go there.

        With terms, those of whose ads none that a request may be shown is left.
        """
        if not len(ad_ids):
            return np.zeros(0, np.int64)
        sids, known = self.sids_of(ad_ids)
        leaves = np.unique(self.leaves_of(sids[known]))
        leaves = leaves[leaves >= 0]
        rows, ads = self.ads_of_leaves(leaves)
        left = ~np.isin(ads, ad_ids)
        if terms is not None:
            left &= self.shown(ads, terms)
        kept = np.bincount(rows[left], minlength=len(leaves))
        return leaves[kept == 0]


@dataclass(frozen=True)
class IndexSnapshot(Snapshot):
    """A snapshot that is arrays and nothing else.

    Attributes:
        version: sequence number of the last change it holds.
        tokenizer_id: tokenizer that made the SIDs.
        level_sizes: codebook size of each level.
        ad_ids: int64 [N] sorted.
        ad_keys: int64 [N] packed SID of each ad.
        trie: the live SIDs.
        leaf_ad_ptr: int32 [M + 1] into `leaf_ads`.
        leaf_ads: int32, positions in `ad_ids` of the active ads by leaf, ascending within a leaf.
        audiences: of the ads; None where all are for everybody.
        ad_audiences: int32 [N], number of each ad's audience; None where all are 0.
        ad_accounts: int32 [N], position of each ad's account in `account_ids`; None where none is known.
        account_ids: int64 ascending, ids of the accounts' keys, `NO_ACCOUNT` where there is none.
        states: remembered between requests.
    """

    version: int
    tokenizer_id: str
    level_sizes: tuple[int, ...]
    ad_ids: np.ndarray
    ad_keys: np.ndarray
    trie: Trie
    leaf_ad_ptr: np.ndarray
    leaf_ads: np.ndarray
    audiences: AudienceTable | None = None
    ad_audiences: np.ndarray | None = None
    ad_accounts: np.ndarray | None = None
    account_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    states: States = field(default_factory=States, repr=False, compare=False)

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
        audiences: np.ndarray | None = None,
        accounts: np.ndarray | None = None,
        table: AudienceTable | None = None,
    ) -> IndexSnapshot:
        """Build from arrays: ad_ids int64 [N] distinct, sids int [N, T], active bool [N].

        `ad_ids` is kept, not copied, when it is sorted already. `audiences` int [N] are numbers in `table`,
        `accounts` int64 [N] ids of the accounts' keys.

        Raises:
            ValueError: SIDs of these level sizes do not fit into 64 bits, or a code is not of its level.
        """
        keys = pack(sids, level_sizes)
        if (ad_ids[1:] < ad_ids[:-1]).any():
            order = np.argsort(ad_ids)
            ad_ids, keys, active = ad_ids[order], keys[order], active[order]
            audiences, accounts = (None if a is None else a[order] for a in (audiences, accounts))
        if audiences is not None:
            audiences = np.ascontiguousarray(audiences, np.int32) if audiences.any() else None
        account_ids = np.zeros(0, np.int64)
        if accounts is not None:
            account_ids, accounts = np.unique(accounts, return_inverse=True)
            accounts = accounts.astype(np.int32) if account_ids.any() else None
        live_keys, ads = sort_stable(keys[active], bound=math.prod(level_sizes))
        first = run_starts(live_keys)  # [M]
        return cls(
            version=version,
            tokenizer_id=tokenizer_id,
            level_sizes=level_sizes,
            ad_ids=ad_ids,
            ad_keys=keys,
            trie=Trie.from_keys(live_keys[first], level_sizes),
            leaf_ad_ptr=np.append(first, len(ads)).astype(np.int32),
            leaf_ads=np.flatnonzero(active).astype(np.int32)[ads],
            audiences=table,
            ad_audiences=audiences,
            ad_accounts=accounts,
            account_ids=account_ids,
        )

    @property
    def leaf_ad_ids(self) -> np.ndarray:
        """See `Snapshot.leaf_ad_ids`."""
        return self.ad_ids[self.leaf_ads]

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, those that are shared counted once."""
        trie = self.trie
        tables = (t for t in trie.child_table if t is not None)
        arrays = [self.ad_ids, self.ad_keys, self.leaf_ad_ptr, self.leaf_ads, trie.mask]
        arrays += [*trie.padded_codes, *trie.child_ptr, *trie.leaf_ptr, *tables, self.account_ids]
        arrays += [a for a in (self.ad_audiences, self.ad_accounts) if a is not None]
        return sum(a.nbytes for a in {id(a): a for a in arrays}.values())

    def sids_of(self, ad_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Snapshot.sids_of`."""
        if not len(self.ad_ids):
            return np.zeros((len(ad_ids), len(self.level_sizes)), np.int32), np.zeros(len(ad_ids), bool)
        at = np.minimum(np.searchsorted(self.ad_ids, ad_ids), len(self.ad_ids) - 1)
        return unpack(self.ad_keys[at], self.level_sizes), self.ad_ids[at] == ad_ids

    def ads_of_leaves(self, leaves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Snapshot.ads_of_leaves`."""
        safe = np.maximum(leaves, 0)
        if not self.trie.leaves:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        count = np.where(leaves >= 0, self.leaf_ad_ptr[safe + 1] - self.leaf_ad_ptr[safe], 0)
        rows = np.repeat(np.arange(len(leaves)), count)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        return rows, self.ad_ids[self.leaf_ads[self.leaf_ad_ptr[safe][rows] + within]]

    def traits_of(self, ad_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Snapshot.traits_of`."""
        audiences, accounts = np.zeros(len(ad_ids), np.int32), np.full(len(ad_ids), NO_ACCOUNT, np.int64)
        at = np.minimum(np.searchsorted(self.ad_ids, ad_ids), len(self.ad_ids) - 1)
        if self.ad_audiences is not None:
            audiences = self.ad_audiences[at]
        if self.ad_accounts is not None:
            accounts = self.account_ids[self.ad_accounts[at]]
        return audiences, accounts

    def _eligible(self, satisfied: np.ndarray | None, excluded: tuple[int, ...]) -> Eligible:
        def make() -> Eligible:
            leaves = self.states.traits(self._traits).leaves(satisfied, excluded)
            below = partial(self.trie.counts_below, before=before(leaves))
            return Eligible(np.append(leaves, False), below, levels=self.trie.levels)

        return self.states.of(make, satisfied=satisfied, excluded=excluded)

    def _traits(self) -> Traits:
        return Traits.of(
            self.leaf_ads,
            self.leaf_ad_ptr,
            audiences=self.ad_audiences,
            accounts=self.ad_accounts,
            account_ids=self.account_ids,
        )


def sort_stable(keys: np.ndarray, *, bound: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted keys [n], each in 0 .. bound - 1, and positions that sort them; equal keys keep their order."""
    count = max(len(keys), 1)
    if bound * count >= 1 << 63:
        positions = np.argsort(keys, kind="stable")
        return keys[positions], positions
    # Numbers with the position in the low digits are sorted in a sixth of the time of argsort.
    numbers = keys * count
    numbers += np.arange(len(keys))
    numbers.sort()
    return np.divmod(numbers, count, out=(numbers, np.empty_like(numbers)))
