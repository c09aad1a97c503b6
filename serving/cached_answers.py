"""Which requests of a batch the result cache answers, and what of a search it keeps."""

from __future__ import annotations

import numpy as np

from serving.batch import Batch, SearchAnswer, SearchRequest
from serving.cache import BeamCache, CachedBeams, cache_key
from serving.index.snapshot import Snapshot
from serving.search.per_account import within_cap
from serving.search.widths import WidthPlan


class CachedAnswers:
    """A result cache as the scheduler uses it."""

    def __init__(self, cache: BeamCache, *, plan: WidthPlan) -> None:
        """Wire up; `plan` are the configured widths."""
        self._cache, self._plan = cache, plan

    def answer(self, batch: Batch, *, settings: str, at_least: WidthPlan) -> None:
        """Answer what the cache has.

        Args:
            batch: its answers, keys and counts are filled in.
            settings: what the server's configuration says of the search, see `cache_key`.
            at_least: widths of a search now; an entry of fewer will not do.
        """
        for i, request in enumerate(batch.requests):
            # A client that asks for widths wants to see these.
            if request.use_cache and request.plan is None and request.width_cap is None:
                batch.keys[i] = cache_key(
                    model_version=batch.manifest.version,
                    slots=batch.slots[i],
                    profile=request.profile,
                    num_ads=request.num_ads,
                    exclude=request.exclude,
                    settings=settings,
                    terms=_terms(request, batch.snapshot),
                )
        rows, hits = list(batch.keys), 0
        for i, entry in zip(rows, self._cache.get([batch.keys[i] for i in rows]), strict=True):
            if entry is None or _plan(entry).narrower(at_least):
                continue
            if _enough_ads(entry, batch.requests[i], batch.snapshot):
                batch.answers[i] = SearchAnswer(
                    sids=entry.sids,
                    scores=entry.scores,
                    expected_value=entry.expected_value,
                    model_version=batch.manifest.version,
                    index_version=entry.index_version,
                    beam_widths=entry.beam_widths,
                    degraded=_plan(entry).narrower(self._plan),
                )
                hits += 1
        batch.report.hits += hits
        batch.report.misses += len(rows) - hits

    def keep(self, batch: Batch, rows: list[int], *, plan: WidthPlan) -> None:
        """Keep the answers of these requests, which were searched with a plan."""
        found = [(batch.keys[i], batch.answers[i]) for i in rows if i in batch.keys]
        self._cache.put(
            [
                (
                    key,
                    CachedBeams(
                        sids=a.sids,
                        scores=a.scores,
                        expected_value=a.expected_value,
                        beam_widths=a.beam_widths,
                        widths=(*plan.sid, plan.value),
                        index_version=a.index_version,
                    ),
                )
                for key, a in found
                if isinstance(a, SearchAnswer)
            ]
        )


def _enough_ads(entry: CachedBeams, request: SearchRequest, snapshot: Snapshot) -> bool:
    """Whether an entry has ads enough after what was paused; those of beams without a value do not count.

    A pruned search gave values to the beams of an answer only: one in another order may need more of them.
    """
    valued = ~np.isnan(entry.expected_value)
    pool = _plan(entry).pool(request.num_ads, ranked_among=request.ranked_among)
    if np.count_nonzero(valued) < pool:
        return False
    _, ads = snapshot.ads_of_sids(entry.sids[valued])
    ads = ads[~np.isin(ads, request.exclude) & snapshot.shown(ads, request.terms)]
    if request.max_per_account:
        ads = ads[within_cap(snapshot.traits_of(ads)[1], request.max_per_account)]
    return len(ads) >= request.num_ads


def _terms(request: SearchRequest, snapshot: Snapshot) -> str:
    """What of a request's terms shapes its beams: the audiences that it is in now, not why.

    An audience that is new and that the request is not in changes nothing: so the end of zeros is cut off.
    """
    satisfied = snapshot.satisfied(request.terms)
    if satisfied is None and not request.terms.excluded_accounts and not request.max_per_account:
        return ""
    of = b"" if satisfied is None else np.packbits(satisfied, bitorder="little").tobytes().rstrip(b"\0")
    return f"{of.hex()} {request.terms.excluded_accounts} {request.max_per_account}"


def _plan(entry: CachedBeams) -> WidthPlan:
    return WidthPlan(entry.widths[:-1], entry.widths[-1])
