"""Candidates of many requests, with features and labels: what a reward model is fitted on and judged on.

Letters: N rows, R requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from serving.ranking.features import Features
from training.data.groups import TargetGroups
from training.reward.candidates import Labelled
from training.reward.requests import RequestFeatures


@dataclass(frozen=True, eq=False)
class Rows:
    """One row a candidate, request by request.

    Attributes:
        features: of each.
        had: bool [N].
        value: float32 [N], of what came; 0 of others.
        weight: float64 [N], how many candidates a row stands for.
        request: int64 [N], 0 .. R - 1 ascending.
        fold: int8 [N], of its user.
    """

    features: Features
    had: np.ndarray
    value: np.ndarray
    weight: np.ndarray
    request: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        """N."""
        return len(self.had)

    def take(self, rows: np.ndarray) -> Rows:
        """Some of them, bool or int."""
        others = {name: getattr(self, name)[rows] for name in vars(self) if name != "features"}
        return Rows(self.features.take(np.arange(len(self))[rows]), **others)


def rows_of(
    groups: TargetGroups,
    wanted: Iterable[int],
    *,
    candidates: Callable[[TargetGroups, int], Labelled],
    features: RequestFeatures,
    folds: np.ndarray,
    negatives: int | None = None,
    seed: int = 0,
    title: str = "",
) -> Rows:
    """Rows of requests.

    Args:
        groups: requests.
        wanted: which of them.
        candidates: of one.
        features: of the dataset.
        folds: int8 [U], of each user row.
        negatives: most candidates without an outcome that are kept of a request, seeded; None for all.
        seed: of their draw.
        title: of the progress bar; no bar without one.

    Raises:
        ValueError: no request has a candidate.
    """
    found, columns = [], []
    wanted = list(wanted)
    for i, row in enumerate(tqdm(wanted, desc=title, unit="request", disable=not title, leave=False)):
        labelled = candidates(groups, row)
        kept, weight = _kept(labelled.had, negatives, seed=(seed, int(groups.request[row])))
        if not len(kept):
            continue
        found.append(features.of(groups, row, labelled.ads[kept]))
        user = np.full(len(kept), folds[groups.user_row[row]], np.int8)
        columns.append((labelled.had[kept], labelled.value[kept], weight, np.full(len(kept), i), user))
    if not found:
        raise ValueError(f"expected candidates in at least one of {len(wanted)} requests, got none")
    had, value, weights, request, fold = (np.concatenate(c) for c in zip(*columns, strict=True))
    return Rows(Features.join(found), had, value=value, weight=weights, request=request, fold=fold)


def _kept(had: np.ndarray, negatives: int | None, *, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Candidates that are kept, ascending, and how many each stands for."""
    without = np.flatnonzero(~had)
    if negatives is None or len(without) <= negatives:
        return np.arange(len(had)), np.ones(len(had))
    drawn = np.random.default_rng(seed).choice(without, negatives, replace=False)
    kept = np.sort(np.concatenate([np.flatnonzero(had), drawn]))
    return kept, np.where(had[kept], 1.0, len(without) / negatives)
