"""How well SIDs tell ads apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEFINITIONS = """\
compression  ads per distinct SID (1 = every ad has its own)
collision    share of ads that share their SID with at least one other ad
utilisation  distinct SIDs / product of the level sizes
level use    share of a level's codes that at least one ad carries
(The paper, arXiv 2602.22732, reports such figures without formulas; these are our definitions.)"""


@dataclass(frozen=True)
class SidQuality:
    """Quality of a SID table; see `DEFINITIONS`.

    Attributes:
        ads: number of ads N.
        distinct_sids: number of different SIDs.
        compression: N / distinct SIDs, at least 1.
        collision: share 0..1.
        utilisation: share 0..1.
        level_sizes: codes of each level, length T.
        level_use: share 0..1 of used codes of each level, length T.
    """

    ads: int
    distinct_sids: int
    compression: float
    collision: float
    utilisation: float
    level_sizes: tuple[int, ...]
    level_use: tuple[float, ...]

    def format_table(self) -> str:
        """Return the figures and, below them, their definitions."""
        levels = "  ".join(
            f"{use:.1%} of {size}" for use, size in zip(self.level_use, self.level_sizes, strict=True)
        )
        return (
            f"ads          {self.ads:,}\n"
            f"SIDs         {self.distinct_sids:,}\n"
            f"compression  {self.compression:.3f}\n"
            f"collision    {self.collision:.2%}\n"
            f"utilisation  {self.utilisation * 1000:.4f} permille\n"
            f"level use    {levels}\n\n{DEFINITIONS}"
        )


def sid_quality(sids: np.ndarray, level_sizes: Sequence[int]) -> SidQuality:
    """Measure sids, int [N, T], whose level t has `level_sizes[t]` codes.

    Raises:
        ValueError: no ads, a wrong number of levels, or a code outside its level.
    """
    sids, sizes = np.asarray(sids), tuple(level_sizes)
    if sids.ndim != 2 or not len(sids) or sids.shape[1] != len(sizes):
        raise ValueError(f"expected SIDs [N > 0, {len(sizes)}], got {list(sids.shape)}")
    outside = (sids < 0) | (sids >= np.asarray(sizes))
    if outside.any():
        row, level = (int(i) for i in np.argwhere(outside)[0])
        code, last = sids[row, level], sizes[level] - 1
        raise ValueError(f"row {row}, level {level + 1}: expected a code in 0..{last}, got {code}")
    _, counts = np.unique(sids, axis=0, return_counts=True)
    return SidQuality(
        ads=len(sids),
        distinct_sids=len(counts),
        compression=len(sids) / len(counts),
        collision=float(counts[counts > 1].sum() / len(sids)),
        utilisation=len(counts) / math.prod(sizes),
        level_sizes=sizes,
        level_use=tuple(len(np.unique(sids[:, level])) / size for level, size in enumerate(sizes)),
    )
