"""What the response model sees of a user before a request. Letters: H events, h distinct ads, k kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data.groups import TargetGroups
from training.data.samples import RequestDataset

KERNELS_DAYS = (3.5, 7.0, 14.0, 28.0, 91.0, 364.0)  # decays of the counts of an ad
TASTE_DAYS = (14.0, 182.0)  # decays of the events that make up a user's taste
NEWEST = 1024  # events
_DAY = 86_400.0


@dataclass(frozen=True)
class Past:
    """A user before a request.

    Attributes:
        ads: int64 [h], distinct ads, rows of the dataset, ascending.
        taste: float64 [h, 2], share of each in the user's taste, by decay; columns sum to 1 where h > 0.
        own: float64 [h, k], log of the decayed share of the user's requests that had each: of n in N it is
            log((n + .1) / (N + 1)).
        size: log of the mean number of ads that the user took at once, 0 without a past.
    """

    ads: np.ndarray
    taste: np.ndarray
    own: np.ndarray
    size: float

    @classmethod
    def of(cls, dataset: RequestDataset, groups: TargetGroups, row: int, *, behaviors: np.ndarray) -> Past:
        """Of request `row`: the newest events, of them those of the behaviors, by code."""
        log = dataset.log
        events = dataset.history(groups, row, newest=NEWEST)
        events = events[np.isin(log.behavior[events], behaviors)]
        return cls.of_purchases(dataset.event_ad[events], log.timestamp[events], now=int(groups.now[row]))

    @classmethod
    def of_purchases(cls, bought: np.ndarray, timestamps: np.ndarray, *, now: int) -> Past:
        """Of purchases before a request at `now`: ads, rows int64 [H], and unix seconds int64 [H]."""
        if not len(bought):
            return cls(np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros((0, len(KERNELS_DAYS))), 0.0)
        ads, which = np.unique(bought, return_inverse=True)
        days = (now - timestamps) / _DAY

        times = np.unique(days)

        def sums(decays: tuple[float, ...]) -> np.ndarray:
            weights = np.exp(-days[:, None] / decays)
            return np.stack([np.bincount(which, w, minlength=len(ads)) for w in weights.T], axis=1)

        taste = sums(TASTE_DAYS) + 1e-12
        requests = np.exp(-times[:, None] / KERNELS_DAYS).sum(axis=0)
        own = np.log((sums(KERNELS_DAYS) + 0.1) / (requests + 1))
        return cls(ads, taste / taste.sum(axis=0), own, float(np.log(len(bought) / len(times))))
