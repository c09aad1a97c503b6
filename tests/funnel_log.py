"""Seeded ad logs: a funnel whose rows follow each other within seconds, and impressions with request ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from tests.tiny_log import CONFIG, DAY

USERS, ADS = 40, 60
DELAYS = {"impression": 0, "click": 2, "conversion": 5}
NAMES = ["user_id", "ad_id", "timestamp", "behavior", "value", "provenance"]


def funnel(
    *, behaviors: Sequence[str] = tuple(DELAYS), days: int = 49, taste: float = 0.6, seed: int = 0
) -> pl.DataFrame:
    """Every ad shown is clicked two seconds and bought five seconds later.

    Args:
        behaviors: rows that are written; the draws do not depend on it.
        days: length; a user is shown an ad about every other day.
        taste: share of the ads that are one of the user's own three, in turn; the others are any.
        seed: of all draws.
    """
    random, rows = np.random.default_rng(seed), []
    for user in range(USERS):
        own = random.choice(ADS, 3, replace=False)
        for turn, day in enumerate(range(0, days, 2)):
            ad = int(own[turn % 3] if random.random() < taste else random.integers(ADS))
            shown = day * DAY + int(random.integers(DAY))
            value = float(np.round(random.exponential(3) + 0.1, 2))
            for behavior in behaviors:
                worth = value if behavior == "conversion" else 0.0
                rows.append((user, ad, shown + DELAYS[behavior], behavior, worth, "made up"))
    return pl.DataFrame(rows, schema=NAMES, orient="row")


def impressions(*, days: int = 7, clicks: bool = False, seed: int = 0) -> pl.DataFrame:
    """Requests of three ads with ids and positions; the user's own ads may be clicked, sometimes late."""
    random, rows, number = np.random.default_rng(seed), [], 0
    for user in range(USERS):
        own = random.choice(ADS, 6, replace=False)
        for day in range(days):
            for _ in range(3):
                shown = day * DAY + int(random.integers(DAY))
                ads = random.permutation(np.append(random.choice(own), random.choice(ADS, 6, replace=False)))
                ads = list(dict.fromkeys(ads.tolist()))[:3]
                for position, ad in enumerate(ads):
                    row = (user, ad, shown, "impression", 0.5, "made up", f"q{number}", position)
                    rows.append(row)
                    if clicks and ad in own and random.random() < 0.8:
                        late = int(random.choice([3, 20, 7_000]))
                        rows.append((user, ad, shown + late, "click", 1.0, "made up", f"q{number}", None))
                number += 1
    return pl.DataFrame(rows, schema=[*NAMES, "request_id", "position"], orient="row")


def config(**data: object) -> dict:
    """Preset of a tiny model on such a log."""
    training = {
        "steps": 120,
        "batch_size": 32,
        "validate_every": 60,
        "min_history": 1,
        "targets_per_request": 1,
    }
    return CONFIG | {
        "data": CONFIG["data"] | data,
        "training": CONFIG["training"] | training,
        # In events, of which an exposure has up to three.
        "features": CONFIG["features"] | {"max_history": 96},
        "evaluation": {"requests": 200, "cutoffs": [3, 10], "widths": "6-30-60:1"},
    }
