"""What a model's figures are beside those of the rules that a user would try first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MIDDLE = "50"  # cut-off of the figures that name one


def compared(report: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios of the model's figures to those of baselines; None where there is nothing to divide by.

    Args:
        report: of `training.evaluation.ranking.evaluate`.

    Returns:
        recall_vs_personal and recall_vs_recent, cut-off -> recall beside the user's own most frequent ads,
        and beside the same weighted by recency; recall50_vs_popularity, value_recall50_vs_personal and
        new_to_user_recall50, the model's recall of targets that are new to their user. The last three are
        None without a cut-off of 50.
    """
    recall, value = report["recall"], report["value_recall"]
    new = report["recall_of"]["new_to_user"]["recall"]

    def ratio(of: Mapping[str, Mapping[str, float]], baseline: str, k: str) -> float | None:
        return of["model"][k] / of[baseline][k] if of[baseline].get(k) else None

    return {
        "recall_vs_personal": {k: ratio(recall, "personal_frequency", k) for k in recall["model"]},
        "recall_vs_recent": {k: ratio(recall, "recent_frequency", k) for k in recall["model"]},
        "recall50_vs_popularity": ratio(recall, "popularity", MIDDLE),
        "value_recall50_vs_personal": ratio(value, "personal_frequency", MIDDLE),
        "new_to_user_recall50": new["model"].get(MIDDLE) if new else None,
    }
