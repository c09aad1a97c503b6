"""What of an index one request may be shown: its terms, and the nodes of the trie that they leave.

Letters: A audiences, N known ads, M leaves, k active ads by leaf.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from serving.keys import hash_of

NO_ACCOUNT = 0  # of an ad that came without one
_STATE_BYTES, _STATES = 16 << 20, 64  # of what is remembered of a base


@dataclass(frozen=True)
class Terms:
    """What decides which ads a request may be shown, beside those that it excludes by name.

    Attributes:
        values: hashes (`serving.keys.hash_of`) of the values of columns that audiences may name; one that is
            left out is not known.
        now: time of the request, unix seconds; below 0 it is in no audience.
        excluded_accounts: hashes of accounts whose ads must not come, ascending.
    """

    values: Mapping[str, int] = field(default_factory=dict)
    now: int = -1
    excluded_accounts: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, str], now: int = 0, *, excluded_accounts: Iterable[str] = ()) -> Terms:
        """Of texts; empty ones are left out."""
        accounts = {hash_of(account) for account in excluded_accounts if account}
        known = {column: hash_of(value) for column, value in values.items() if value}
        return cls(known, now, tuple(sorted(accounts)))


NO_TERMS = Terms()
"""Of a request that says nothing of itself: ads with an audience are not for it."""


@dataclass(frozen=True)
class Eligible:
    """Nodes that lead to an ad that a request may be shown.

    Attributes:
        leaves: bool [L + 1], by leaf; the last is padding's.
        below: for nodes int of a level but the last, such leaves below each, int32; 0 for padding (-1), and
            anything for what is no node.
        levels: T.
    """

    leaves: np.ndarray
    below: Callable[[int, np.ndarray], np.ndarray]
    levels: int

    def mask(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """Whether nodes of a level lead to one, bool; of what is no node, anything."""
        if level == self.levels - 1:
            return self.leaves.take(nodes, mode="clip")
        return self.below(level, nodes) > 0

    def count(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """Leaves below nodes of a level, int32; 0 for padding (-1)."""
        if level == self.levels - 1:
            return self.leaves[nodes].astype(np.int32)
        return self.below(level, nodes)


class Traits(NamedTuple):
    """Of the ads of a base that lie in its trie, what decides whether they are shown.

    Attributes:
        audiences: int32 [k], number of each ad's audience, by leaf; None where all are for everybody.
        accounts: int32 [k], position in `account_ids`; None where no account is known.
        account_ids: int64 ascending.
        first: int32 [M], position of each leaf's first ad.
        more: int64 [k - M], positions of the others.
        more_leaf: int64 [k - M], their leaves.
    """

    audiences: np.ndarray | None
    accounts: np.ndarray | None
    account_ids: np.ndarray
    first: np.ndarray
    more: np.ndarray
    more_leaf: np.ndarray

    @classmethod
    def of(
        cls,
        leaf_ads: np.ndarray,
        leaf_ad_ptr: np.ndarray,
        *,
        audiences: np.ndarray | None,
        accounts: np.ndarray | None,
        account_ids: np.ndarray,
    ) -> Traits:
        """Of columns by ad, [N]; see `IndexSnapshot`."""
        is_first = np.zeros(len(leaf_ads), bool)
        is_first[leaf_ad_ptr[:-1]] = True
        more = np.flatnonzero(~is_first)
        return cls(
            None if audiences is None else audiences[leaf_ads],
            None if accounts is None else accounts[leaf_ads],
            account_ids,
            first=leaf_ad_ptr[:-1],
            more=more,
            more_leaf=np.searchsorted(leaf_ad_ptr, more, "right") - 1,
        )

    def leaves(self, satisfied: np.ndarray | None, excluded: tuple[int, ...]) -> np.ndarray:
        """Leaves with an ad of a satisfied audience (None: all are) and of no excluded account, bool [M]."""
        shown = np.ones(len(self.first) + len(self.more), bool)
        if satisfied is not None and self.audiences is not None:
            shown = meets(satisfied, self.audiences)
        if excluded and self.accounts is not None:
            kept = ~np.isin(self.account_ids, excluded)
            if not kept.all():
                shown &= kept.take(self.accounts)
        if not len(self.more):
            return shown
        leaves = shown.take(self.first)
        leaves[self.more_leaf[shown.take(self.more)]] = True
        return leaves


def meets(satisfied: np.ndarray, audiences: np.ndarray) -> np.ndarray:
    """Whether audiences int [n] are satisfied, bool [A] by number; one that is not in the table is not."""
    if len(audiences) and int(audiences.max()) >= len(satisfied):
        return np.append(satisfied, False).take(audiences, mode="clip")
    return satisfied.take(audiences)


def before(leaves: np.ndarray) -> np.ndarray:
    """Of some leaves, bool [n], how many come before each, and in all: int32 [n + 1]."""
    found = np.zeros(len(leaves) + 1, np.int32)
    np.cumsum(leaves, out=found[1:], dtype=np.int32)
    return found


class States:
    """Leaves of an index by what decides about them, the least recently used out first."""

    def __init__(self) -> None:
        """Nothing is known."""
        self._traits: Traits | None = None
        self._known: OrderedDict[tuple[bytes, tuple[int, ...]], Eligible] = OrderedDict()

    def of(
        self,
        make: Callable[[], Eligible],
        *,
        satisfied: np.ndarray | None,
        excluded: tuple[int, ...],
    ) -> Eligible:
        """Of an index, the same one in every call, as `make` makes it."""
        key = (b"" if satisfied is None else satisfied.tobytes(), excluded)
        state = self._known.get(key)
        if state is not None:
            self._known.move_to_end(key)
            return state
        state = self._known[key] = make()
        most = min(max(_STATE_BYTES // (5 * len(state.leaves)), 2), _STATES)
        while len(self._known) > most:
            self._known.popitem(last=False)
        return state

    def traits(self, make: Callable[[], Traits]) -> Traits:
        """Of a base, the same one in every call; they are made once."""
        self._traits = self._traits or make()
        return self._traits
