"""Candidate lists of requests by the search that serves, each in the index as of the request's time.

Letters: B requests, n candidates, T SID levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.data.list_shards import ContextList
from training.data.list_store import request_keys
from training.data.lists import CandidateList, pad
from training.data.samples import RequestDataset
from training.model.gr4ad import Generator
from training.preset.rollout import RolloutConfig
from training.rollout.audiences import Audiences
from training.rollout.candidates import Candidates, candidates_of, choose
from training.rollout.drawn_requests import DrawnRequests
from training.rollout.live import LiveAds, LiveIndex
from training.rollout.score import log_p
from training.rollout.search import Searcher


class RollOut:
    """Makes the lists of drawn requests; but for rounding, none depends on what else is in its batch."""

    def __init__(
        self,
        model: Generator,
        dataset: RequestDataset,
        requests: DrawnRequests,
        *,
        live: LiveAds,
        config: RolloutConfig,
        widths: tuple[int, ...],
        audiences: Audiences | None = None,
    ) -> None:
        """Put a model in evaluation mode and ask it.

        Args:
            model: whose search it is.
            dataset: histories, and SIDs of the ads.
            requests: drawn.
            live: which ads are in the index when.
            config: section `rollout`.
            widths: beams of each level.
            audiences: who may see which ad; None where all are for everybody.
        """
        index = LiveIndex(dataset, live, level_sizes=model.level_sizes, audiences=audiences)
        self._search = Searcher(model, index)
        self._dataset, self._requests, self._config = dataset, requests, config
        self._widths = widths

    def lists(self, numbers: Sequence[int]) -> list[ContextList]:
        """Lists of the drawn requests of these numbers, at least one, ascending; searched as one batch."""
        rows = self._requests.rows[list(numbers)]
        slots, profile = self._dataset.context(self._requests.groups, rows)
        found = self._candidates(numbers, slots, profile)
        missing = [candidates.sids[len(candidates.log_p) :] for candidates in found]
        scores = np.zeros((len(found), 0), np.float32)
        if any(map(len, missing)):
            scores = log_p(self._search.model, slots, profile, sids=pad(missing))
        users, times, nth = request_keys(self._dataset.log, self._requests.groups.request[rows])
        lists = []
        for i, one in enumerate(found):
            teacher_forced = scores[i][: len(one.ads) - len(one.log_p)]
            candidates = CandidateList(
                sids=one.sids,
                reward=np.zeros(len(one.ads), np.float32),
                flags=one.flags,
                ads=one.ads,
                log_p_ref=np.concatenate([one.log_p, teacher_forced]),
            )
            key = {"user_id": int(users[i]), "now": int(times[i]), "nth": int(nth[i])}
            lists.append(ContextList(**key, candidates=candidates, bought=one.bought))
        return lists

    def _candidates(self, numbers: Sequence[int], slots: np.ndarray, profile: np.ndarray) -> list[Candidates]:
        """Of each request its list, without log p of what only the log has."""
        groups, config = self._requests.groups, self._config
        rows = self._requests.rows[list(numbers)]
        found = self._search(
            slots,
            profile,
            times=groups.now[rows],
            widths=self._widths,
            at_least=config.list_size + config.sampled,
        )
        lists = []
        for i, number in enumerate(numbers):
            there = found.beams.leaves[i] >= 0
            sids, scores = found.beams.sids[i][there], found.beams.scores[i][there]
            random = np.random.default_rng((config.seed, number))
            chosen = choose(scores, best=config.list_size, sampled=config.sampled, random=random)
            lists.append(
                candidates_of(
                    sids[chosen],
                    scores[chosen],
                    best=config.list_size,
                    log=self._requests.logged(self._dataset, int(rows[i])),
                    dataset=self._dataset,
                    snapshot=found.snapshot,
                    hidden=found.hidden[i],
                )
            )
        return lists
