"""Requests of a dataset as a reward model sees them.

Letters: A ads, K keys, n candidates.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from serving.model.features import BEHAVIORS
from serving.ranking.ad_codes import AD
from serving.ranking.features import Features, Request, features_of
from serving.ranking.statistics import AdStatistics
from training.data.groups import TargetGroups
from training.data.samples import RequestDataset
from training.data.split import WEEK
from training.reward.catalogue import Catalogue
from training.reward.statistics import Outcomes, statistics_before


class RequestFeatures:
    """Features of candidates in the requests of a dataset.

    Attributes:
        dataset: the requests.
        codes: int32 [A, K] of the dataset's ads, see `Catalogue.codes_of`.
        newest: statistics as of the end of the training part, for all that comes later.
    """

    def __init__(
        self,
        dataset: RequestDataset,
        catalogue: Catalogue,
        *,
        target_behaviors: tuple[str, ...],
        weeks: int,
        newest: AdStatistics | None = None,
    ) -> None:
        """Bring a dataset and a catalogue together.

        Args:
            dataset: the requests.
            catalogue: of the reward model.
            target_behaviors: what counts.
            weeks: statistics are taken anew so often before the end of the training part.
            newest: of the reward model; None takes them from the dataset.

        Raises:
            CatalogueError: the dataset has other ads or SIDs.
        """
        self.dataset, self.codes = dataset, catalogue.codes_of(dataset)
        self._sizes, self._target_behaviors, self._step = catalogue.sizes, target_behaviors, weeks * WEEK
        self._wanted = np.isin(dataset.log.behavior, [BEHAVIORS[name] for name in target_behaviors])
        self._made: dict[int, AdStatistics] = {}
        self.newest = self._before(dataset.split.train_end) if newest is None else newest

    def of(self, groups: TargetGroups, row: int, ads: np.ndarray) -> Features:
        """Features of ads, int64 [n] ids, in a request; of an id that the dataset lacks nothing is known."""
        known = self.dataset.ad_ids
        place = np.minimum(np.searchsorted(known, ads), len(known) - 1)
        codes = np.where((known[place] == ads)[:, None], self.codes[place], np.int32(-1))
        return features_of(self.request(groups, row), codes, statistics=self.statistics(int(groups.now[row])))

    def request(self, groups: TargetGroups, row: int) -> Request:
        """What is known of a request, as a server would be told."""
        dataset = self.dataset
        seen = dataset.history(groups, row, newest=dataset.spec.max_history)
        had = seen[self._wanted[seen]]
        times, rows = dataset.log.timestamp, dataset.event_ad
        return Request(
            codes=self.codes[rows[had]],
            times=times[had],
            seen_codes=self.codes[rows[seen], AD],
            seen_times=times[seen],
            now=int(groups.now[row]),
            profile=np.concatenate(
                [dataset.profile[groups.user_row[row]], dataset.request_codes[groups.request[row]]]
            ),
        )

    def statistics(self, now: int) -> AdStatistics:
        """The newest ones of before a request.

        Those of the end of the training part stand for all later requests. Going back from there they are
        taken every so many weeks, so that a request of the training part sees statistics as old as a later
        one does.
        """
        end = self.dataset.split.train_end
        if now >= end:
            return self.newest
        time = end - -(-(end - now) // self._step) * self._step
        if time not in self._made:
            self._made[time] = self._before(time)
        return self._made[time]

    @cached_property
    def _outcomes(self) -> Outcomes:
        return Outcomes.of(self.dataset, self._target_behaviors)

    def _before(self, time: int) -> AdStatistics:
        return statistics_before(time, self._outcomes, codes=self.codes, sizes=self._sizes)
