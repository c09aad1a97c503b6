"""The live semantic IDs as a trie in CSR arrays, for vectorised children look-ups.

Letters: M distinct live SIDs (leaves), T levels, B requests, n beams, C children of the beam that has most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trie:
    """Prefix tree of SIDs; node ids of a level are positions in lexicographic order.

    Attributes:
        codes: a level, int32 [nodes_t]: last code of each node.
        child_ptr: a level, int32 [nodes_{t-1} + 1]: children of node i of the level above are nodes
            child_ptr[i] .. child_ptr[i + 1]. Level 0's parent is the root.
        leaf_ptr: a level, int32 [nodes_t + 1]: leaves below node i are leaf_ptr[i] .. leaf_ptr[i + 1].
    """

    codes: tuple[np.ndarray, ...]
    child_ptr: tuple[np.ndarray, ...]
    leaf_ptr: tuple[np.ndarray, ...]

    @classmethod
    def from_sorted(cls, sids: np.ndarray) -> Trie:
        """Build from int32 [M, T] SIDs that are distinct and in lexicographic order."""
        m, levels = sids.shape
        codes, child_ptr, leaf_ptr = [], [], []
        starts_above = np.zeros(min(m, 1), np.int64)  # the root begins at leaf 0
        new = np.zeros(m, bool)
        new[:1] = True
        for t in range(levels):
            new[1:] |= sids[1:, t] != sids[:-1, t]  # [M] does the prefix of t + 1 codes change here
            starts = np.flatnonzero(new)
            codes.append(np.ascontiguousarray(sids[starts, t], np.int32))
            child_ptr.append(np.append(np.searchsorted(starts, starts_above), len(starts)).astype(np.int32))
            leaf_ptr.append(np.append(starts, m).astype(np.int32))
            starts_above = starts
        return cls(tuple(codes), tuple(child_ptr), tuple(leaf_ptr))

    @property
    def levels(self) -> int:
        """SID levels T."""
        return len(self.codes)

    @property
    def leaves(self) -> int:
        """Distinct live SIDs M."""
        return len(self.codes[-1])

    def children(self, level: int, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Children at `level` of beams standing on nodes of the level above.

        Args:
            level: 1 .. T - 1.
            nodes: int [B, n] node ids of level - 1; -1 is a padded beam, which has no children.

        Returns:
            allowed int32 [B, n, C] codes, -1 where a beam has fewer than C children (C >= 1), and first int32
            [B, n], the node id of each beam's first child.
        """
        ptr = self.child_ptr[level]
        live = nodes >= 0
        safe = np.where(live, nodes, 0)
        first = ptr[safe]
        count = np.where(live, ptr[safe + 1] - first, 0)
        width = max(int(count.max(initial=0)), 1)
        offset = np.arange(width, dtype=np.int32)
        valid = offset < count[..., None]  # [B, n, C]
        index = np.where(valid, first[..., None] + offset, 0)
        return np.where(valid, self.codes[level][index], np.int32(-1)), first.astype(np.int32)

    def leaf_counts(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """Live SIDs below nodes of `level`; 0 for padding (-1). Same shape as `nodes`."""
        ptr = self.leaf_ptr[level]
        safe = np.where(nodes >= 0, nodes, 0)
        return np.where(nodes >= 0, ptr[safe + 1] - ptr[safe], 0)

    def sids(self, level: int, nodes: np.ndarray, *, parents: list[np.ndarray]) -> np.ndarray:
        """Codes int32 [B, n, level + 1] of beams at `level` from their nodes and those of their ancestors."""
        columns = [self.codes[t][np.maximum(p, 0)] for t, p in enumerate([*parents, nodes])]
        return np.stack(columns, axis=-1).astype(np.int32)
