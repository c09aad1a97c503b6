"""How far two engines for one model differ in what they find.

Letters: N requests, n beams, k cutoff.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from export.gate_requests import GateRequests
from serving.backend.resolve import NO_AD, resolve
from serving.search.beam_search import beam_search
from serving.search.executor import Executor
from serving.search.normalise import Normalise
from serving.search.widths import WidthPlan

CUTOFF = 50


@dataclass(frozen=True)
class Found:
    """Search result of one request, best first, without padding.

    Attributes:
        leaves: int32 [n], the SIDs.
        scores: float32 [n].
        values: float32, expected values of the first beams, those that the value level scored.
        ads: int64, at most `CUTOFF`.
    """

    leaves: np.ndarray
    scores: np.ndarray
    values: np.ndarray
    ads: np.ndarray


def search(
    executor: Executor,
    requests: GateRequests,
    *,
    plan: WidthPlan,
    normalise: tuple[Normalise, ...] | None,
    batch_size: int,
    value_table: np.ndarray,
    title: str,
) -> list[Found]:
    """Search as it is served; one result a request."""
    found, none = [], np.zeros(0, np.int64)
    for start in tqdm(
        range(0, len(requests.slots), batch_size), desc=title, unit="batch", file=sys.stderr, mininterval=2.0
    ):
        slots = requests.slots[start : start + batch_size]
        beams = beam_search(
            executor,
            requests.snapshot.trie,
            slots,
            requests.profile[start : start + batch_size],
            plan=plan,
            num_results=np.full(len(slots), CUTOFF),
            value_table=value_table,
            normalise=normalise,
        )
        for row, leaves in enumerate(beams.leaves):
            count = int((leaves >= 0).sum())  # padding comes last
            scores, values, sids = (x[row, :count] for x in (beams.scores, beams.expected_value, beams.sids))
            ads = resolve(
                requests.snapshot, sids, scores=scores, expected_value=values, num_ads=CUTOFF, exclude=none
            ).ad_ids
            found.append(Found(leaves[:count], scores, values[: beams.widths[-1]], ads[ads != NO_AD]))
    return found


def compare(reference: list[Found], candidate: list[Found]) -> dict[str, Any]:
    """Figures of two searches with the same requests.

    overlap: share of the reference's first k SIDs that are among the candidate's first k, mean over requests;
    "all" takes every beam. log_prob_error and expected_value look at SIDs that both found: absolute
    differences of log p(SID | X); sum of absolute differences of expected values, and their sum, over the
    reference's sum.
    """
    pairs = list(zip(reference, candidate, strict=True))
    beams = max(len(r.leaves) for r in reference)
    errors, before, after = [], [], []
    for r, c in pairs:
        _, i, j = np.intersect1d(r.leaves, c.leaves, return_indices=True)
        errors.append(np.abs(r.scores[i] - c.scores[j]))
        valued = (i < len(r.values)) & (j < len(c.values))
        before.append(r.values[i[valued]])
        after.append(c.values[j[valued]])
    error, old, new = (np.concatenate(x).astype(np.float64) for x in (errors, before, after))
    total = old.sum() or 1.0
    return {
        "beams": beams,
        "overlap": {
            name: float(np.mean([np.isin(r.leaves[:k], c.leaves[:k]).mean() for r, c in pairs]))
            for name, k in (("10", 10), ("50", CUTOFF), ("all", beams))
        },
        "log_prob_error": {
            "mean": float(error.mean()) if len(error) else None,
            "max": float(error.max()) if len(error) else None,
        },
        "expected_value": {
            "error": float(np.abs(new - old).sum() / total),
            "ratio": float(new.sum() / total),
        },
    }
