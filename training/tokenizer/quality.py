"""How well SIDs tell ads apart, how evenly they use their codes, and what they keep of the vectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.tokenizer.definitions import format_definitions


@dataclass(frozen=True)
class Vectors:
    """What the SIDs of N ads were made from, D dimensions.

    Attributes:
        content: int [N], which content each ad has; equal numbers, equal contents.
        x: float [N, D], its vector.
        decoded: float [N, D], what its codes before the hash stand for.
    """

    content: np.ndarray
    x: np.ndarray
    decoded: np.ndarray


@dataclass(frozen=True)
class SidQuality:
    """Quality of a SID table; see `training.tokenizer.definitions`.

    Attributes:
        ads: number of ads N.
        distinct_sids: number of different SIDs.
        compression: N / distinct SIDs, at least 1.
        collision: share 0..1.
        utilisation: share 0..1.
        level_sizes: codes of each level, length T.
        level_use: share 0..1 of used codes of each level, length T.
        dead_codes: codes of each level without an ad, length T.
        gini: of each level, 0..1, length T.
        largest: of each level, at least 1, length T.
        collision_floor: share 0..1; None where the contents are not known, as the next two.
        reconstruction: 0 is exact, 1 what the mean says.
        path_similarity: -1..1; None also where no prefix has two contents.
    """

    ads: int
    distinct_sids: int
    compression: float
    collision: float
    utilisation: float
    level_sizes: tuple[int, ...]
    level_use: tuple[float, ...]
    dead_codes: tuple[int, ...]
    gini: tuple[float, ...]
    largest: tuple[float, ...]
    collision_floor: float | None = None
    reconstruction: float | None = None
    path_similarity: float | None = None

    def format_table(self) -> str:
        """Return the figures and, below them, their definitions."""
        levels = "  ".join(
            f"{use:.1%} of {size}" for use, size in zip(self.level_use, self.level_sizes, strict=True)
        )
        rows = {
            "ads": f"{self.ads:,}",
            "SIDs": f"{self.distinct_sids:,}",
            "compression": f"{self.compression:.3f}",
            "collision": f"{self.collision:.2%}",
            "collision floor": _shown(self.collision_floor, ".2%"),
            "utilisation": f"{self.utilisation * 1000:.4f} permille",
            "level use": levels,
            "Gini": "  ".join(f"{gini:.3f}" for gini in self.gini),
            "largest": "  ".join(f"{largest:.2f}" for largest in self.largest),
            "reconstruction": _shown(self.reconstruction, ".3f"),
            "path similarity": _shown(self.path_similarity, ".3f"),
        }
        return "".join(f"{name:17}{value}\n" for name, value in rows.items()) + f"\n{format_definitions()}"


def sid_quality(
    sids: np.ndarray, level_sizes: Sequence[int], *, vectors: Vectors | None = None
) -> SidQuality:
    """Measure sids, int [N, T], whose level t has `level_sizes[t]` codes and whose last level is a hash.

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
    collision, distinct = _collision(sids)
    carried = [np.bincount(sids[:, level], minlength=size) for level, size in enumerate(sizes)]
    dead = tuple(int((ads == 0).sum()) for ads in carried)
    known = {}
    if vectors is not None:
        known = {
            "collision_floor": _collision(np.stack([vectors.content, sids[:, -1]], axis=1))[0],
            "reconstruction": reconstruction(vectors.x, vectors.decoded),
            "path_similarity": _path_similarity(sids[:, :-1], vectors),
        }
    return SidQuality(
        ads=len(sids),
        distinct_sids=distinct,
        compression=len(sids) / distinct,
        collision=collision,
        utilisation=distinct / math.prod(sizes),
        level_sizes=sizes,
        level_use=tuple(1 - count / size for count, size in zip(dead, sizes, strict=True)),
        dead_codes=dead,
        gini=tuple(gini(ads) for ads in carried),
        largest=tuple(float(ads.max() / ads.mean()) for ads in carried),
        **known,
    )


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of counts [K], not all 0: the mean difference of two of them / twice their mean."""
    ordered, k = np.sort(np.asarray(counts, np.float64)), len(counts)
    # sum_ij |a_i - a_j| = 2 sum_i (2 i - K + 1) a_(i), i from 0.
    return float((2 * np.arange(k) - k + 1) @ ordered / (k * ordered.sum()))


def _collision(sids: np.ndarray) -> tuple[float, int]:
    """Share of rows that are not alone, and number of distinct rows."""
    _, counts = np.unique(sids, axis=0, return_counts=True)
    return float(counts[counts > 1].sum() / len(sids)), len(counts)


def reconstruction(x: np.ndarray, decoded: np.ndarray) -> float | None:
    """Squared error of `decoded` in units of the mean's, both [N, D]; None where all vectors are equal."""
    x = x.astype(np.float64)
    variance, error = ((x - x.mean(axis=0)) ** 2).sum(), ((x - decoded) ** 2).sum()
    return float(error / variance) if variance > 0 else None


def _path_similarity(prefixes: np.ndarray, vectors: Vectors) -> float | None:
    """Of n unit vectors u with sum s, pairs have a mean cosine of (|s|^2 - n) / (n (n - 1))."""
    first = np.unique(vectors.content, return_index=True)[1]  # an ad of each content
    x = vectors.x[first].astype(np.float64)
    norms = np.linalg.norm(x, axis=1)
    unit = x[norms > 0] / norms[norms > 0][:, None]
    _, path = np.unique(prefixes[first][norms > 0], axis=0, return_inverse=True)
    path = path.ravel()
    n = np.bincount(path)
    several = n > 1
    if not several.any():
        return None
    sums = np.stack([np.bincount(path, weights=column) for column in unit.T], axis=1)
    cosines = ((sums**2).sum(axis=1)[several] - n[several]) / (n[several] * (n[several] - 1.0))
    return float(cosines.mean())


def _shown(value: float | None, form: str) -> str:
    return "not known" if value is None else format(value, form)
