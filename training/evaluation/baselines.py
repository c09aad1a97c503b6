"""What every result stands beside: five rankings that need no model.

They rank the ads that compete, and know what was known: counts of the training part, or what lies before a
request. Each but the first is filled up with popular ads. Letters: A ads, U users, R requests.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from serving.model.features import BEHAVIORS
from training.data.parts import TRAIN
from training.data.samples import RequestDataset
from training.evaluation.competing import Competing
from training.evaluation.requests import Requests

DAY = 86_400


def rank_by_baselines(
    dataset: RequestDataset,
    requests: Requests,
    *,
    competing: Competing,
    target_behaviors: tuple[str, ...],
    recent_days: float,
    half_life_days: float,
    limit: int,
) -> dict[str, list[np.ndarray]]:
    """Ads of each request, best first, by each baseline.

    popularity: times that an ad was a target in the training part. recent_popularity: the same of all users
    in the days before the request. personal_frequency: of the user, in the history. recent_frequency: the
    same, of which each time counts half as much `half_life_days` later. co_occurrence: see `CoOccurrence`.

    Args:
        dataset: the log.
        requests: the oldest first.
        competing: which ads are ranked.
        target_behaviors: names of the behaviors that count.
        recent_days: window of recent popularity.
        half_life_days: of recent frequency.
        limit: most ads of a request.

    Raises:
        ValueError: a request is older than the one before it.
    """
    log, ads = dataset.log, len(dataset.ad_ids)
    wanted = np.isin(log.behavior, [BEHAVIORS[name] for name in target_behaviors])
    known = log.outcomes(wanted & (dataset.parts.event == TRAIN))
    users = np.searchsorted(log.user_ptr, known, side="right") - 1
    popular = np.bincount(dataset.event_ad[known], minlength=ads)
    together = CoOccurrence(users, dataset.event_ad[known], shape=(len(log.user_ids), ads))
    ever = log.outcomes(wanted)
    recent = window_counts(
        log.timestamp[ever], dataset.event_ad[ever], now=requests.now, seconds=recent_days * DAY, ads=ads
    )
    ranked: dict[str, list[np.ndarray]] = {}
    for i, counts in enumerate(recent):
        past = dataset.history(requests.groups, int(requests.rows[i]))
        past = past[wanted[past]]
        own, age_days = dataset.event_ad[past], (int(requests.now[i]) - log.timestamp[past]) / DAY
        allowed = competing.allowed(requests, i)
        first = best(popular, allowed, limit=limit)
        scores = {
            "recent_popularity": counts,
            "personal_frequency": np.bincount(own, minlength=ads),
            "recent_frequency": np.bincount(own, np.exp2(age_days / -half_life_days), minlength=ads),
            "co_occurrence": together.scores(np.unique(own)),
        }
        ranked.setdefault("popularity", []).append(dataset.ad_ids[first])
        for name, values in scores.items():
            rows = fill_up(best(values, allowed, limit=limit), first, limit=limit)
            ranked.setdefault(name, []).append(dataset.ad_ids[rows])
    return ranked


def best(scores: np.ndarray, allowed: np.ndarray, *, limit: int) -> np.ndarray:
    """Rows with a score above 0 that are allowed, the highest first, equals by row; at most `limit`."""
    rows = np.flatnonzero(allowed & (scores > 0))
    if len(rows) > limit:
        found = scores[rows]
        rows = rows[found >= np.partition(found, len(rows) - limit)[len(rows) - limit]]
    return rows[np.argsort(-scores[rows], kind="stable")][:limit]


def fill_up(first: np.ndarray, more: np.ndarray, *, limit: int) -> np.ndarray:
    """Rows of `first`, then those of `more` that are not among them; at most `limit`."""
    return np.concatenate([first, more[~np.isin(more, first)]])[:limit]


def window_counts(
    times: np.ndarray, rows: np.ndarray, *, now: np.ndarray, seconds: float, ads: int
) -> Iterator[np.ndarray]:
    """Events of each ad, int64 [A], in the `seconds` before each of the times `now`, strictly.

    What is yielded is changed at the next step.

    Args:
        times: int64 [E], unix seconds.
        rows: int64 [E], ad of each.
        now: int64 [R], ascending.
        seconds: length of the window.
        ads: A.

    Raises:
        ValueError: `now` does not ascend; says where. It comes with the first counts that are asked for.
    """
    earlier = np.flatnonzero(np.diff(now) < 0)
    if len(earlier):
        at = int(earlier[0])
        raise ValueError(
            f"window counts: expected `now` ascending, got {now[at + 1]} after {now[at]} in row {at + 1}"
        )
    order = np.argsort(times, kind="stable")
    times, rows = times[order], rows[order]
    starts = np.searchsorted(times, now - seconds, side="left")
    ends = np.searchsorted(times, now, side="left")
    counts, begin, end = np.zeros(ads, np.int64), 0, 0
    for start, stop in zip(starts.tolist(), ends.tolist(), strict=True):
        np.add.at(counts, rows[end:stop], 1)
        np.subtract.at(counts, rows[begin:start], 1)
        begin, end = start, stop
        yield counts


class CoOccurrence:
    """Item-to-item co-occurrence: ads that users have who have the ads of this one.

    With U(a), the users of ad a in the training part, an ad c scores the sum over the ads h of a history, h
    other than c, of |U(h) & U(c)| / |U(h)|: how many of those who have h have c, too.
    """

    def __init__(self, users: np.ndarray, rows: np.ndarray, *, shape: tuple[int, int]) -> None:
        """From events: user and ad of each, int64; `shape` is (U, A)."""
        had = sparse.csr_matrix((np.ones(len(users)), (users, rows)), shape=shape)
        had.data[:] = 1.0  # SciPy has added up what came twice
        self._had, self._users = had, had.getnnz(axis=0)
        self._shares = (had @ sparse.diags(1 / np.maximum(self._users, 1))).tocsc()

    def scores(self, history: np.ndarray) -> np.ndarray:
        """Scores float64 [A] for distinct ads, rows of the dataset; equal to nine digits is equal."""
        shared = np.asarray(self._shares[:, history].sum(axis=1)).ravel()  # [U]
        scores = self._had.T @ shared
        scores[history] -= self._users[history] > 0  # of each ad with itself
        return np.round(scores, 9)
