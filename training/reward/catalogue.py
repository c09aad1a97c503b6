"""The ads that a reward model was fitted on, each with its numbers (`serving.ranking.ad_codes`).

Letters: A ads, K keys, T SID levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from serving.ranking.ad_codes import AD, KEYS, LEVELS, AdCodes
from training.data.samples import RequestDataset

_OF_TABLE = {"item": "item_id", "text": "text", "account": "account_id"}


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
        for key, length in LEVELS.items():
            codes[:, key] = np.unique(dataset.ad_sids[:, :length], axis=0, return_inverse=True)[1].ravel()
        return cls(dataset.ad_ids, dataset.ad_sids, codes)

    @cached_property
    def ad_codes(self) -> AdCodes:
        """What a server is told of it."""
        return AdCodes.of_catalogue(self.ad_ids, self.sids, self.codes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of each key, length K."""
        return self.ad_codes.sizes

    def codes_of(self, dataset: RequestDataset) -> np.ndarray:
        """Codes int32 [A', K] of the ads of a dataset, see `AdCodes.of`.

        Raises:
            CatalogueError: see `check`.
        """
        self.check(dataset.ad_ids, dataset.ad_sids)
        return self.ad_codes.of(dataset.ad_ids, dataset.ad_sids)

    def check(self, ad_ids: np.ndarray, sids: np.ndarray) -> None:
        """Hold ads int64 [A'] and their SIDs int32 [A', T] against it; others than its own may be among them.

        Raises:
            CatalogueError: an ad has another SID than here, or no ad is known.
        """
        known = self.ad_codes.knows(ad_ids)
        if not known.any():
            raise CatalogueError(
                f"reward model: expected ads of its catalogue of {len(self.ad_ids)}, got {len(known)} others"
            )
        if self.sids.shape[1] != sids.shape[1]:
            raise CatalogueError(
                f"reward model: expected SIDs of {self.sids.shape[1]} levels, got {sids.shape[1]}"
            )
        place = self.ad_codes.place(ad_ids)
        other = np.flatnonzero(known & (self.sids[place] != sids).any(axis=1))
        if len(other):
            first = other[0]
            raise CatalogueError(
                f"reward model: expected the SIDs that it was made with, got others of {len(other)} of "
                f"{known.sum()} ads; first ad_id {ad_ids[first]}: expected "
                f"{self.sids[place[first]].tolist()}, got {sids[first].tolist()}; make it again"
            )
