"""Which ads may be answers to a request: served, created by then, for that request, and not seen already.

The same rule holds for the model, for every baseline and for the targets. Letters: A ads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from serving.backend.settings import ServingConfig
from serving.index.eligible import NO_TERMS, Terms
from training.data.samples import RequestDataset
from training.evaluation.requests import Requests
from training.rollout.audiences import Audiences
from training.rollout.live import LiveAds


@dataclass(frozen=True)
class Competing:
    """The ads of an evaluation.

    Attributes:
        dataset: histories of the requests.
        live: which ads are in the index when; an ad competes from its creation on.
        exclude_seen: whether ads of a request's history are left out, of whatever behavior.
        audiences: who may see which ad; None where all are for everybody.
    """

    dataset: RequestDataset
    live: LiveAds
    exclude_seen: bool
    audiences: Audiences | None = None

    @classmethod
    def of(
        cls,
        dataset: RequestDataset,
        ads: pl.DataFrame,
        *,
        exclude_seen: bool,
        serving: ServingConfig | None = None,
    ) -> Competing:
        """From the ads table, and section `serving`, see `Audiences.of`.

        Raises:
            ValueError: it has other ads than the dataset, or an audience that is none.
        """
        audiences = Audiences.of(dataset, ads, serving=serving)
        return cls(dataset, LiveAds.of(dataset, ads), exclude_seen, audiences)

    def seen(self, requests: Requests, i: int) -> np.ndarray:
        """Ads, rows of the dataset, that request i must not be answered with because its user had them."""
        if not self.exclude_seen:
            return np.zeros(0, np.int64)
        past = self.dataset.history(requests.groups, int(requests.rows[i]))
        return np.unique(self.dataset.event_ad[past])

    def terms(self, requests: Requests, i: int) -> Terms:
        """What decides which ads request i may be shown."""
        if self.audiences is None:
            return NO_TERMS
        groups, row, dataset = requests.groups, requests.rows[i], self.dataset
        profile = dataset.profile[groups.user_row[row]], dataset.request_codes[groups.request[row]]
        return self.audiences.terms(np.concatenate(profile), now=int(groups.now[row]))

    def there(self, requests: Requests, i: int) -> np.ndarray:
        """Bool [A]: ads that are live at the time of request i, and that it has not seen; for it or not."""
        there = self.live.at(int(requests.now[i]))
        there[self.seen(requests, i)] = False
        return there

    def allowed(self, requests: Requests, i: int) -> np.ndarray:
        """Bool [A]: ads that compete for request i."""
        there = self.there(requests, i)
        return there if self.audiences is None else there & self.audiences.shown(self.terms(requests, i))

    def shares(self, requests: Requests) -> dict[str, float] | None:
        """What audiences leave of the ads; None where all are for everybody.

        Returns:
            `ads`, the share that have one, and `eligible`, of the ads that are there for a request the share
            that compete, on average.
        """
        if self.audiences is None:
            return None
        left = []
        for i in range(len(requests.rows)):
            there, shown = self.there(requests, i), self.audiences.shown(self.terms(requests, i))
            left.append((there & shown).sum() / max(there.sum(), 1))
        return {"ads": float(np.mean(self.audiences.numbers > 0)), "eligible": float(np.mean(left))}

    def answerable(self, requests: Requests) -> tuple[Requests, dict[str, int]]:
        """Requests with the targets that compete, the oldest first; and how many are left out.

        Raises:
            ValueError: no target is left.
        """
        left_out = dict.fromkeys(("requests", "paused", "created_later", "seen"), 0)
        if self.audiences is not None:
            left_out["audience"] = 0
        kept, targets, values = [], [], []
        for i in np.argsort(requests.now, kind="stable"):
            rows = np.searchsorted(self.dataset.ad_ids, requests.targets[i])
            active, late = self.live.active[rows], self.live.created[rows] > requests.now[i]
            seen = np.isin(rows, self.seen(requests, i))
            good = active & ~late & ~seen
            if self.audiences is not None:
                mine = self.audiences.shown(self.terms(requests, int(i)))[rows]
                left_out["audience"] += int((good & ~mine).sum())
                good &= mine
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
