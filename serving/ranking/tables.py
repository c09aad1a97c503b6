"""What a ranker knows of ads, as it lies in a bundle: arrays of the folder `ranker`, mapped into memory.

Every file is checked by the sha256 of the manifest like all others; here it is held that the arrays are those
of one catalogue, and numbers that a feature can be made of.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from serving.model.bundle import BundleError
from serving.ranking.ad_codes import AD, KEYS, LEVELS, AdCodes, Prefixes
from serving.ranking.statistics import AdStatistics, names

FOLDER = "ranker"


def read_array(folder: Path, name: str, dtype: type, *, columns: int = 0) -> np.ndarray:
    """An array of a bundle's ranker, mapped into memory: [n], or [n, columns].

    Raises:
        BundleError: it is missing, not readable, or of another type or shape.
    """
    path = folder / f"{name}.npy"
    try:
        # The mapping without its class, which is slow to index.
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path}: expected an array, got: {error}") from error
    shape = f"[n, {columns}]" if columns else "[n]"
    if array.dtype != dtype or array.shape[1:] != ((columns,) if columns else ()) or not array.ndim:
        raise BundleError(
            f"{path}: expected {np.dtype(dtype)} {shape}, got {array.dtype} {list(array.shape)}"
        )
    return array


@dataclass(frozen=True, eq=False)
class RankerTables:
    """Numbers of the ads of a catalogue, and the newest statistics of them."""

    ad_codes: AdCodes
    statistics: AdStatistics

    def save(self, bundle: Path) -> None:
        """Write the folder of a bundle that has none.

        Raises:
            OSError: the disk is full or not writable.
        """
        (bundle / FOLDER).mkdir()
        for name, array in self._arrays().items():
            np.save(bundle / FOLDER / f"{name}.npy", array, allow_pickle=False)

    @classmethod
    def load(cls, bundle: str | Path) -> Self:
        """Of a bundle.

        Raises:
            BundleError: a file is missing, not readable or not what it should be; says which.
        """
        folder = Path(bundle) / FOLDER
        read = functools.partial(read_array, folder)
        prefixes = {
            key: Prefixes(read(KEYS[key], np.int64), read(f"{KEYS[key]}.codes", np.int32)) for key in LEVELS
        }
        codes = AdCodes(read("ad_ids", np.int64), read("codes", np.int32, columns=len(KEYS)), prefixes)
        found = cls(codes, AdStatistics({name: read(name, np.float32) for name in names()}))
        problem = found._problem()
        if problem:
            raise BundleError(f"{folder}: {problem}")
        return found

    def _arrays(self) -> dict[str, np.ndarray]:
        codes = self.ad_codes
        arrays = {"ad_ids": codes.ad_ids, "codes": codes.codes, **self.statistics.arrays}
        for key, prefixes in codes.prefixes.items():
            arrays |= {KEYS[key]: prefixes.packed, f"{KEYS[key]}.codes": prefixes.codes}
        return arrays

    def _problem(self) -> str:
        """What does not hold, or nothing."""
        codes, count = self.ad_codes, len(self.ad_ids)
        if not count or (np.diff(codes.ad_ids) <= 0).any():
            return f"ad_ids.npy: expected ascending ids, got {count} that do not ascend"
        if len(codes.codes) != count or (codes.codes[:, AD] != np.arange(count)).any():
            return f"codes.npy: expected one row for each of {count} ads, in order, got {len(codes.codes)}"
        if (codes.codes < -1).any():
            return f"codes.npy: expected numbers >= -1, got {codes.codes.min()}"
        sizes = dict(zip(KEYS, codes.sizes, strict=True))
        for key, of_key in codes.prefixes.items():
            name = KEYS[key]
            if len(of_key.packed) != len(of_key.codes) or (np.diff(of_key.packed) <= 0).any():
                return f"{name}.npy: expected ascending prefixes, one for each of {len(of_key.codes)} numbers"
            if len(of_key.codes) and not (of_key.codes.min() >= 0 and of_key.codes.max() < sizes[name]):
                return f"{name}.codes.npy: expected numbers in 0..{sizes[name] - 1}"
        for name, array in self.statistics.arrays.items():
            size = sizes[name.partition(".")[2]] + 1
            if len(array) != size:
                return f"{name}.npy: expected {size} numbers, got {len(array)}"
            if not (np.isfinite(array) & (array >= 0)).all():
                return f"{name}.npy: expected finite numbers >= 0, got others"
        return ""

    @property
    def ad_ids(self) -> np.ndarray:
        """Of the catalogue, int64 [A]."""
        return self.ad_codes.ad_ids
