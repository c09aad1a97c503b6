"""What a log says of each ad: how popular, how soon again, at what value. How it is counted is training's.

Letters: n ads, K keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.ranking.ad_codes import AD, KEYS, PREFIX_2

OF_KEY = ("share", "recent")
OF_AD = ("value", "rate", "gap", "again")
AD_KEYS = ("ad", "prefix_2")  # that the statistics of ads are kept by


@dataclass(frozen=True, eq=False)
class AdStatistics:
    """Statistics as of a time. The last entry of every array is that of an unknown ad, item, ..

    Attributes:
        arrays: float32 each, `share.<key>` and `recent.<key>` by the key's number: log(1 + millionths of all
            outcomes, and of those of the last 28 days). `<what>.ad` and `<what>.prefix_2` for `value` (mean),
            `rate` (outcomes an exposure), `gap` (mean of log(1 + days) until a user has the ad again), and
            `again` (outcomes a user who has it).
    """

    arrays: dict[str, np.ndarray]

    def of_key(self, name: str, k: int, codes: np.ndarray) -> np.ndarray:
        """`share` or `recent` of codes int32 [n] of key k; float32 [n]."""
        return _take(self.arrays[f"{name}.{KEYS[k]}"], codes)

    def of_ad(self, name: str, codes: np.ndarray) -> np.ndarray:
        """`value`, `rate`, `gap`, `again` of ads, codes int32 [n, K]; of unknown ads that of their prefix."""
        of_ads = self.arrays[f"{name}.ad"]
        known = (codes[:, AD] >= 0) & (codes[:, AD] < len(of_ads) - 1)
        of_prefixes = _take(self.arrays[f"{name}.prefix_2"], codes[:, PREFIX_2])
        return np.where(known, _take(of_ads, codes[:, AD]), of_prefixes)


def names() -> tuple[str, ...]:
    """Of all arrays of `AdStatistics`."""
    of_keys = (f"{name}.{key}" for name in OF_KEY for key in KEYS)
    return (*of_keys, *(f"{name}.{key}" for name in OF_AD for key in AD_KEYS))


def _take(array: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return array[np.where(codes < len(array) - 1, codes, -1)]
