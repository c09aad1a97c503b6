"""Ads of held-out requests in the order of the item level: those of the beams, and all that compete.

Both go through the code that serves, `serving.ranking.item_ranker`. Letters: A ads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.backend.resolve import Ads
from serving.ranking.item_ranker import ItemRanker
from serving.ranking.ranker import RankRequest, best_first
from training.data.samples import RequestDataset
from training.evaluation.competing import Competing
from training.evaluation.requests import Requests
from training.model.gr4ad import Generator
from training.model.item_graph import TorchRankGraph, item_tables


class ItemLevel:
    """The item level of a model over the requests of an evaluation."""

    def __init__(self, model: Generator, dataset: RequestDataset, requests: Requests) -> None:
        """Make the vectors of all ads.

        Raises:
            ValueError: the model has no item level.
        """
        self._dataset, self._requests = dataset, requests
        self._tables, self._graph = item_tables(model), TorchRankGraph(model)
        self._ranker = ItemRanker(dataset.spec, self._tables, self._graph)

    def order(self, found: Sequence[Ads], *, first: int) -> list[np.ndarray]:
        """Ads of requests `first`, `first` + 1, .. best first, each list of those found for it."""
        asked = [self._asked(first + i, ads) for i, ads in enumerate(found) if len(ads.ad_ids)]
        worth = iter(self._ranker.worth(asked) if asked else ())
        return [ads.ad_ids[best_first(next(worth))] if len(ads.ad_ids) else ads.ad_ids for ads in found]

    def order_all(self, competing: Competing, *, limit: int) -> list[np.ndarray]:
        """The best `limit` ads of each request among all that compete."""
        dataset, found = self._dataset, []
        count, none = len(dataset.ad_ids), np.zeros(0, np.float32)
        nobody = Ads(dataset.ad_ids[:0], none, none, dataset.ad_sids[:0])
        # The same for every request, so they are looked up once.
        every = {
            "ad_vectors": self._tables.of_ads(dataset.ad_ids, dataset.ad_sids)[None],  # [1, A, d]
            "log_p": np.zeros((1, count), np.float32),  # the search did not look at most of them
        }
        for i in range(len(self._requests.rows)):
            rows = np.flatnonzero(competing.allowed(self._requests, i))
            inputs = self._ranker.tensors([self._asked(i, nobody)], ads=0)
            [worth] = self._graph(inputs | every)
            found.append(dataset.ad_ids[rows[best_first(worth[rows])[:limit]]])
        return found

    def _asked(self, i: int, ads: Ads) -> RankRequest:
        dataset, groups, row = self._dataset, self._requests.groups, self._requests.rows[i]
        log, past = dataset.log, dataset.history(groups, int(row), newest=dataset.spec.max_history)
        profile = dataset.profile[groups.user_row[row]], dataset.request_codes[groups.request[row]]
        return RankRequest(
            ads=ads.ad_ids,
            sids=ads.sids,
            log_p=ads.scores,
            past_ads=log.ad_ids[past],
            past_sids=dataset.ad_sids[dataset.event_ad[past]],
            past_behaviors=log.behavior[past],
            past_times=log.timestamp[past],
            now=int(groups.now[row]),
            profile=np.concatenate(profile),
        )
