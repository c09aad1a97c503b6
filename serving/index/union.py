"""A trie and what changed since it was built, looked up as one trie.

Letters: N nodes of a level of the base, O nodes of it in the overlay, T levels, B requests, n beams,
C children of the beam that has most.

The overlay is the trie of the live SIDs that the base does not have at all. A prefix that lies in both has
children in both; it goes by one number, the overlay's. So there are three kinds of nodes of a level:

    0 .. N - 1      a prefix of the base alone
    N .. N + O - 1  node o = number - N of the overlay
    -1              padding

Most nodes that beams stand on are of the base, and nothing differs below them: one look at `Level.differs`
tells. All that is to be known of the others is in small tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.index.keys import run_starts
from serving.index.rows import take_rows
from serving.index.trie import Trie


@dataclass(frozen=True)
class Level:
    """How a level differs from that of the base; leaves have no children, and so no `differs` .. `kids`.

    Attributes:
        size: N.
        differs: bool [N + O + 1], nodes below which anything differs, all of the overlay's among them; the
            last is padding's (index -1).
        nodes: int64 [S] ascending, the S nodes that differ.
        leaves: int32 [S], live SIDs below them.
        kids: int64 [S, 7], their children, in columns: node of the base whose children they have too or -1,
            the first of those and their number; first position in `dead` of the level below and number of
            dead ones among those; first position in `only` of the level below and number there.
        dead: int64, base nodes with no live SID of the base below them, ascending.
        shared: int64, base nodes that are nodes of the overlay too, ascending.
        shared_as: int64, as many: what they go by.
        only: int64, overlay nodes that are no live nodes of the base, ascending.
    """

    size: int
    differs: np.ndarray
    nodes: np.ndarray
    leaves: np.ndarray
    kids: np.ndarray
    dead: np.ndarray
    shared: np.ndarray
    shared_as: np.ndarray
    only: np.ndarray


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
        nodes = take_rows(self.first, parent) + column
        if len(self.level.shared):
            position, hit = member(self.level.shared, nodes)
            nodes = np.where(hit, self.level.shared_as[position], nodes)
        if self.extra is not None:
            begin, offset = (take_rows(x, parent) for x in self.extra)
            only = np.clip(offset + column, 0, len(self.level.only) - 1)
            nodes = np.where(column >= begin, self.level.size + self.level.only[only], nodes)
        return nodes

    def every(self) -> np.ndarray:
        """See `ChildNodes.every`."""
        count = self.allowed.shape[1] * self.allowed.shape[2]
        return self.nodes(np.broadcast_to(np.arange(count), (len(self.allowed), count)))


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
        self._levels = _levels(base, overlay, dead=dead, overlaid=overlaid)
        self.roots = self._roots()

    def children(self, level: int, nodes: np.ndarray) -> UnionChildren:
        """See `PrefixTree.children`."""
        above, here, last = self._levels[level - 1], self._levels[level], level == self.levels - 1
        flat = nodes.ravel()
        rows = np.flatnonzero(above.differs[flat])  # few of many beams
        if not len(rows):
            allowed, first = self._base.children(level, nodes)
            return UnionChildren(allowed, first, extra=None, level=here, last=last)
        kids = above.kids[np.searchsorted(above.nodes, flat[rows])]
        base_nodes, begin, count, dead_begin, dead_count, only_begin, only_count = kids.T
        in_base = flat.copy()
        in_base[rows] = base_nodes
        width = max(int((count + only_count).max()), 1)
        allowed, first = self._base.children(level, in_base.reshape(nodes.shape), at_least=width)
        columns = allowed.shape[2]
        by_beam = allowed.reshape(-1, columns)  # the same memory
        if dead_count.any():
            owner, dead = ranges(dead_begin, dead_count)
            by_beam[rows[owner], here.dead[dead] - begin[owner]] = -1
        extra = None
        if only_count.any():
            owner, only = ranges(only_begin, only_count)
            codes = self._overlay.padded_codes[level][here.only[only]]
            by_beam[rows[owner], (count - only_begin)[owner] + only] = codes
            column, offset = np.full(len(flat), columns), np.zeros(len(flat), np.int64)
            column[rows], offset[rows] = np.where(only_count > 0, count, columns), only_begin - count
            extra = column.reshape(nodes.shape), offset.reshape(nodes.shape)
        return UnionChildren(allowed, first, extra=extra, level=here, last=last)

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
        in_base = flat.copy()
        in_base[rows] = -1
        counts = self._base.leaf_counts(level, in_base)
        counts[rows] = here.leaves[np.searchsorted(here.nodes, flat[rows])]
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

    def counts_below(
        self, level: int, nodes: np.ndarray, *, before: np.ndarray, overlay_before: np.ndarray
    ) -> np.ndarray:
        """Of some leaves, how many lie below nodes, as `Trie.counts_below` gives them.

        Args:
            level: of the nodes.
            nodes: int, of any shape.
            before: int32 [M + 1], how many leaves of the base come before each.
            overlay_before: int32 [J + 1], those of the overlay.
        """
        here = self._levels[level]
        over = nodes >= here.size
        if not self._has_overlay or not over.any():
            return self._base.counts_below(level, nodes, before=before)
        wanted, in_base = nodes[over], nodes.copy()
        twins = np.full(len(wanted), -1, nodes.dtype)
        if len(here.shared_as):
            at, hit = member(here.shared_as, wanted)
            twins[hit] = here.shared[at[hit]]
        in_base[over] = twins
        counts = self._base.counts_below(level, in_base, before=before)
        counts[over] += self._overlay.counts_below(level, wanted - here.size, before=overlay_before)
        return counts

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


def ranges(begin: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers begin[i] .. begin[i] + count[i] - 1, and the i of each."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + (begin - (np.cumsum(count) - count))[owner]


@dataclass(frozen=True)
class _Changed:
    """What changed in a level.

    Attributes:
        touched: base nodes with dead leaves below, ascending.
        left: as many: live leaves of the base below.
        gone: those of `touched` with none left.
        gone_parent: as many: nodes of the level above.
        twin: live base node of each overlay node, -1 where there is none.
        only: overlay nodes without one.
        only_ptr: for each overlay node of the level above, where its children in `only` begin; and the end.
    """

    touched: np.ndarray
    left: np.ndarray
    gone: np.ndarray
    gone_parent: np.ndarray
    twin: np.ndarray
    only: np.ndarray
    only_ptr: np.ndarray


def _levels(base: Trie, overlay: Trie, *, dead: np.ndarray, overlaid: np.ndarray) -> list[Level]:
    changed = []
    for t in range(base.levels):
        starts = run_starts(dead[t])
        touched = dead[t][starts].astype(np.int64)
        left = base.leaf_counts(t, touched) - np.diff(np.append(starts, dead.shape[1]))
        gone = touched[left == 0]
        # The base node of an overlay node is that of the first leaf below it, as of all of them.
        first = slice(None) if t == base.levels - 1 else overlay.leaf_ptr[t][:-1]
        twin = overlaid[t][first].astype(np.int64)
        if len(gone):
            twin[member(gone, twin)[1]] = -1
        alone = twin < 0
        only_ptr = np.append(0, np.cumsum(alone))[overlay.child_ptr[t]]
        changed.append(
            _Changed(
                touched=touched,
                left=left,
                gone=gone,
                gone_parent=dead[max(t - 1, 0)][starts[left == 0]],
                twin=twin,
                only=np.flatnonzero(alone),
                only_ptr=only_ptr,
            )
        )
    found = []
    for t, here in enumerate(changed):
        size, both = int(base.child_ptr[t][-1]), np.flatnonzero(here.twin >= 0)
        table = _NO_TABLE
        if t + 1 < base.levels:
            table = _table(t, base, overlay, here=here, below=changed[t + 1])
        found.append(
            Level(
                size=size,
                **table,
                dead=here.gone,
                shared=here.twin[both],
                shared_as=size + both,
                only=here.only,
            )
        )
    return found


_NO_TABLE = {
    "differs": np.zeros(0, bool),
    "nodes": np.zeros(0, np.int64),
    "leaves": np.zeros(0, np.int32),
    "kids": np.zeros((0, 7), np.int64),
}


def _table(t: int, base: Trie, overlay: Trie, *, here: _Changed, below: _Changed) -> dict[str, np.ndarray]:
    """`differs`, `nodes`, `leaves` and `kids` of a `Level`."""
    size, count = int(base.child_ptr[t][-1]), len(here.twin)
    nodes = np.concatenate([here.touched, size + np.arange(count)])
    differs = np.zeros(size + count + 1, bool)
    differs[nodes] = True
    # Dead children of the touched nodes, and then of the overlay's, by way of their twins.
    starts = run_starts(below.gone_parent)
    at = np.searchsorted(here.touched, below.gone_parent[starts])
    dead = np.zeros((len(here.touched) + 1, 2), np.int64)  # first and number; the last row is of no node
    dead[at, 0], dead[at, 1] = starts, np.diff(np.append(starts, len(below.gone)))
    left = base.leaf_counts(t, here.twin)
    twin_row = np.full(count, len(here.touched))
    if len(here.touched):
        at, hit = member(here.touched, here.twin)
        left, twin_row = np.where(hit, here.left[at], left), np.where(hit, at, twin_row)
    leaves = np.concatenate([here.left, left + overlay.leaf_counts(t, np.arange(count))])
    in_base = np.concatenate([here.touched, here.twin])
    ptr, safe = base.child_ptr[t + 1], np.maximum(in_base, 0)
    begin = ptr[safe]
    only = np.zeros((len(nodes), 2), np.int64)
    if count:
        only[len(here.touched) :, 0], only[len(here.touched) :, 1] = (
            below.only_ptr[:-1],
            np.diff(below.only_ptr),
        )
    kids = np.column_stack(
        [
            in_base,
            begin,
            np.where(in_base >= 0, ptr[safe + 1] - begin, 0),
            np.concatenate([dead[:-1], dead[twin_row]]),
            only,
        ]
    )
    return {"differs": differs, "nodes": nodes, "leaves": leaves.astype(np.int32), "kids": kids}
