"""RecoGym's events as our tables: products are ads, a view is a click, a click on an ad a conversion.

Letters: E events, P products, D dimensions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.simulation.recogym.play import Played
from serving.model.features import BEHAVIORS

PLACES = ("organic", "ad")
_D = 8


def events_of(played: Played, bids: np.ndarray) -> pl.DataFrame:
    """Rows of our events, those of one ad shown under one request id.

    Args:
        played: events; a click follows its impression.
        bids: float64 [P], what a click on the ad of each product pays; of a view, what it would.
    """
    names = {code: name for name, code in BEHAVIORS.items()}
    impression, conversion = BEHAVIORS["impression"], BEHAVIORS["conversion"]
    paid = np.where(played.behavior == impression, 0.0, bids[played.product])
    return pl.DataFrame(
        {
            "user_id": played.user,
            "ad_id": played.product,
            "timestamp": played.time,
            "behavior": [names[code] for code in played.behavior.tolist()],
            "value": paid,
            "request_id": np.cumsum(played.behavior != conversion),
            "place": [PLACES[code in (impression, conversion)] for code in played.behavior.tolist()],
            "provenance": ["RecoGym"] * len(played.user),
        }
    )


def embeddings_of(played: Played, products: int) -> np.ndarray:
    """Products by who viewed them, float64 [P, D]: singular vectors of log(1 + views) of users."""
    viewed = played.behavior == BEHAVIORS["click"]
    users, rows = np.unique(played.user[viewed], return_inverse=True)
    counts = np.zeros((len(users), products))
    np.add.at(counts, (rows, played.product[viewed]), 1)
    counts = np.log1p(counts)
    _, sizes, vectors = np.linalg.svd(counts - counts.mean(axis=0), full_matrices=False)
    return vectors[:_D].T * sizes[:_D]


def write_tables(played: Played, bids: np.ndarray, folder: Path) -> None:
    """Write ads, users and events.

    Raises:
        OSError: the disk is full or not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    events, products = events_of(played, bids), len(bids)
    embedding = embeddings_of(played, products).tolist()
    pl.DataFrame({"ad_id": range(products), "embedding": embedding}).write_parquet(folder / "ads.parquet")
    events.select("user_id").unique().sort("user_id").write_parquet(folder / "users.parquet")
    events.write_parquet(folder / "events.parquet")
