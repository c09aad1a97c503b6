"""What ads have in common: item, text, account, prefixes of their semantic IDs, each as a number.

Letters: A ads of a catalogue, n ads, K keys, T SID levels, V prefixes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

KEYS = ("ad", "item", "text", "account", "prefix_1", "prefix_2")
AD, PREFIX_1, PREFIX_2 = (KEYS.index(name) for name in ("ad", "prefix_1", "prefix_2"))
LEVELS = {PREFIX_1: 1, PREFIX_2: 2}
"""SID codes of a prefix, by its key."""

_CODE_BITS = 32


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Numbers of the prefixes of one length.

    Attributes:
        packed: int64 [V], ascending, see `pack`.
        codes: int32 [V].
    """

    packed: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, prefixes: np.ndarray, codes: np.ndarray) -> Self:
        """Of prefixes int32 [A, length] and their numbers int32 [A]."""
        packed, first = np.unique(cls.pack(prefixes), return_index=True)
        return cls(packed, codes[first])

    @staticmethod
    def pack(prefixes: np.ndarray) -> np.ndarray:
        """One number int64 [n] a prefix int32 [n, length], of at most two codes."""
        packed = prefixes[:, 0].astype(np.int64)
        for level in range(1, prefixes.shape[1]):
            packed = packed << _CODE_BITS | prefixes[:, level]
        return packed

    def of_prefixes(self, prefixes: np.ndarray) -> np.ndarray:
        """Numbers int32 [n] of prefixes int32 [n, length]; -1 where no ad of the catalogue lies below."""
        if not len(self.packed):
            return np.full(len(prefixes), -1, np.int32)
        packed = self.pack(prefixes)
        place = np.minimum(np.searchsorted(self.packed, packed), len(self.packed) - 1)
        return np.where(self.packed[place] == packed, self.codes[place], np.int32(-1))


@dataclass(frozen=True, eq=False)
class AdCodes:
    """The numbers of a catalogue's ads; of others what their SIDs tell.

    Attributes:
        ad_ids: int64 [A], ascending.
        codes: int32 [A, K], dense; equal numbers of a key are one item, text, .., -1 is unknown.
        prefixes: of each key of `LEVELS`.
    """

    ad_ids: np.ndarray
    codes: np.ndarray
    prefixes: dict[int, Prefixes]

    @classmethod
    def of_catalogue(cls, ad_ids: np.ndarray, sids: np.ndarray, codes: np.ndarray) -> Self:
        """Of a catalogue's ads, int32 [A, T] their SIDs."""
        prefixes = {key: Prefixes.of(sids[:, :length], codes[:, key]) for key, length in LEVELS.items()}
        return cls(ad_ids, codes, prefixes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of each key, length K."""
        return tuple(int(column.max(initial=-1)) + 1 for column in self.codes.T)

    def knows(self, ad_ids: np.ndarray) -> np.ndarray:
        """Whether ads int64 [n] are the catalogue's, bool [n]."""
        return self.ad_ids[self.place(ad_ids)] == ad_ids if len(self.ad_ids) else np.zeros(len(ad_ids), bool)

    def place(self, ad_ids: np.ndarray) -> np.ndarray:
        """Rows int64 [n] of ads that the catalogue knows; of others any."""
        return np.minimum(np.searchsorted(self.ad_ids, ad_ids), len(self.ad_ids) - 1)

    def of(self, ad_ids: np.ndarray, sids: np.ndarray) -> np.ndarray:
        """Codes int32 [n, K] of ads.

        An ad that the catalogue lacks has a number of its own, no item, text or account, and the prefixes of
        its SID where the catalogue has them. One that it knows keeps its numbers, whatever its SID is now.

        Args:
            ad_ids: int64 [n].
            sids: int32 [n, T].
        """
        known = self.knows(ad_ids)
        codes = np.full((len(ad_ids), len(KEYS)), -1, np.int32)
        codes[known] = self.codes[self.place(ad_ids[known])]
        new = np.flatnonzero(~known)
        if len(new):
            codes[new, AD] = len(self.ad_ids) + np.unique(ad_ids[new], return_inverse=True)[1]
            for key, length in LEVELS.items():
                codes[new, key] = self.prefixes[key].of_prefixes(sids[new, :length])
        return codes
