"""Revenue of the online model beside the frozen one, request by request, with its interval.

Both answered the same user at the same time, with the same bids and choices drawn: what is resampled are
users, each with all his requests. Letters: R requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.closed_loop.play import Asked
from benchmarks.simulation.measures import PER, compared

BLOCKS = 12  # of a series
FIGURES = {"revenue": "expected", "value": "worth", "revenue_alone": "alone", "paid": "paid"}
"""Means over bids and choices: revenue, the value that users got, revenue of auctions by the models' own
probabilities; and what was really paid. See `page.Page`."""


def last_third(asked: Sequence[Asked]) -> list[Asked]:
    """Those of the last third of the requests' numbers."""
    if not asked:
        return []
    first = asked[0].number + 2 * (asked[-1].number + 1 - asked[0].number) / 3
    return [one for one in asked if one.number >= first]


def ratio(
    asked: Sequence[Asked], name: str, *, clusters: np.ndarray | None = None
) -> dict[str, float | None]:
    """Of a figure of `FIGURES`: `ratio`, online to frozen, with `low` and `high`, 95 % with users drawn anew.

    Args:
        asked: R requests.
        name: of the figure.
        clusters: int64 [R], who belongs together; None for users.
    """
    online, frozen = columns(asked, name)
    users = np.array([one.user for one in asked]) if clusters is None else clusters
    if not len(asked):
        return dict.fromkeys(("ratio", "low", "high"))
    found = compared(online, frozen, users=users, seed=0)
    return {key: None if value is None else round(value + 1, 4) for key, value in found.items()}


def columns(asked: Sequence[Asked], name: str) -> tuple[np.ndarray, np.ndarray]:
    """A figure of both, float64 [R] each."""
    field = FIGURES[name]
    online, frozen = ([float(getattr(p, field)) for p in pages] for pages in _pages(asked))
    return np.array(online), np.array(frozen)


def series(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """By block of requests: day, minute, revenue per 1,000 requests of both, their ratio and its interval."""
    rows = []
    for block in np.array_split(np.arange(len(asked)), min(BLOCKS, max(len(asked), 1))):
        part = [asked[i] for i in block]
        if not part:
            continue
        online, frozen = columns(part, "revenue")
        found = ratio(part, "revenue")
        rows.append(
            {
                "day": round(float(np.mean([one.day for one in part])), 2),
                "minute": round(part[-1].at / 60, 2),
                "requests": len(part),
                "online": round(PER * float(online.mean()), 2),
                "frozen": round(PER * float(frozen.mean()), 2),
                **found,
                "version": part[-1].version,
            }
        )
    return rows


def _pages(asked: Sequence[Asked]) -> tuple[list[Any], list[Any]]:
    return [one.online for one in asked], [one.frozen for one in asked]
