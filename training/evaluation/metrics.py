"""Ranking metrics over ads.

Letters: R requests, k cutoff.
"""

from __future__ import annotations

import numpy as np


def ranking_metrics(
    ranked: list[np.ndarray], targets: list[np.ndarray], *, values: list[np.ndarray], cutoffs: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """Means over requests, for each cutoff.

    recall@k = targets among the first k / targets. ndcg@k has gain 1 for a target and the ideal of
    min(k, targets) hits at the top. value_recall@k = value of the targets among the first k / value of all
    targets, summed over requests before dividing.

    Args:
        ranked: for each request, distinct ads, best first.
        targets: for each request, distinct ads it should have found (at least one).
        values: for each request, value of each target.
        cutoffs: the k's.
    """
    out: dict[str, dict[str, float]] = {"recall": {}, "ndcg": {}, "value_recall": {}}
    total_value = max(sum(float(v.sum()) for v in values), 1e-12)
    discount = 1 / np.log2(np.arange(2, max(cutoffs) + 2))
    hits = [np.isin(r[: max(cutoffs)], t) for r, t in zip(ranked, targets, strict=True)]
    for k in cutoffs:
        recall = [h[:k].sum() / len(t) for h, t in zip(hits, targets, strict=True)]
        ndcg = [
            (discount[: len(h[:k])] * h[:k]).sum() / discount[: min(k, len(t))].sum()
            for h, t in zip(hits, targets, strict=True)
        ]
        found = [v[np.isin(t, r[:k])].sum() for r, t, v in zip(ranked, targets, values, strict=True)]
        out["recall"][str(k)] = float(np.mean(recall))
        out["ndcg"][str(k)] = float(np.mean(ndcg))
        out["value_recall"][str(k)] = float(np.sum(found) / total_value)
    return out
