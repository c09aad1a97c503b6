"""Is an answer right, and what does it say of how it was made?

Letters: k ads, T SID levels. Cheap on purpose: the check takes the client's time (docs/loadtest.md). The full
check, against the catalogue, is `examples.client.problems`.
"""

from __future__ import annotations

import numpy as np

from serving.load.ladder import searched_rows
from serving.search.rank import RANK_BY, RankBy, falls


def problems(
    answer: dict[str, np.ndarray], *, num_ads: int, live_ads: int, rank_by: RankBy | None = None
) -> list[str]:
    """What is wrong with an answer of one row; empty when nothing is.

    Args:
        answer: the outputs by name.
        num_ads: how many ads were asked for.
        live_ads: how many ads could be shown at all.
        rank_by: of the request; None where it leaves that to the server.
    """
    ads, scores = answer["ad_ids"][0], answer["scores"][0]
    found = []
    count = int((ads >= 0).sum())
    expected = min(num_ads, live_ads)
    if count != expected:
        found.append(f"expected {expected} ads, got {count}")
    if (ads[:count] < 0).any():
        found.append("padding stands before an ad")
    if len(set(ads[:count].tolist())) != count:
        found.append("an ad comes twice")
    in_order = falls(scores[:count], answer["expected_value"][0][:count], rank_by=rank_by)
    if not (in_order and (scores[:count] <= 1e-4).all()):  # also false for NaN
        order = rank_by or " or ".join(RANK_BY)
        found.append(f"scores are not log-probabilities, or ads not in falling order of {order}")
    found += [
        f"{name}: expected a version >= 1, got {int(answer[name].flat[0])}"
        for name in ("model_version", "index_version")
        if int(answer[name].flat[0]) < 1
    ]
    widths = answer["beam_widths"][0]
    if (widths < 1).any():
        found.append(f"beam_widths: expected numbers above 0, got {widths.tolist()}")
    return found


def facts(answer: dict[str, np.ndarray]) -> dict[str, int | str]:
    """Columns of an answer in requests.csv; `beam_rows` as load control counts them."""
    *levels, values = widths = answer["beam_widths"][0].tolist()
    return {
        "beam_rows": searched_rows(widths),
        "beam_widths": "-".join(map(str, levels)) + f":{values}",
        "model_version": int(answer["model_version"].flat[0]),
        "index_version": int(answer["index_version"].flat[0]),
        "degraded": int(answer["degraded"].flat[0]),
    }
