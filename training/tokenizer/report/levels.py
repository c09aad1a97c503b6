"""How evenly the codes of each level are used, and what they leave to tell ads apart by.

Letters: A ads, T levels, K codes of a level, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LevelUse:
    """Codes of one level.

    Attributes:
        ads: int64 [K], ads of each code.
    """

    ads: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray, *, size: int) -> LevelUse:
        """Of the codes int [A] of a level with K = `size` codes."""
        return cls(np.bincount(codes, minlength=size))

    @property
    def dead(self) -> int:
        """Codes that no ad has."""
        return int((self.ads == 0).sum())

    @property
    def largest(self) -> float:
        """Ads of the fullest code in units of the mean."""
        return float(self.ads.max() / self.ads.mean())

    @property
    def gini(self) -> float:
        """Gini coefficient of the ads a code has: 0 all equal, 1 all ads in one code."""
        ranked = np.sort(self.ads).astype(np.float64)
        places = np.arange(1, len(ranked) + 1)
        return float((2 * places - len(ranked) - 1) @ ranked / (len(ranked) * ranked.sum()))


def collision_floor(content: np.ndarray, hashed: np.ndarray) -> float:
    """Collision with the hash level as it is, if every distinct content had a prefix of its own.

    Args:
        content: int [A], which content each ad has.
        hashed: int [A], code of the hash level.
    """
    pairs = np.stack([content, hashed], axis=1)
    counts = np.unique(pairs, axis=0, return_counts=True)[1]
    return float(counts[counts > 1].sum() / len(pairs))


def lost_by_level(vectors: np.ndarray, decoded: list[np.ndarray]) -> list[float]:
    """Share of the vectors' squared length that the first 1, 2, .. levels do not give back.

    Args:
        vectors: float32 [A, D].
        decoded: float32 [A, D] of the first 1, 2, .. levels.
    """
    whole = float(np.einsum("nd,nd->", vectors, vectors, dtype=np.float64))
    lost = [vectors - part for part in decoded]
    return [float(np.einsum("nd,nd->", r, r, dtype=np.float64)) / max(whole, 1e-12) for r in lost]
