"""Which ads may be answers to a request: those that are served, exist by then, and are not seen already.

The same rule holds for the model, for every baseline and for the targets. Letters: A ads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from training.data.samples import RequestDataset
from training.evaluation.requests import Requests
from training.rollout.live import LiveAds


@dataclass(frozen=True)
class Competing:
    """The ads of an evaluation.

    Attributes:
        dataset: histories of the requests.
        live: which ads are in the index when; an ad competes from its creation on.
        exclude_seen: whether ads of a request's history are left out, of whatever behavior.
    """

    dataset: RequestDataset
    live: LiveAds
    exclude_seen: bool

    @classmethod
    def of(cls, dataset: RequestDataset, ads: pl.DataFrame, *, exclude_seen: bool) -> Competing:
        """From the ads table.

        Raises:
            ValueError: it has other ads than the dataset.
        """
        return cls(dataset, LiveAds.of(dataset, ads), exclude_seen)

    def seen(self, requests: Requests, i: int) -> np.ndarray:
        """Ads, rows of the dataset, that request i must not be answered with because its user had them."""
        if not self.exclude_seen:
            return np.zeros(0, np.int64)
        past = self.dataset.history(requests.groups, int(requests.rows[i]))
        return np.unique(self.dataset.event_ad[past])

    def allowed(self, now: int, *, seen: np.ndarray) -> np.ndarray:
        """Bool [A]: ads that compete for a request of that time."""
        allowed = self.live.at(now)
        allowed[seen] = False
        return allowed

    def answerable(self, requests: Requests) -> tuple[Requests, dict[str, int]]:
        """Requests with the targets that compete, the oldest first; and how many are left out.

        Raises:
            ValueError: no target is left.
        """
        left_out = dict.fromkeys(("requests", "paused", "created_later", "seen"), 0)
        kept, targets, values = [], [], []
        for i in np.argsort(requests.now, kind="stable"):
            rows = np.searchsorted(self.dataset.ad_ids, requests.targets[i])
            active, late = self.live.active[rows], self.live.created[rows] > requests.now[i]
            seen = np.isin(rows, self.seen(requests, i))
            good = active & ~late & ~seen
            left_out["paused"] += int((~active).sum())
            left_out["created_later"] += int((active & late).sum())
            left_out["seen"] += int((active & ~late & seen).sum())
            if good.any():
                kept.append(int(i))
                targets.append(requests.targets[i][good])
                values.append(requests.values[i][good])
        left_out["requests"] = len(requests.rows) - len(kept)
        if not kept:
            raise ValueError(f"expected a target among the ads that compete, got none; left out: {left_out}")
        return replace(requests, rows=requests.rows[kept], targets=targets, values=values), left_out
