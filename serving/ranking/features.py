"""Features of a candidate in a request, of what a server knows too: history, profile, time, the ads' figures.

A history's values are not among them, for a request to a server has none: what a user pays is told by the
mean values of the ads in it. Letters: n candidates, h events of the history, K keys, P columns of profile and
request.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from serving.ranking.ad_codes import AD, KEYS
from serving.ranking.history import DAY_S, NEVER_DAYS, KeyHistory
from serving.ranking.statistics import AdStatistics

_OF_KEY = ("count", "share", "recent", "days", "gap", "overdue", "popular", "popular_recently")
_OF_AD = ("shown", "days_shown", "value", "value_to_user", "rate", "again", "usual_gap", "overdue_usual")
_OF_USER = (
    "events",
    "visits",
    "basket",
    "visit_days",
    "visit_gap",
    "visit_overdue",
    "distinct",
    "value_level",
    "hour",
    "weekday",
)
VERSION = 1
"""Raised with every change of what a value of a feature is; a test holds the values against it."""
NUMBERS = (*(f"{name}.{key}" for key in KEYS for name in _OF_KEY), *_OF_AD, *_OF_USER)


def feature_set(categories: tuple[int, ...]) -> str:
    """16 hex digits that name what a model over these features is fed with.

    Args:
        categories: codes of each column of profile and request features, length P.
    """
    return hashlib.sha256(json.dumps([VERSION, NUMBERS, categories]).encode()).hexdigest()[:16]


_LEAST_VALUE = np.float32(1e-6)  # a ratio needs a mean; ads of no value have this


@dataclass(frozen=True, eq=False)
class Request:
    """What is known of a request.

    Attributes:
        codes: int32 [h, K], ads of the earlier events of target behaviors, oldest first.
        times: int64 [h], unix seconds.
        seen_codes: int32 of the ads of all earlier events.
        seen_times: int64, theirs.
        now: unix seconds.
        profile: int32 [P], codes of profile and request features.
    """

    codes: np.ndarray
    times: np.ndarray
    seen_codes: np.ndarray
    seen_times: np.ndarray
    now: int
    profile: np.ndarray


@dataclass(frozen=True, eq=False)
class Features:
    """Of candidates of one request or of many.

    Attributes:
        numbers: float32 [n, len(NUMBERS)], all finite; counts and days as log(1 + x).
        profile: int32 [n, P].
        value: float32 [n], mean value of the ad, the unit of what a model predicts.
    """

    numbers: np.ndarray
    profile: np.ndarray
    value: np.ndarray

    @classmethod
    def join(cls, parts: list[Features]) -> Features:
        """Candidates of several requests behind each other."""
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
        )

    def take(self, rows: np.ndarray) -> Features:
        """Some of the candidates."""
        return Features(self.numbers[rows], self.profile[rows], self.value[rows])


def features_of(request: Request, codes: np.ndarray, *, statistics: AdStatistics) -> Features:
    """Features of candidates.

    Args:
        request: what is known of it.
        codes: int32 [n, K] of the candidates; -1 is unknown.
        statistics: as of a time before the request.
    """
    numbers = np.empty((len(codes), len(NUMBERS)), np.float32)
    columns = dict(zip(NUMBERS, numbers.T, strict=True))
    gap_of_ad = statistics.of_ad("gap", codes).astype(np.float64)
    for k, key in enumerate(KEYS):
        found = KeyHistory(request.codes[:, k], request.times, now=request.now).of(codes[:, k])
        gap = np.where(np.isnan(found.gap), gap_of_ad, np.log1p(np.nan_to_num(found.gap)))
        of_key = (
            np.log1p(found.count),
            found.count / max(len(request.times), 1),
            np.log1p(found.recent),
            np.log1p(found.days),
            gap,
            np.log1p(found.days) - gap,
            statistics.of_key("share", k, codes[:, k]),
            statistics.of_key("recent", k, codes[:, k]),
        )
        for name, column in zip(_OF_KEY, of_key, strict=True):
            columns[f"{name}.{key}"][:] = column
    seen = KeyHistory(request.seen_codes, request.seen_times, now=request.now).of(codes[:, AD])
    value = np.maximum(statistics.of_ad("value", codes), _LEAST_VALUE)
    of_user = _of_user(request, statistics)
    of_ad = (
        np.log1p(seen.count),
        np.log1p(seen.days),
        np.log1p(value),
        np.log1p(value) - of_user["value_level"],
        statistics.of_ad("rate", codes),
        statistics.of_ad("again", codes),
        gap_of_ad,
        columns["days.ad"] - gap_of_ad,
    )
    for name, column in zip(_OF_AD, of_ad, strict=True):
        columns[name][:] = column
    for name, number in of_user.items():
        columns[name][:] = number
    return Features(numbers, np.tile(request.profile, (len(codes), 1)), value)


def _of_user(request: Request, statistics: AdStatistics) -> dict[str, float]:
    """The same for all candidates."""
    visits = np.unique(request.times)
    days = np.maximum(request.now - visits[-1:], 0) / DAY_S
    since = np.log1p(days[0] if len(days) else NEVER_DAYS)
    gap = (visits[-1] - visits[0]) / DAY_S / (len(visits) - 1) if len(visits) > 1 else 0.0
    levels = np.log1p(statistics.of_ad("value", request.codes))
    numbers = (
        np.log1p(len(request.times)),
        np.log1p(len(visits)),
        np.log1p(len(request.times) / max(len(visits), 1)),
        since,
        np.log1p(gap),
        since - np.log1p(gap),
        np.log1p(len(np.unique(request.codes[:, AD]))),
        # In double: events of one second come in any order, and a sum in float32 depends on it.
        levels.mean(dtype=np.float64) if len(levels) else np.log1p(statistics.arrays["value.ad"][-1]),
        request.now // 3600 % 24,
        (request.now // DAY_S + 4) % 7,  # the epoch began on a Thursday; Sunday is 0
    )
    return {name: float(number) for name, number in zip(_OF_USER, numbers, strict=True)}
