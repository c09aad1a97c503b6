"""Which ads are candidates of a request, and what came of each.

Exposures, where the log has impressions: what was shown, and P is that of an outcome. Else candidates are
drawn, and whether one is drawn does not depend on the outcome: so among them, too, P(had | features) is that
of the log. What the log led to and no draw found is left out; with it the chance of what is drawn would be
too high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.model.features import BEHAVIORS
from serving.ranking.ad_codes import AD, PREFIX_2
from training.data.groups import TargetGroups
from training.data.list_store import StoredLists
from training.data.lists import CandidateFlag
from training.data.parts import TRAIN
from training.data.samples import RequestDataset
from training.data.split import PARTS
from training.reward.requests import RequestFeatures


@dataclass(frozen=True, eq=False)
class Labelled:
    """Candidates of one request.

    Attributes:
        ads: int64 [n], distinct.
        had: bool [n], whether a target behavior came of it.
        value: float32 [n], of what came; 0 of others.
    """

    ads: np.ndarray
    had: np.ndarray
    value: np.ndarray


def has_impressions(dataset: RequestDataset, target_behaviors: tuple[str, ...]) -> bool:
    """Whether most exposures of the training part came to no target behavior."""
    log, known = dataset.log, dataset.parts.event == TRAIN
    wanted = np.isin(log.behavior, [BEHAVIORS[name] for name in target_behaviors])
    return 2 * len(log.outcomes(known & wanted)) < len(np.unique(log.exposures.exposure[known]))


class Exposed:
    """Candidates are the exposures of the request."""

    def __init__(self, dataset: RequestDataset, part: str, target_behaviors: tuple[str, ...]) -> None:
        """Of a part; nothing that comes in a later one counts as an outcome."""
        log = dataset.log
        known = dataset.parts.event <= PARTS.index(part)
        wanted = known & np.isin(log.behavior, [BEHAVIORS[name] for name in target_behaviors])
        self._dataset = dataset
        self._outcome = np.full(len(log.timestamp), -1, np.int64)  # by the row that stands for an exposure
        outcomes = log.outcomes(wanted)
        self._outcome[log.exposures.exposure[outcomes]] = outcomes

    def of(self, groups: TargetGroups, row: int) -> Labelled:
        """Candidates of request `row` of groups whose targets are of any behavior."""
        log = self._dataset.log
        events = self._dataset.targets(groups, row)
        outcome = self._outcome[log.exposures.exposure[events]]
        ads, at = np.unique(log.ad_ids[events], return_inverse=True)
        value = np.where(outcome >= 0, log.value[outcome], 0)
        return Labelled(
            ads,
            had=np.bincount(at, outcome >= 0, minlength=len(ads)) > 0,
            value=np.bincount(at, value, minlength=len(ads)).astype(np.float32),
        )


class Drawn:
    """Candidates are what a stored list holds; without one the history, popular ads and siblings."""

    def __init__(
        self,
        features: RequestFeatures,
        *,
        popular: int,
        siblings: int,
        seed: int,
        lists: Sequence[StoredLists] = (),
    ) -> None:
        """See `RewardConfig`.

        Args:
            features: of the dataset that its catalogue was made of, so that an ad's number is its row.
            popular: ads drawn by popularity.
            siblings: ads drawn from under prefixes of the history.
            seed: of the draws.
            lists: stored lists.
        """
        self._features, self._lists = features, lists
        self._popular, self._siblings, self._seed = popular, siblings, seed
        prefixes = features.codes[:, PREFIX_2]
        self._by_prefix = np.argsort(prefixes, kind="stable")
        self._sorted = prefixes[self._by_prefix]
        self._listed: tuple[TargetGroups, np.ndarray] | None = None

    def of(self, groups: TargetGroups, row: int) -> Labelled:
        """Candidates of request `row` of groups whose targets are of target behaviors."""
        dataset = self._features.dataset
        ads = self._own(groups, row)
        if ads is None:
            ads = dataset.ad_ids[self._draw(groups, row)]
        events = dataset.targets(groups, row)
        had, at = np.unique(dataset.log.ad_ids[events], return_inverse=True)
        values = np.bincount(at, dataset.log.value[events], minlength=len(had))
        place = np.minimum(np.searchsorted(had, ads), len(had) - 1)
        is_had = had[place] == ads
        return Labelled(ads, is_had, value=np.where(is_had, values[place], 0).astype(np.float32))

    def has_list(self, groups: TargetGroups) -> np.ndarray:
        """Whether there is a stored list for each request, bool [N]."""
        return (self._rows(groups) >= 0).any(axis=0)

    def _rows(self, groups: TargetGroups) -> np.ndarray:
        """Row of each request in each of the stored lists, int64 [lists, N]; kept for the next call."""
        if self._listed is None or self._listed[0] is not groups:
            found = [lists.rows_of(self._features.dataset, groups) for lists in self._lists]
            self._listed = groups, np.array(found, np.int64).reshape(len(found), len(groups))
        return self._listed[1]

    def _own(self, groups: TargetGroups, row: int) -> np.ndarray | None:
        """Ads of the stored list, int64 distinct; those that were appended for their outcome are left out."""
        for lists, stored in zip(self._lists, self._rows(groups)[:, row], strict=True):
            if stored >= 0:
                found = lists.get(int(stored))
                kept = (found.flags & ~np.uint8(CandidateFlag.LOGGED)) > 0
                return np.unique(found.ads[kept & (found.ads >= 0)])
        return None

    def _draw(self, groups: TargetGroups, row: int) -> np.ndarray:
        """Rows of ads, distinct, int64."""
        random = np.random.default_rng((self._seed, int(groups.request[row])))
        request, codes = self._features.request(groups, row), self._features.codes
        statistics = self._features.statistics(request.now)
        recent = np.expm1(statistics.of_key("recent", AD, codes[:, AD]).astype(np.float64))
        cumulated = np.cumsum(recent)
        drawn = [np.zeros(0, np.int64)]
        if cumulated[-1] > 0:
            at = random.random(self._popular) * cumulated[-1]
            drawn.append(np.searchsorted(cumulated, at, side="right"))
        own = np.unique(request.codes[:, AD])
        if len(own):
            siblings = self._draw_siblings(own, random)
            there = statistics.of_key("share", AD, codes[siblings, AD]) > 0  # others may have come later
            drawn += [own, siblings[there]]
        return np.unique(np.concatenate(drawn))

    def _draw_siblings(self, own: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Ads under the prefixes of two codes of some of a history's ads, rows int64."""
        prefixes = self._features.codes[random.choice(own, self._siblings), PREFIX_2]
        starts = np.searchsorted(self._sorted, prefixes, side="left")
        counts = np.searchsorted(self._sorted, prefixes, side="right") - starts
        return self._by_prefix[starts + (random.random(len(starts)) * counts).astype(np.int64)]
