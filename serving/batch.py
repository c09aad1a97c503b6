"""A batch as the beam scheduler takes it in and gives it back: requests, answers, what was done.

Letters: S history slots, T SID levels, P profile columns, n beams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from serving.index.eligible import NO_TERMS, Terms
from serving.index.snapshot import Snapshot
from serving.load.policy import Decision
from serving.model.manifest import Manifest
from serving.model.refusal import Refusal
from serving.search.widths import WidthPlan


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """One request as the scheduler sees it.

    Attributes:
        slot_ads: int64 [S], ad of each history slot; -1 is an empty one.
        slots: int32 [S, 3], what else a slot holds.
        profile: int32 [P], codes of the context's columns: of the profile, then of request features.
        num_ads: ads wanted, within the server's limits.
        exclude: int64, ads that must not come back.
        ranked_among: see `WidthPlan.pool`.
        by_value: of these beams the answer is the `num_ads` that are worth most.
        plan: widths; None for the configured ones.
        width_cap: no level keeps more beams than this (num_ads still counts); None for the plan's own widths.
        arrived: when it came in, seconds of the host's monotonic clock; None where nobody took the time.
        deadline: when its answer must be there, of the same clock; None for the SLO of load control.
        use_cache: whether a result of a minute ago will do.
        terms: what decides which ads may be shown.
        max_per_account: most ads of one account; 0 for any number.
        request_id: as the client gave it, which says whether a canary answers; None where it gave none.
    """

    slot_ads: np.ndarray
    slots: np.ndarray
    profile: np.ndarray
    num_ads: int
    exclude: np.ndarray
    ranked_among: int = 0
    by_value: bool = False
    plan: WidthPlan | None = None
    width_cap: int | None = None
    arrived: float | None = None
    deadline: float | None = None
    use_cache: bool = True
    terms: Terms = NO_TERMS
    max_per_account: int = 0
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class SearchAnswer:
    """Beams of one request, best first; at least `num_ads` where so many live SIDs exist.

    Attributes:
        sids: int32 [n, T].
        scores: float32 [n].
        expected_value: float32 [n]; the first num_ads have one.
        model_version: version of every graph that ran.
        index_version: version of the index that the search used, the one of then for cached beams.
        beam_widths: int32 [T + 1].
        degraded: searched with less than the configured widths.
    """

    sids: np.ndarray
    scores: np.ndarray
    expected_value: np.ndarray
    model_version: int
    index_version: int
    beam_widths: np.ndarray
    degraded: bool


@dataclass(kw_only=True)
class BatchReport:
    """What was done with a batch, for metrics.

    Attributes:
        decision: of load control; None where the cache had everything.
        queue_depth: requests waiting, as the server says; None where it does not say.
        hits: requests answered from the cache.
        misses: requests that the cache was asked for in vain.
        searched: requests that were searched.
        failed: requests whose search failed.
        degraded: answers below the configured widths.
        seconds: of the whole batch.
        version: model version in use after the batch.
        refused: why that is not the version of CURRENT; None when it is.
        canary: version that answers a share; None where there is none.
        canary_answered: requests that it answered.
        canary_failed: requests of its share that it failed, and the version in use answered.
        canary_refused: a version that was to answer a share and does not, and why; None where there is none.
    """

    decision: Decision | None = None
    queue_depth: int | None = None
    hits: int = 0
    misses: int = 0
    searched: int = 0
    failed: int = 0
    degraded: int = 0
    seconds: float = 0.0
    version: int | None = None
    refused: Refusal | None = None
    canary: int | None = None
    canary_answered: int = 0
    canary_failed: int = 0
    canary_refused: tuple[int, Refusal] | None = None


class BatchResult(NamedTuple):
    """What became of a batch.

    Attributes:
        answers: of each request, or why it has none.
        report: what was done.
    """

    answers: list[SearchAnswer | Exception]
    report: BatchReport


@dataclass(kw_only=True)
class Batch:
    """A batch in hand.

    Attributes:
        requests: B of them.
        snapshot: index that all of them are searched in.
        manifest: model version that searches.
        slots: int32 [B, S, T + 3], history slots with the SIDs filled in.
        answers: as they come.
        report: filled in on the way.
        keys: cache key of each request that a cached result will do for, by its position.
    """

    requests: list[SearchRequest]
    snapshot: Snapshot
    manifest: Manifest
    slots: np.ndarray
    answers: list[SearchAnswer | Exception]
    report: BatchReport
    keys: dict[int, bytes] = field(default_factory=dict)
