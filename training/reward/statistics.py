"""Statistics of ads (`serving.ranking.statistics`), counted from what the log holds up to a time.

A request must not see its own rows, nor what came later. So statistics are those of a time; a request takes
the last before it. Letters: E events, A ads, K keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.model.features import BEHAVIORS
from serving.ranking.ad_codes import AD, KEYS
from serving.ranking.history import DAY_S, RECENT_S
from serving.ranking.statistics import AD_KEYS, AdStatistics
from training.data.parts import TRAIN
from training.data.samples import RequestDataset

_PRIOR = (
    5.0  # observations that a parent's mean counts for: with 2 or 20 the value's error is the same to 1 %
)
_PER = 1e6  # shares are counted in millionths before the logarithm


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The events that statistics count: what came of the exposures of a log, by user, then time.

    Attributes:
        user: int64 [E], row of the user.
        row: int64 [E], row of the ad in the dataset.
        time: int64 [E], unix seconds.
        value: float64 [E].
        wanted: bool [E], of a target behavior; others are exposures that came to less.
    """

    user: np.ndarray
    row: np.ndarray
    time: np.ndarray
    value: np.ndarray
    wanted: np.ndarray

    @classmethod
    def of(cls, dataset: RequestDataset, target_behaviors: tuple[str, ...]) -> Outcomes:
        """Of all exposures of the training part."""
        log, known = dataset.log, dataset.parts.event == TRAIN
        is_target = np.isin(log.behavior, [BEHAVIORS[name] for name in target_behaviors])
        targets = log.outcomes(known & is_target)
        came_to_less = np.ones(len(log.timestamp), bool)
        came_to_less[log.exposures.exposure[targets]] = False
        others = log.outcomes(known & came_to_less[log.exposures.exposure])
        events = np.sort(np.concatenate([targets, others]))
        return cls(
            user=np.searchsorted(log.user_ptr, events, side="right") - 1,
            row=dataset.event_ad[events],
            time=log.timestamp[events],
            value=log.value[events].astype(np.float64),
            wanted=is_target[events],
        )


def statistics_before(
    time: int, outcomes: Outcomes, *, codes: np.ndarray, sizes: tuple[int, ...]
) -> AdStatistics:
    """Count what lies before a time.

    Args:
        time: unix seconds.
        outcomes: of the log.
        codes: int32 [A, K] of the ads of the dataset.
        sizes: numbers of each key; ads that came since are beyond the first of them.
    """
    shown = (outcomes.time < time) & (codes[outcomes.row, AD] < sizes[AD])
    had = shown & outcomes.wanted
    recent = had & (outcomes.time >= time - RECENT_S)
    arrays = {}
    for k, key in enumerate(KEYS):
        for name, rows in (("share", had), ("recent", recent)):
            counts = _sums(codes[outcomes.row[rows], k], size=sizes[k])
            arrays[f"{name}.{key}"] = np.log1p(_PER * counts / max(rows.sum(), 1))
    ads = codes[codes[:, AD] < sizes[AD]]
    ads = ads[np.argsort(ads[:, AD])]  # row i: the ad of number i
    row = codes[outcomes.row, AD]
    again, days = _repeats(outcomes, np.flatnonzero(had))
    counts = _sums(row[had], size=len(ads))[:-1]
    buyers = counts - _sums(row[again], size=len(ads))[:-1]
    what = {
        "value": (_sums(row[had], outcomes.value[had], size=len(ads))[:-1], counts),
        "rate": (counts, _sums(row[shown], size=len(ads))[:-1]),
        "gap": (_sums(row[again], np.log1p(days), size=len(ads))[:-1], counts - buyers),
        "again": (counts, buyers),
    }
    for name, (sums, weights) in what.items():
        arrays |= {f"{name}.{key}": found for key, found in _shrunk(sums, weights, ads=ads).items()}
    return AdStatistics({name: array.astype(np.float32) for name, array in arrays.items()})


def _sums(codes: np.ndarray, weights: np.ndarray | None = None, *, size: int) -> np.ndarray:
    """Sums float64 [size + 1] by code; what has code -1 is in none, the last is 0."""
    kept = codes >= 0
    weights = None if weights is None else weights[kept]
    return np.bincount(codes[kept], weights, minlength=size + 1).astype(np.float64)


def _repeats(outcomes: Outcomes, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `events` those whose user had the ad before, and the days since then, float64."""
    order = events[np.lexsort((outcomes.time[events], outcomes.row[events], outcomes.user[events]))]
    same = (np.diff(outcomes.user[order]) == 0) & (np.diff(outcomes.row[order]) == 0)
    return order[1:][same], np.diff(outcomes.time[order])[same] / DAY_S


def _shrunk(sums: np.ndarray, weights: np.ndarray, *, ads: np.ndarray) -> dict[str, np.ndarray]:
    """Means of ads, drawn to those of the ads of one text, of one prefix, of all; each with an entry behind.

    Args:
        sums: float64 [A].
        weights: float64 [A].
        ads: codes int32 [A, K].
    """
    overall = sums.sum() / max(weights.sum(), 1.0) if weights.sum() else 1.0
    mean = np.full(len(ads), overall)
    found: dict[str, np.ndarray] = {}
    for key in ("prefix_1", "prefix_2", "text", "ad"):
        code = ads[:, KEYS.index(key)]
        size = int(code.max(initial=-1)) + 1
        above = _sums(code, weights, size=size)[code]
        mean = np.where(
            code < 0, mean, (_sums(code, sums, size=size)[code] + _PRIOR * mean) / (above + _PRIOR)
        )
        if key in AD_KEYS:
            of_code = np.full(size + 1, overall)
            of_code[code[code >= 0]] = mean[code >= 0]
            found[key] = of_code
    return found
