"""Which requests of a batch a canary answers, and who answers them where it fails."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from serving.batch import BatchReport, SearchAnswer, SearchRequest
from serving.index.layout import IndexStoreError
from serving.load.policy import OverloadError
from serving.model.active_canary import ActiveCanary
from serving.model.manifest import Manifest
from serving.model.refusal import Refusal

_LEAST = -1e6
"""Log p that no beam of a model is below; the search's floor for scores that are no numbers is."""

Answers = list[SearchAnswer | Exception]


def answer_with_canary(
    requests: list[SearchRequest],
    canary: ActiveCanary,
    running: Manifest,
    *,
    answer: Callable[[list[SearchRequest], Manifest], Answers],
    report: BatchReport,
) -> Answers:
    """Of the canary its share; of the version in use the others, and what the canary fails.

    A canary that fails a request which the version in use answers is refused at once.

    Args:
        requests: of a batch.
        canary: follows CANARY.
        running: version in use.
        answer: searches for requests with one version.
        report: what is said of the canary is filled in.
    """
    tried: dict[int, SearchAnswer | Exception] = {}
    if canary.manifest is not None:
        report.canary = canary.manifest.version
        share = [i for i, request in enumerate(requests) if canary.takes(request.request_id)]
        found = answer([requests[i] for i in share], canary.manifest)
        tried = dict(zip(share, found, strict=True))
    problems = {i: _problem(a, requests[i].num_ads) for i, a in tried.items()}
    answers = {i: a for i, a in tried.items() if problems[i] is None}
    report.canary_answered = sum(isinstance(a, SearchAnswer) for a in answers.values())
    left = [i for i in range(len(requests)) if i not in answers]
    for i, found_one in zip(left, answer([requests[i] for i in left], running), strict=True):
        answers[i] = found_one
        problem = problems.get(i)
        # What no version answers is not the canary's fault.
        if problem is not None and isinstance(found_one, SearchAnswer) and _beams(found_one).any():
            report.canary_failed += 1
            if canary.manifest is not None:
                canary.refuse(Refusal("answers", problem))
    if canary.refused is not None:
        report.canary, report.canary_refused = None, (canary.refused_version, canary.refused)
    return [answers[i] for i in range(len(requests))]


def _beams(answer: SearchAnswer) -> np.ndarray:
    """Bool [n]: not padding."""
    return answer.sids[:, 0] >= 0


def _problem(answer: SearchAnswer | Exception, num_ads: int) -> str | None:
    """What is wrong with an answer, of a version rather than of the load or the index; None for nothing."""
    if isinstance(answer, OverloadError | IndexStoreError):
        return None
    if isinstance(answer, Exception):
        return f"a search failed: {answer!r:.300}"
    found = _beams(answer)
    if not (
        found.any() and answer.scores[found].max() > _LEAST
    ):  # what is no number is no candidate, or last
        return "expected beams that have a probability, found none"
    values = answer.expected_value[:num_ads][found[:num_ads]]
    if not (np.isfinite(answer.scores[found]).all() and np.isfinite(values).all()):
        return "expected scores and values that are finite, got others"
    return None
