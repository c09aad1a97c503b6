"""The live semantic IDs as a trie in CSR arrays, for vectorised look-ups.

Letters: M distinct live SIDs (leaves), T levels, B requests, n beams, C children of the beam that has most,
W children of the node that has most.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from serving.index.keys import pack, run_starts
from serving.index.rows import take_rows


class ChildNodes(Protocol):
    """Children of beams, as a beam search needs them."""

    @property
    def allowed(self) -> np.ndarray:
        """Codes int32 [B, n, C] (C >= 1); -1 where there is no child, which may be between two children."""
        ...

    def nodes(self, at: np.ndarray) -> np.ndarray:
        """Node ids int [B, m] of candidates `at`, int [B, m] positions in 0 .. n * C - 1."""
        ...

    def every(self) -> np.ndarray:
        """Node ids int [B, n * C] of all candidates; anything where there is no child."""
        ...


class PrefixTree(Protocol):
    """What a beam search needs of a trie. Nodes of a level are numbers; -1 is padding."""

    @property
    def levels(self) -> int:
        """SID levels T."""
        ...

    @property
    def leaves(self) -> int:
        """Distinct live SIDs."""
        ...

    @property
    def roots(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes int32 [R] of the first level that lead to a live SID, and their nodes int32 [R]."""
        ...

    def children(self, level: int, nodes: np.ndarray) -> ChildNodes:
        """Children at `level` (1 .. T - 1) of nodes int [B, n] of the level above."""
        ...

    def code(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """Last code int32 of each node; that of any node for padding."""
        ...

    def leaf_counts(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """Live SIDs below nodes."""
        ...

    def sids(self, level: int, nodes: np.ndarray, *, parents: list[np.ndarray]) -> np.ndarray:
        """Codes int32 [B, n, level + 1] of beams from their nodes and those of their ancestors."""
        ...

    def find(self, sids: np.ndarray) -> np.ndarray:
        """Leaf of each SID int [n, T], int64 [n]; -1 where it is not live."""
        ...


class Children(NamedTuple):
    """Children of beams in a `Trie`: codes int32 [B, n, C], and each beam's first child, int32 [B, n]."""

    allowed: np.ndarray
    first: np.ndarray

    def nodes(self, at: np.ndarray) -> np.ndarray:
        """See `ChildNodes.nodes`."""
        parent, column = np.divmod(at, self.allowed.shape[2])
        return take_rows(self.first, parent) + column.astype(np.int32)

    def every(self) -> np.ndarray:
        """See `ChildNodes.every`."""
        columns = np.arange(self.allowed.shape[2], dtype=np.int32)
        return (self.first[:, :, None] + columns).reshape(len(self.first), -1)


@dataclass(frozen=True)
class Trie:
    """Prefix tree of SIDs; node ids of a level are positions in lexicographic order.

    Attributes:
        padded_codes: a level, int32 [nodes_t + W_t]: last code of each node, then -1, so that W_t codes can
            be read from any node on.
        child_ptr: a level, int32 [nodes_{t-1} + 1]: children of node i of the level above are nodes
            child_ptr[i] .. child_ptr[i + 1]. Level 0's parent is the root.
        leaf_ptr: a level but the last, where each node is a leaf; int32 [nodes_t + 1]: leaves below node i
            are leaf_ptr[i] .. leaf_ptr[i + 1]. Level T - 2 has child_ptr[T - 1] itself.
        child_table: a level, int32 [nodes_{t-1} + 1, W_t]: codes of the children of node i, then -1; the last
            row is all -1. None where it would take too much memory, and for level 0.
        mask: int32 [2 W]: W times 0, W times -1.
    """

    padded_codes: tuple[np.ndarray, ...]
    child_ptr: tuple[np.ndarray, ...]
    leaf_ptr: tuple[np.ndarray, ...]
    child_table: tuple[np.ndarray | None, ...]
    mask: np.ndarray

    @classmethod
    def from_sorted(cls, sids: np.ndarray) -> Trie:
        """Build from int32 [M, T] SIDs that are distinct and in lexicographic order."""
        level_sizes = tuple((sids.max(axis=0, initial=0).astype(np.int64) + 1).tolist())
        return cls.from_keys(pack(sids, level_sizes), level_sizes)

    @classmethod
    def from_keys(cls, keys: np.ndarray, level_sizes: tuple[int, ...]) -> Trie:
        """Build from packed SIDs, int64 [M], distinct and ascending."""
        leaves, widest = len(keys), 0
        padded_codes, child_ptr, child_table = [], [], []
        for level in reversed(range(len(level_sizes))):
            size = level_sizes[level]
            prefixes = keys // size  # [nodes_t]
            starts = run_starts(prefixes)  # [nodes_{t-1}]
            ptr = np.append(starts, len(keys)).astype(np.int32)
            count = np.diff(ptr)
            width = int(count.max(initial=0))
            padded = np.full(len(keys) + width, -1, np.int32)
            padded[: len(keys)] = keys - prefixes * size
            # With a table the level then takes at most 8 bytes a leaf, which one where no two leaves share a
            # prefix takes without: 4 an entry and 8 (code, pointer) a node, and no more nodes than entries.
            dense = level > 0 and 12 * len(count) * width <= 8 * leaves
            padded_codes.append(padded)
            child_ptr.append(ptr)
            child_table.append(_table(padded[: len(keys)], count, width) if dense else None)
            widest, keys = max(widest, width), prefixes[starts]
        child_ptr.reverse()
        leaf_ptr = child_ptr[-1:] if len(child_ptr) > 1 else []
        for ptr in reversed(child_ptr[1:-1]):
            leaf_ptr.insert(0, leaf_ptr[0][ptr])
        return cls(
            padded_codes=tuple(reversed(padded_codes)),
            child_ptr=tuple(child_ptr),
            leaf_ptr=tuple(leaf_ptr),
            child_table=tuple(reversed(child_table)),
            mask=np.repeat(np.array([0, -1], np.int32), widest),
        )

    @property
    def codes(self) -> tuple[np.ndarray, ...]:
        """A level, int32 [nodes_t]: last code of each node."""
        return tuple(c[: p[-1]] for c, p in zip(self.padded_codes, self.child_ptr, strict=True))

    @property
    def levels(self) -> int:
        """SID levels T."""
        return len(self.child_ptr)

    @property
    def leaves(self) -> int:
        """Distinct live SIDs M."""
        return int(self.child_ptr[-1][-1])

    @cached_property
    def roots(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes int32 [R] of the first level, and their nodes int32 [R]."""
        codes = self.codes[0]
        return codes, np.arange(len(codes), dtype=np.int32)

    def code(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """Last code int32 of each node; that of any node for padding."""
        return self.padded_codes[level][np.maximum(nodes, 0)]

    def children(self, level: int, nodes: np.ndarray, *, at_least: int = 1) -> Children:
        """Children at `level` of beams standing on nodes of the level above.

        Args:
            level: 1 .. T - 1.
            nodes: int [B, n] node ids of level - 1; -1 is a padded beam, which has no children.
            at_least: columns C wanted although no beam has so many children.

        Returns:
            allowed int32 [B, n, C] codes, -1 where a beam has fewer than C children (C >= 1), and first int32
            [B, n], the node id of each beam's first child.
        """
        ptr, table = self.child_ptr[level], self.child_table[level]
        safe = np.maximum(nodes, 0)
        first = ptr[safe]
        count = np.where(nodes >= 0, ptr[safe + 1] - first, 0)
        width = max(int(count.max(initial=0)), at_least)
        widest = max(len(self.padded_codes[level]) - int(ptr[-1]), 1)
        if width > widest:
            allowed, first = self.children(level, nodes, at_least=widest)
            padding = np.full((*nodes.shape, width - widest), -1, np.int32)
            return Children(np.concatenate([allowed, padding], axis=2), first)
        if table is not None:
            return Children(table[:, :width][nodes], first)  # padded beams take the last row
        # Copies of rows: as index arithmetic and `where` on [B, n, C], it takes several times as long.
        allowed = _windows(self.padded_codes[level], width)[first]  # [B, n, C], past the last child too
        allowed |= _windows(self.mask, width)[len(self.mask) // 2 - count]  # -1 has all bits
        return Children(allowed, first)

    def leaf_counts(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """Live SIDs below nodes of `level`; 0 for padding (-1). Same shape as `nodes`."""
        if level == self.levels - 1:
            return (nodes >= 0).astype(np.int32)
        ptr = self.leaf_ptr[level]
        safe = np.maximum(nodes, 0)
        return np.where(nodes >= 0, ptr[safe + 1] - ptr[safe], 0)

    def counts_below(self, level: int, nodes: np.ndarray, *, before: np.ndarray) -> np.ndarray:
        """Of some leaves, how many lie below nodes of a level but the last, int32; 0 for padding (-1).

        Args:
            level: of the nodes.
            nodes: int, of any shape; what is no node counts as the last one.
            before: int32 [M + 1], how many of the leaves come before each.
        """
        ptr = self.leaf_ptr[level]
        safe = np.clip(nodes, 0, len(ptr) - 2)
        return np.where(nodes >= 0, before[ptr[safe + 1]] - before[ptr[safe]], 0)

    def sids(self, level: int, nodes: np.ndarray, *, parents: list[np.ndarray]) -> np.ndarray:
        """Codes int32 [B, n, level + 1] of beams at `level` from their nodes and those of their ancestors."""
        columns = [self.code(t, p) for t, p in enumerate([*parents, nodes])]
        return np.stack(columns, axis=-1)

    def find(self, sids: np.ndarray) -> np.ndarray:
        """Leaf of each SID int [n, T], int64 [n]; -1 where the SID is not live or not a SID at all."""
        return self.path(sids)[-1].astype(np.int64)

    def path(self, sids: np.ndarray) -> np.ndarray:
        """Nodes int32 [T, n] on the way to each SID int [n, T]; -1 from the level on where there is none."""
        nodes = np.full((self.levels, len(sids)), -1, np.int32)
        if not self.leaves:
            return nodes
        # A SID that is lost goes on from a node that exists.
        at = np.maximum(np.searchsorted(self.codes[0], sids[:, 0], side="right") - 1, 0)
        found = self.padded_codes[0][at] == sids[:, 0]
        nodes[0] = np.where(found, at, -1)
        for level in range(1, self.levels):
            at = self._last_child(level, at, codes=sids[:, level])
            found &= self.padded_codes[level][at] == sids[:, level]
            nodes[level] = np.where(found, at, -1)
        return nodes

    def _last_child(self, level: int, nodes: np.ndarray, *, codes: np.ndarray) -> np.ndarray:
        """Last child int64 [n] at `level` of each node whose code is not above [n], or the first child."""
        values, ptr = self.padded_codes[level], self.child_ptr[level]
        low = ptr[nodes].astype(np.int64)  # [n]; a node has at least one child
        last = ptr[nodes + 1].astype(np.int64) - 1
        codes = np.ascontiguousarray(codes)
        stride = 1 << int((last - low).max(initial=0)).bit_length()
        # Steps without branches, `where` or masks, which would take most of the time.
        while stride > 1:
            stride //= 2
            probes = low + stride  # past the end it reads the padding
            passed = values.take(probes) <= codes
            passed &= probes <= last
            low += np.multiply(passed, stride, dtype=np.int64)
        return low


def _table(codes: np.ndarray, count: np.ndarray, width: int) -> np.ndarray:
    table = np.full((len(count) + 1, width), -1, np.int32)
    table[:-1][np.arange(width) < count[:, None]] = codes
    return table


def _windows(values: np.ndarray, width: int) -> np.ndarray:
    """View int32 [len - width + 1, width] whose row i is values[i : i + width]."""
    return np.ndarray((len(values) - width + 1, width), np.int32, values, strides=values.strides * 2)
