"""Vectors of ads in a bundle with an item level: arrays of the folder `ranker`, mapped into memory.

An ad that the model knows has its own. One that came since has the mean of what text and codes say of the ads
below the longest prefix of its SID that is known: its own text's vector is not in the index.

Letters: A ads of a catalogue, n ads, V prefixes, T SID levels, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from serving.model.bundle import BundleError
from serving.ranking.ad_codes import Prefixes
from serving.ranking.tables import FOLDER, read_array

LENGTHS = (1, 2)  # codes of a prefix that new ads are told by


@dataclass(frozen=True, eq=False)
class PrefixVectors:
    """Means below the prefixes of one length.

    Attributes:
        prefixes: numbers of the prefixes.
        vectors: float32 [V, d].
    """

    prefixes: Prefixes
    vectors: np.ndarray


@dataclass(frozen=True, eq=False)
class ItemTables:
    """Vectors of the ads of a catalogue, and of prefixes for others.

    Attributes:
        ad_ids: int64 [A], ascending.
        vectors: float32 [A, d].
        below: of prefixes of `LENGTHS` codes, as many as a SID has.
    """

    ad_ids: np.ndarray
    vectors: np.ndarray
    below: tuple[PrefixVectors, ...]

    @classmethod
    def of(cls, ad_ids: np.ndarray, vectors: np.ndarray, *, content: np.ndarray, sids: np.ndarray) -> Self:
        """Of a catalogue.

        Args:
            ad_ids: int64 [A], ascending.
            vectors: float32 [A, d].
            content: float32 [A, d], what of them text and codes say.
            sids: int [A, T].
        """
        below = []
        for length in LENGTHS[: sids.shape[1]]:
            packed, place = np.unique(Prefixes.pack(sids[:, :length]), return_inverse=True)
            sums = np.zeros((len(packed), content.shape[1]), np.float64)
            np.add.at(sums, place, content)
            means = (sums / np.bincount(place)[:, None]).astype(np.float32)
            below.append(PrefixVectors(Prefixes(packed, np.arange(len(packed), dtype=np.int32)), means))
        return cls(ad_ids, np.ascontiguousarray(vectors, np.float32), tuple(below))

    @property
    def width(self) -> int:
        """Of a vector, d."""
        return int(self.vectors.shape[1])

    def of_ads(self, ad_ids: np.ndarray, sids: np.ndarray) -> np.ndarray:
        """Vectors float32 [n, d].

        Args:
            ad_ids: int64 [n].
            sids: int32 [n, T].
        """
        place = np.minimum(np.searchsorted(self.ad_ids, ad_ids), len(self.ad_ids) - 1)
        found = self.vectors[place]
        new = np.flatnonzero(self.ad_ids[place] != ad_ids)
        if len(new):
            found[new] = 0
            for length, of_length in zip(LENGTHS, self.below, strict=False):  # the longest one last
                row = of_length.prefixes.of_prefixes(sids[new, :length])
                found[new[row >= 0]] = of_length.vectors[row[row >= 0]]
        return found

    def save(self, bundle: Path) -> None:
        """Write the folder of a bundle that has none.

        Raises:
            OSError: the disk is full or not writable.
        """
        (bundle / FOLDER).mkdir()
        arrays = {"ad_ids": self.ad_ids, "vectors": self.vectors}
        for length, of_length in zip(LENGTHS, self.below, strict=False):
            arrays[f"prefix_{length}"] = of_length.prefixes.packed
            arrays[f"prefix_{length}.vectors"] = of_length.vectors
        for name, array in arrays.items():
            np.save(bundle / FOLDER / f"{name}.npy", array, allow_pickle=False)

    @classmethod
    def load(cls, bundle: str | Path, *, width: int, levels: int) -> Self:
        """Of a bundle.

        Raises:
            BundleError: a file is missing, not readable or not what it should be; says which.
        """
        folder = Path(bundle) / FOLDER
        ad_ids = read_array(folder, "ad_ids", np.int64)
        vectors = read_array(folder, "vectors", np.float32, columns=width)
        if not len(ad_ids) or (np.diff(ad_ids) <= 0).any():
            raise BundleError(f"{folder / 'ad_ids.npy'}: expected ascending ids, at least one")
        _check(folder, "vectors", vectors, count=len(ad_ids))
        below = []
        for length in LENGTHS[:levels]:
            packed = read_array(folder, f"prefix_{length}", np.int64)
            means = read_array(folder, f"prefix_{length}.vectors", np.float32, columns=width)
            if (np.diff(packed) <= 0).any():
                raise BundleError(f"{folder / f'prefix_{length}.npy'}: expected ascending prefixes")
            _check(folder, f"prefix_{length}.vectors", means, count=len(packed))
            below.append(PrefixVectors(Prefixes(packed, np.arange(len(packed), dtype=np.int32)), means))
        return cls(ad_ids, vectors, tuple(below))


def _check(folder: Path, name: str, vectors: np.ndarray, *, count: int) -> None:
    if len(vectors) != count or not np.isfinite(vectors).all():
        raise BundleError(f"{folder / f'{name}.npy'}: expected {count} rows of finite numbers, got others")
