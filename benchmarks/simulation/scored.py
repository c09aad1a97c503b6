"""Scores of every ad that any arm answers with, computed once. Letters: R requests, n candidates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from tqdm import tqdm

from training.data.groups import TargetGroups
from training.data.samples import RequestDataset
from training.evaluation.requests import Requests
from training.reward.reward_model import Scores

NO_AD = -1


class Judge(Protocol):
    """The response model or the platform's ranker."""

    def score(self, dataset: RequestDataset, groups: TargetGroups, row: int, ads: np.ndarray) -> Scores:
        """Purchase probability and value of ads, ids int64 [n], in request `row`."""


@dataclass(frozen=True)
class Scored:
    """Of each request: ads int64 ascending, and their scores."""

    ads: list[np.ndarray]
    scores: list[Scores]

    @classmethod
    def of(
        cls, judge: Judge, dataset: RequestDataset, requests: Requests, *, answers: Iterable[np.ndarray]
    ) -> Self:
        """Score all ads of answers int64 [R, n] each, padded with `NO_AD`."""
        every = np.concatenate(list(answers), axis=1)
        ads = [np.setdiff1d(row, [NO_AD]) for row in every]
        name = type(judge).__name__
        scores = [
            judge.score(dataset, requests.groups, int(row), candidates)
            for row, candidates in zip(tqdm(requests.rows, desc=name, mininterval=2.0), ads, strict=True)
        ]
        return cls(ads, scores)

    def at(self, answers: np.ndarray) -> Scores:
        """Scores float64 [R, n] of answers [R, n]; 0 in padding."""
        out = Scores(np.zeros(answers.shape), np.zeros(answers.shape))
        for i, answer in enumerate(answers):
            there = answer != NO_AD
            at = np.searchsorted(self.ads[i], answer[there])
            out.p[i, there], out.value[i, there] = self.scores[i].p[at], self.scores[i].value[at]
        return out
