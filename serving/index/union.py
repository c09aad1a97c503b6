"""A trie and what changed since it was built, looked up as one trie.

Letters: N nodes of a level of the base, O nodes of it in the overlay, T levels, B requests, n beams,
C children of the beam that has most.

The overlay is the trie of the live SIDs that the base does not have at all. A prefix that lies in both has
children in both; it goes by one number, the overlay's. So there are three kinds of nodes of a level:

    0 .. N - 1      a prefix of the base alone
    N .. N + O - 1  node o = number - N of the overlay; `Level.base_node` says which one of the base it is too
    -1              padding
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.index.keys import run_starts
from serving.index.trie import Trie


@dataclass(frozen=True)
class Level:
    """How a level differs from that of the base.

    Attributes:
        size: N.
        differs: bool [N + O + 1], nodes below which anything differs; the last is padding's (index -1). It is
            the one array of the size of the base: most beams need no more than one look at it. Empty for
            leaves.
        touched: int64, base nodes with dead SIDs below them, ascending.
        lost: int64, as many: dead SIDs below.
        dead: int64, base nodes with no live SID of the base below them, ascending.
        base_node: int64 [O + 1], live base node of the same prefix, -1 where there is none; the last is -1.
        shared: int64, the base nodes in `base_node`, ascending.
        shared_as: int64, as many: what they go by.
        only: int64, overlay nodes that have no live base node, ascending.
        only_ptr: int64 [O' + 2], O' nodes in the overlay's level above: children of o among `only` are
            only_ptr[o] .. only_ptr[o + 1]; row O' has none. Empty for the first level.
    """

    size: int
    differs: np.ndarray
    touched: np.ndarray
    lost: np.ndarray
    dead: np.ndarray
    base_node: np.ndarray
    shared: np.ndarray
    shared_as: np.ndarray
    only: np.ndarray
    only_ptr: np.ndarray


@dataclass(frozen=True)
class UnionChildren:
    """Children of beams: those of the base, behind them those that only the overlay has.

    Attributes:
        allowed: int32 [B, n, C]; -1 where there is no child, or a dead one.
        first: int32 [B, n], base node of each beam's first column.
        extra: for beams that have children of the overlay: int64 [B, n] column of the first (C where there
            are none), and what a column is to be added to for a position in `Level.only`.
        level: of the children.
        last: the children are leaves, so no prefix lies in both.
    """

    allowed: np.ndarray
    first: np.ndarray
    extra: tuple[np.ndarray, np.ndarray] | None
    level: Level
    last: bool

    def nodes(self, at: np.ndarray) -> np.ndarray:
        """See `ChildNodes.nodes`."""
        parent, column = np.divmod(at, self.allowed.shape[2])
        nodes = np.take_along_axis(self.first, parent, 1) + column
        if len(self.level.shared):
            position, hit = member(self.level.shared, nodes)
            nodes = np.where(hit, self.level.shared_as[position], nodes)
        if self.extra is not None:
            begin, offset = (np.take_along_axis(x, parent, 1) for x in self.extra)
            only = np.clip(offset + column, 0, len(self.level.only) - 1)
            nodes = np.where(column >= begin, self.level.size + self.level.only[only], nodes)
        return nodes


class UnionTrie:
    """`PrefixTree` of a base without its dead leaves, plus an overlay. Immutable.

    Leaves of the base keep their numbers 0 .. M - 1, those of the overlay are M, M + 1, ..
    """

    def __init__(self, base: Trie, overlay: Trie, *, dead: np.ndarray, overlaid: np.ndarray) -> None:
        """Join.

        Args:
            base: at least one leaf.
            overlay: J live SIDs, none of which is in the base.
            dead: int [T, d], `base.path` of the SIDs of the base that are no longer live, in order.
            overlaid: int [T, J], `base.path` of the overlay's SIDs, in order.
        """
        self.levels = base.levels
        self.leaves = base.leaves - dead.shape[1] + overlay.leaves
        self._base, self._overlay = base, overlay
        self._has_overlay = overlay.leaves > 0
        self._levels = [
            _level(t, base, overlay, dead=dead[t], overlaid=overlaid[t]) for t in range(base.levels)
        ]
        self.roots = self._roots()

    def children(self, level: int, nodes: np.ndarray) -> UnionChildren:
        """See `PrefixTree.children`."""
        above, here, last = self._levels[level - 1], self._levels[level], level == self.levels - 1
        flat = nodes.ravel()
        rows = np.flatnonzero(above.differs[flat])  # few of many beams
        if not len(rows):
            return UnionChildren(*self._base.children(level, nodes), None, here, last)
        over, base_nodes = _split(above, flat[rows])
        in_base = flat.copy()
        in_base[rows] = base_nodes
        ptr = self._base.child_ptr[level]
        safe = np.maximum(base_nodes, 0)
        begin = ptr[safe]
        count = np.where(base_nodes >= 0, ptr[safe + 1] - begin, 0)
        only_begin = here.only_ptr[over]
        only_count = here.only_ptr[over + 1] - only_begin
        width = max(int((count + only_count).max()), 1)
        allowed, first = self._base.children(level, in_base.reshape(nodes.shape), at_least=width)
        columns = allowed.shape[2]
        by_beam = allowed.reshape(-1, columns)  # the same memory
        dead_begin = np.searchsorted(here.dead, begin)
        owner, dead = _ranges(dead_begin, np.searchsorted(here.dead, begin + count) - dead_begin)
        by_beam[rows[owner], here.dead[dead] - begin[owner]] = -1
        extra = None
        if only_count.any():
            owner, only = _ranges(only_begin, only_count)
            codes = self._overlay.padded_codes[level][here.only[only]]
            by_beam[rows[owner], (count - only_begin)[owner] + only] = codes
            column, offset = np.full(len(flat), columns), np.zeros(len(flat), np.int64)
            column[rows], offset[rows] = np.where(only_count > 0, count, columns), only_begin - count
            extra = column.reshape(nodes.shape), offset.reshape(nodes.shape)
        return UnionChildren(allowed, first, extra, here, last)

    def code(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """See `PrefixTree.code`."""
        if not self._has_overlay:
            return self._base.code(level, nodes)
        over = nodes - self._levels[level].size
        is_over = over >= 0
        codes = self._overlay.padded_codes[level][np.where(is_over, over, 0)]
        return np.where(is_over, codes, self._base.code(level, np.where(is_over, -1, nodes)))

    def leaf_counts(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """See `PrefixTree.leaf_counts`."""
        if level == self.levels - 1:
            return (nodes >= 0).astype(np.int32)
        here, flat = self._levels[level], nodes.ravel()
        rows = np.flatnonzero(here.differs[flat])
        if not len(rows):
            return self._base.leaf_counts(level, nodes)
        over, base_nodes = _split(here, flat[rows])
        in_base = flat.copy()
        in_base[rows] = base_nodes
        counts = self._base.leaf_counts(level, in_base)
        if len(here.touched):
            at, hit = member(here.touched, base_nodes)
            counts[rows] -= np.where(hit, here.lost[at], 0).astype(counts.dtype)
        if self._has_overlay:
            none = over == len(here.base_node) - 1
            counts[rows] += self._overlay.leaf_counts(level, np.where(none, -1, over))
        return counts.reshape(nodes.shape)

    def sids(self, level: int, nodes: np.ndarray, *, parents: list[np.ndarray]) -> np.ndarray:
        """See `PrefixTree.sids`."""
        return np.stack([self.code(t, p) for t, p in enumerate([*parents, nodes])], axis=-1)

    def find(self, sids: np.ndarray) -> np.ndarray:
        """See `PrefixTree.find`."""
        found = self._base.find(sids)
        dead = self._levels[-1].dead
        if len(dead):
            found[member(dead, found)[1]] = -1
        if self._has_overlay:
            over = self._overlay.find(sids)
            found = np.where(over >= 0, over + self._base.leaves, found)
        return found

    def live_leaves(self) -> np.ndarray:
        """Numbers of all leaves, int64, ascending."""
        base = np.ones(self._base.leaves, bool)
        base[self._levels[-1].dead] = False
        return np.concatenate([np.flatnonzero(base), self._base.leaves + np.arange(self._overlay.leaves)])

    def _roots(self) -> tuple[np.ndarray, np.ndarray]:
        first, (codes, _) = self._levels[0], self._base.roots
        nodes = np.arange(len(codes))
        nodes[first.shared] = first.shared_as
        live = np.ones(len(codes), bool)
        live[first.dead] = False
        return (
            np.concatenate([codes[live], self._overlay.padded_codes[0][first.only]]),
            np.concatenate([nodes[live], first.size + first.only]).astype(np.int32),
        )


def member(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of `wanted` is in `values` (ascending, not empty), and at which position if so."""
    at = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return at, values[at] == wanted


def _split(level: Level, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Overlay node of each node [r], O where it has none, and base node, -1 where it has none."""
    over = nodes - level.size
    is_over = over >= 0
    over = np.where(is_over, over, len(level.base_node) - 1)
    return over, np.where(is_over, level.base_node[over], nodes)


def _ranges(begin: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers begin[i] .. begin[i] + count[i] - 1, and the i of each."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + (begin - (np.cumsum(count) - count))[owner]


def _level(t: int, base: Trie, overlay: Trie, *, dead: np.ndarray, overlaid: np.ndarray) -> Level:
    """`dead`: node int [d] above each dead leaf; `overlaid`: base node [J] above each leaf of the overlay."""
    starts = run_starts(dead)
    touched, lost = dead[starts].astype(np.int64), np.diff(np.append(starts, len(dead)))
    gone = touched[base.leaf_counts(t, touched) == lost]
    size = int(base.child_ptr[t][-1])
    if t < base.levels - 1:
        live = overlaid[overlay.leaf_ptr[t][:-1]].astype(
            np.int64
        )  # of the first leaf below each node: of all
    else:
        live = overlaid.astype(np.int64)
    if len(gone):
        live[member(gone, live)[1]] = -1
    both, alone = np.flatnonzero(live >= 0), live < 0
    differs = np.zeros(size + len(live) + 1 if t < base.levels - 1 else 0, bool)  # leaves have no children
    if len(differs):
        differs[touched] = True
        differs[size:-1] = True
    before = np.concatenate([[0], np.cumsum(alone)])  # [O + 1]
    ptr = before[overlay.child_ptr[t]]  # [O' + 1]
    return Level(
        size,
        differs,
        touched,
        lost,
        gone,
        np.append(live, -1),
        live[both],
        size + both,
        np.flatnonzero(alone),
        np.append(ptr, ptr[-1]) if t else ptr[:0],
    )
