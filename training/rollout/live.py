"""Which ads a search can find at a time: those that are not paused and were created by then.

Letters: A ads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from serving.index.snapshot import IndexSnapshot
from training.data.samples import RequestDataset
from training.rollout.audiences import Audiences


@dataclass(frozen=True, eq=False)
class LiveAds:
    """Ads as the index has them, in the order of the dataset's `ad_ids`.

    Attributes:
        active: bool [A], not paused.
        created: int64 [A], unix seconds.
    """

    active: np.ndarray
    created: np.ndarray

    @classmethod
    def of(cls, dataset: RequestDataset, ads: pl.DataFrame) -> LiveAds:
        """From the ads table.

        Raises:
            ValueError: it has other ads than the dataset.
        """
        ads = ads.sort("ad_id")
        if not np.array_equal(ads["ad_id"].to_numpy(), dataset.ad_ids):
            raise ValueError(
                f"expected the {len(dataset.ad_ids)} ads that have SIDs in the ads table, got {ads.height} "
                "others: tokenizer and data do not belong together"
            )
        return cls((ads["status"] == "active").to_numpy(), ads["created_at"].to_numpy())

    def at(self, now: int) -> np.ndarray:
        """Bool [A]: ads that are live then."""
        return self.active & (self.created <= now)


class LiveIndex:
    """The index as of a time; asked in the order of time, it is built only when other ads are live."""

    def __init__(
        self,
        dataset: RequestDataset,
        live: LiveAds,
        *,
        level_sizes: tuple[int, ...],
        audiences: Audiences | None = None,
    ) -> None:
        """Of the ads of a dataset; all are for everybody where `audiences` is None."""
        self._dataset, self.live, self._level_sizes = dataset, live, level_sizes
        self.audiences = audiences
        self._there = np.zeros(0, bool)
        self._snapshot: IndexSnapshot | None = None

    def at(self, now: int) -> IndexSnapshot:
        """The index then."""
        there = self.live.at(now)
        if self._snapshot is None or not np.array_equal(there, self._there):
            self._there = there
            self._snapshot = IndexSnapshot.build(
                self._dataset.ad_ids,
                self._dataset.ad_sids,
                active=there,
                level_sizes=self._level_sizes,
                audiences=None if self.audiences is None else self.audiences.numbers,
                table=None if self.audiences is None else self.audiences.table,
            )
        return self._snapshot

    def late(self, now: int) -> np.ndarray:
        """Ads int64 of the index that was built last, that were not live at an earlier time."""
        return self.but(self.live.at(now))

    def but(self, allowed: np.ndarray) -> np.ndarray:
        """Ads int64 of the index that was built last, but for the allowed, bool [A]."""
        return self._dataset.ad_ids[self._there & ~allowed]
