"""Recall of targets that copying the history finds, and of those that it cannot: new to their user, and cold.

The mean over all targets hides the latter where users repeat. Letters: A ads, R requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from training.data.parts import TRAIN
from training.data.samples import RequestDataset
from training.evaluation.requests import Requests

KINDS = {
    "repeat": "targets that are among the user's events before the request",
    "new_to_user": "targets that are not among the user's events before the request",
    "cold": "targets whose ad has no event in the training part",
}


def target_masks(dataset: RequestDataset, requests: Requests) -> dict[str, list[np.ndarray]]:
    """For each of `KINDS` and each request, which of its targets are of that kind, bool."""
    events = dataset.event_ad[dataset.parts.event == TRAIN]
    cold = np.bincount(events, minlength=len(dataset.ad_ids)) == 0  # [A]
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for row, targets in zip(requests.rows, requests.targets, strict=True):
        ads = np.searchsorted(dataset.ad_ids, targets)
        past = dataset.event_ad[dataset.history(requests.groups, int(row))]
        repeat = np.isin(ads, past)
        found["repeat"].append(repeat)
        found["new_to_user"].append(~repeat)
        found["cold"].append(cold[ads])
    return found


def recall_by_kind(
    ranked: Mapping[str, Sequence[np.ndarray]],
    requests: Requests,
    *,
    masks: Mapping[str, Sequence[np.ndarray]],
    cutoffs: tuple[int, ...],
) -> dict[str, dict]:
    """Recall of each kind, of all its targets together: of some a request has none, of most one.

    Args:
        ranked: method -> for each request, distinct ads, best first.
        requests: with their targets.
        masks: of `target_masks`.
        cutoffs: the k's.

    Returns:
        kind -> `targets`, how many there are, and `recall`: method -> cutoff -> share among the first k.
        A kind without targets has no recall.
    """
    report: dict[str, dict] = {}
    for kind, of_kind in masks.items():
        wanted = [t[mask] for t, mask in zip(requests.targets, of_kind, strict=True)]
        count = sum(map(len, wanted))
        report[kind] = {"targets": count, "recall": {}}
        for method, lists in ranked.items() if count else ():
            report[kind]["recall"][method] = {
                str(k): sum(int(np.isin(t, r[:k]).sum()) for t, r in zip(wanted, lists, strict=True)) / count
                for k in cutoffs
            }
    return report
