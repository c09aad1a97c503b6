"""How good the response model is, on the users and weeks that are judged, beside popularity.

AUC of bought ads against ads drawn evenly from the catalogue, and against those that are hard to tell from
them: ads of the user's past and the most popular ones. Calibration on the hard ones: what was bought over
what was expected, in all and by tenth of the predictions. Letters: A ads, n candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.simulation.history import Past
from benchmarks.simulation.response import ResponseModel
from training.data.samples import RequestDataset
from training.evaluation.requests import Requests

POPULAR = 100  # ads that are candidates for everybody
EVEN = 100  # ads drawn from the catalogue for each request
TENTHS = 10


def check(
    model: ResponseModel,
    dataset: RequestDataset,
    requests: Requests,
    *,
    popularity: np.ndarray,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures over requests.

    Args:
        model: fitted on other users and weeks.
        dataset: the log.
        requests: to judge on.
        popularity: float64 [A], purchases of each ad in the training part.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    popular = np.argsort(-popularity, kind="stable")[:POPULAR]
    found: dict[str, dict[str, list[np.ndarray]]] = {
        kind: {"label": [], "p": [], "popularity": []} for kind in ("even", "hard")
    }
    for row, targets in zip(requests.rows, requests.targets, strict=True):
        bought = np.searchsorted(dataset.ad_ids, targets)
        past = Past.of(dataset, requests.groups, int(row), behaviors=model.behaviors).ads
        candidates = {
            "even": np.union1d(bought, random.choice(len(dataset.ad_ids), EVEN)),
            "hard": np.union1d(past, popular),
        }
        for kind, ads in candidates.items():
            found[kind]["label"].append(np.isin(ads, bought))
            scores = model.score(dataset, requests.groups, int(row), dataset.ad_ids[ads])
            found[kind]["p"].append(scores.p)
            found[kind]["popularity"].append(popularity[ads])
    joined = {kind: {k: np.concatenate(v) for k, v in columns.items()} for kind, columns in found.items()}
    hard = joined["hard"]
    return {
        "requests": len(requests.rows),
        "auc": {
            kind: {
                "response_model": auc(columns["label"], columns["p"]),
                "popularity": auc(columns["label"], columns["popularity"]),
            }
            for kind, columns in joined.items()
        },
        "calibration": {
            "all": float(hard["label"].sum() / hard["p"].sum()),
            "tenths": tenths(hard["label"], hard["p"]),
        },
    }


def auc(label: np.ndarray, score: np.ndarray) -> float | None:
    """Chance that a positive scores above a negative, equals by half; None with one kind alone."""
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return None
    ranks = rankdata(score)[label].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def tenths(label: np.ndarray, p: np.ndarray) -> list[dict[str, float]]:
    """Mean prediction and share bought, by tenths that hold an equal part of what is expected."""
    order = np.argsort(p, kind="stable")
    part = np.minimum((np.cumsum(p[order]) / p.sum() * TENTHS).astype(int), TENTHS - 1)
    return [
        {"expected": float(p[order][part == i].mean()), "bought": float(label[order][part == i].mean())}
        for i in range(TENTHS)
        if (part == i).any()
    ]
