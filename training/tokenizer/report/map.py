"""A map of the ads: texts whose vectors lie close lie close on paper (t-SNE; van der Maaten & Hinton 2008).

Neighbourhoods can be trusted, distances between far regions cannot. Letters: P points, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from training.tokenizer.report.tree import Words
from training.tokenizer.tokenizer import Tokenizer

POINTS, REGIONS = 3000, 20


@dataclass(frozen=True, eq=False)
class AdMap:
    """Distinct texts in the plane.

    Attributes:
        places: float [P, 2].
        codes: int [P], of the first level.
        regions: int [P], clusters of neighbouring texts that carry one label and colour.
        labels: words of each region.
    """

    places: np.ndarray
    codes: np.ndarray
    regions: np.ndarray
    labels: tuple[str, ...]


def draw_map(tokenizer: Tokenizer, ads: pl.DataFrame, sids: np.ndarray, *, seed: int = 0) -> AdMap | None:
    """Place at most `POINTS` distinct texts; None of few texts or vectors, or where vectors are numbers."""
    first = np.unique(ads["text"].to_numpy(), return_index=True)[1]
    if len(first) < 4 * REGIONS:
        return None
    drawn = np.random.default_rng(seed).permutation(first)[:POINTS]
    rows = ads[np.sort(drawn)]
    vectors = tokenizer.vectors(rows)
    # A line is no plane, and a region needs a place of its own.
    if vectors.shape[1] < 2 or len(np.unique(vectors, axis=0)) < REGIONS:
        return None
    with threadpool_limits(limits=1):
        places = TSNE(
            perplexity=min(30, len(vectors) // 4), init="pca", random_state=seed, max_iter=500
        ).fit_transform(vectors)
        regions = KMeans(REGIONS, n_init=1, random_state=seed).fit_predict(places)
    words = Words(rows["text"].to_list())
    labels = tuple(", ".join(words.typical(np.flatnonzero(regions == r), count=2)) for r in range(REGIONS))
    return AdMap(places, sids[np.sort(drawn), 0], regions, labels)
