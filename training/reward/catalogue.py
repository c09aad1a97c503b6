"""What ads have in common: item, text, account, prefixes of their semantic IDs, each as a number.

Letters: A ads, K keys, T SID levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from training.data.samples import RequestDataset

KEYS = ("ad", "item", "text", "account", "prefix_1", "prefix_2")
_OF_TABLE = {"item": "item_id", "text": "text", "account": "account_id"}
AD, PREFIX_1, PREFIX_2 = (KEYS.index(name) for name in ("ad", "prefix_1", "prefix_2"))


class CatalogueError(ValueError):
    """A reward model was made of another catalogue."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The ads that a reward model knows.

    Attributes:
        ad_ids: int64 [A], ascending.
        sids: int32 [A, T].
        codes: int32 [A, K], dense numbers; equal numbers of a key are one item, text, .., -1 is unknown.
    """

    ad_ids: np.ndarray
    sids: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, dataset: RequestDataset, ads: pl.DataFrame) -> Catalogue:
        """The ads of a dataset.

        Args:
            dataset: ids and SIDs.
            ads: the table, with every ad of the dataset; it may lack text.
        """
        table = pl.DataFrame({"ad_id": dataset.ad_ids}).join(
            ads, on="ad_id", how="left", maintain_order="left"
        )
        codes = np.full((len(dataset.ad_ids), len(KEYS)), -1, np.int32)
        codes[:, AD] = np.arange(len(codes))
        for name, column in _OF_TABLE.items():
            if column in table.columns:
                ranks = table[column].cast(pl.String).rank("dense").cast(pl.Int32) - 1
                codes[:, KEYS.index(name)] = ranks.fill_null(-1).to_numpy()
        for key, levels in ((PREFIX_1, 1), (PREFIX_2, 2)):
            codes[:, key] = np.unique(dataset.ad_sids[:, :levels], axis=0, return_inverse=True)[1].ravel()
        return cls(dataset.ad_ids, dataset.ad_sids, codes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of each key, length K."""
        return tuple(int(column.max(initial=-1)) + 1 for column in self.codes.T)

    def codes_of(self, dataset: RequestDataset) -> np.ndarray:
        """Codes int32 [A', K] of the ads of a dataset.

        An ad that came since has a number of its own, no item, text or account, and the prefixes of its SID
        where the catalogue has them.

        Raises:
            CatalogueError: an ad has another SID than here, or no ad is known.
        """
        place = np.minimum(np.searchsorted(self.ad_ids, dataset.ad_ids), len(self.ad_ids) - 1)
        known = self.ad_ids[place] == dataset.ad_ids
        if not known.any():
            raise CatalogueError(
                f"reward model: expected ads of its catalogue of {len(self.ad_ids)}, got {len(known)} others"
            )
        if self.sids.shape[1] != dataset.ad_sids.shape[1]:
            raise CatalogueError(
                f"reward model: expected SIDs of {self.sids.shape[1]} levels, got {dataset.ad_sids.shape[1]}"
            )
        other = np.flatnonzero(known & (self.sids[place] != dataset.ad_sids).any(axis=1))
        if len(other):
            first = other[0]
            raise CatalogueError(
                f"reward model: expected the SIDs that it was made with, got others of {len(other)} of "
                f"{known.sum()} ads; first ad_id {dataset.ad_ids[first]}: expected "
                f"{self.sids[place[first]].tolist()}, got {dataset.ad_sids[first].tolist()}; make it again"
            )
        codes = np.where(known[:, None], self.codes[place], np.int32(-1))
        new = np.flatnonzero(~known)
        codes[new, AD] = len(self.ad_ids) + np.arange(len(new))
        for key, levels in ((PREFIX_1, 1), (PREFIX_2, 2)):
            codes[new, key] = self._prefix_codes(dataset.ad_sids[new, :levels], key=key)
        return codes

    def _prefix_codes(self, prefixes: np.ndarray, *, key: int) -> np.ndarray:
        """Codes int32 of prefixes int32 [N, levels]; -1 where no known ad lies below."""
        levels = prefixes.shape[1]
        codes = (
            {
                tuple(sid[:levels]): code
                for sid, code in zip(self.sids.tolist(), self.codes[:, key].tolist(), strict=True)
            }
            if len(prefixes)
            else {}
        )
        return np.array([codes.get(tuple(prefix), -1) for prefix in prefixes.tolist()], np.int32)
