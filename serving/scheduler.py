"""What the beam scheduler does with a batch: pick version and widths, ask the cache, search, split.

No Triton here; `model_repository/beam_scheduler` is its adapter. Letters: S history slots, T SID levels,
P profile columns, n beams.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from serving.cache import BeamCache, CachedBeams, cache_key
from serving.index.layout import IndexStoreError
from serving.index.reader import IndexReader
from serving.index.snapshot import Snapshot
from serving.load.arrivals import LoadView, Waiting
from serving.load.cost_model import BatchCost
from serving.load.ladder import searched_rows
from serving.load.policy import Decision, FixedPolicy, OverloadError, Policy
from serving.load.queue_depth import QueueReading
from serving.model.active_model import ActiveModel
from serving.model.bundle import BundleError, Manifest
from serving.model.features import fill_slots
from serving.search.beam_search import beam_search
from serving.search.cold_start import ColdStart
from serving.search.executor import Executor
from serving.search.normalise import Normalise
from serving.search.widths import WidthPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchRequest:
    """One request as the scheduler sees it.

    Attributes:
        slot_ads: int64 [S], ad of each history slot; -1 is an empty one.
        slots: int32 [S, 3], what else a slot holds.
        profile: int32 [P].
        num_ads: ads wanted, within the policy.
        exclude: int64, ads that must not come back.
        plan: widths, within the policy; None for the configured ones.
        width_cap: no level keeps more beams than this (num_ads still counts); None for the plan's own widths.
        arrived: when it came in, seconds of the host's monotonic clock; None where nobody took the time.
        deadline: when its answer must be there, of the same clock; None for the SLO of load control.
        use_cache: whether a result of a minute ago will do.
    """

    slot_ads: np.ndarray
    slots: np.ndarray
    profile: np.ndarray
    num_ads: int
    exclude: np.ndarray
    plan: WidthPlan | None = None
    width_cap: int | None = None
    arrived: float | None = None
    deadline: float | None = None
    use_cache: bool = True


@dataclass(frozen=True)
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


@dataclass
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
    """

    decision: Decision | None = None
    queue_depth: int | None = None
    hits: int = 0
    misses: int = 0
    searched: int = 0
    failed: int = 0
    degraded: int = 0
    seconds: float = 0.0


@dataclass
class _Batch:
    """A batch in hand: rows of the arrays belong to `requests`."""

    requests: list[SearchRequest]
    snapshot: Snapshot
    manifest: Manifest
    slots: np.ndarray
    answers: list[SearchAnswer | Exception]
    keys: dict[int, bytes] = field(default_factory=dict)


class Scheduler:
    """Searches batches with one model version and one index snapshot of its generation each."""

    def __init__(
        self,
        reader: IndexReader,
        active: ActiveModel,
        *,
        plan: WidthPlan,
        make_executor: Callable[[Manifest], Executor],
        max_plan: WidthPlan | None = None,
        normalise: tuple[Normalise, ...] | None = None,
        make_cold_start: Callable[[Manifest], ColdStart | None] = lambda manifest: None,
        policy: Policy | None = None,
        cache: BeamCache | None = None,
        queue: Callable[[], QueueReading | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire up.

        Args:
            reader: index.
            active: model version.
            plan: configured widths.
            make_executor: engine for one model version.
            max_plan: policy: widest plan a request may ask for (default: the configured one).
            normalise: of each level, see `beam_search`.
            make_cold_start: what unseen SIDs get, for one model version.
            policy: load control; None for the configured widths whatever the load.
            cache: results of the last minute; None for none.
            queue: what the server says of the queue.
            clock: monotonic seconds, the one of `SearchRequest.arrived`.
        """
        self._reader, self._active, self._make_executor = reader, active, make_executor
        self._plan, self._max_plan, self._normalise = plan, max_plan or plan, normalise
        self._policy, self._cache, self._queue = policy or FixedPolicy(plan), cache, queue
        self._clock = clock
        self._make_cold_start = make_cold_start
        self._open(active.manifest)
        self._in_use = plan  # by the last decision
        self.report = BatchReport()

    def _open(self, manifest: Manifest) -> None:
        self._executor, self._cold_start = self._make_executor(manifest), None
        try:
            self._cold_start = self._make_cold_start(manifest)
        except BundleError:
            logger.exception("version %d: ads that it was not trained on get no part", manifest.version)
        share = self._cold_start.share if self._cold_start else 0.0
        self._settings = f"{self._normalise} {share}"  # what else shapes the beams of a version
        self._first = True  # the first search of an executor says nothing of the later ones

    def search(self, requests: list[SearchRequest]) -> list[SearchAnswer | Exception]:
        """Answer a batch; a failing engine fails the requests of its group only. See `report` afterwards."""
        began = self._clock()
        self.report = BatchReport()
        self._reader.refresh()
        if self._active.refresh():
            self._open(self._active.manifest)
        answers: list[SearchAnswer | Exception] = [RuntimeError("not searched")] * len(requests)
        if not requests:
            return answers
        manifest = self._active.manifest
        try:
            snapshot = self._reader.snapshot_of(manifest.tokenizer_id)
        except IndexStoreError as error:
            logger.exception("search failed")
            return [error] * len(requests)
        slots = fill_slots(
            snapshot, np.stack([r.slot_ads for r in requests]), np.stack([r.slots for r in requests])
        )
        batch = _Batch(requests, snapshot, manifest, slots, answers)
        left = self._answer_from_cache(batch)
        if left:
            self._search_rows(batch, left, decision=self._decide(batch, left))
        done = [a for a in answers if isinstance(a, SearchAnswer)]
        self.report.degraded = sum(a.degraded for a in done)
        self.report.seconds = self._clock() - began
        return answers

    def _decide(self, batch: _Batch, rows: list[int]) -> Decision:
        """Of load control, for the rows that must be searched."""
        reading = self._queue()
        view = LoadView(
            [Waiting(batch.requests[i].arrived, batch.requests[i].deadline) for i in rows],
            None if reading is None else reading.pending,
            # With a cache, arrivals are not what must be searched: the process counts its own misses.
            None if reading is None or self._cache is not None else reading.total,
        )
        decision = self._policy.decide(self._clock(), view)
        self._in_use = decision.plan
        self.report.decision = decision
        self.report.queue_depth = None if reading is None else reading.pending
        return decision

    def _search_rows(self, batch: _Batch, rows: list[int], *, decision: Decision) -> None:
        for at, reason in decision.rejected:
            batch.answers[rows[at]] = OverloadError(reason)
        rejected = {at for at, _ in decision.rejected}
        groups: dict[WidthPlan, list[int]] = {}
        for at, i in enumerate(rows):
            if at not in rejected:
                request = batch.requests[i]
                wanted = None if request.plan is None else request.plan.within(self._max_plan)
                plan = decision.plan_for(wanted, width_cap=request.width_cap)
                groups.setdefault(plan, []).append(i)
        for plan, members in groups.items():
            began = self._clock()
            try:
                found = self._search_group(batch, plan, members)
            except Exception as error:  # one group must not take the others, or the server, down
                logger.exception("search failed")
                self.report.failed += len(members)
                for i in members:
                    batch.answers[i] = error
                continue
            now = self._clock()
            widths = searched_rows(found[0].beam_widths.tolist())
            if not self._first:
                self._policy.observe(now, BatchCost(len(members), widths, now - began))
            self._first = False
            self.report.searched += len(members)
            for i, answer in zip(members, found, strict=True):
                batch.answers[i] = answer
            self._keep(batch, plan, members)

    def _search_group(self, batch: _Batch, plan: WidthPlan, rows: list[int]) -> list[SearchAnswer]:
        requests, snapshot, manifest = [batch.requests[i] for i in rows], batch.snapshot, batch.manifest
        banned = [snapshot.banned_leaves(r.exclude) for r in requests]
        beams = beam_search(
            self._executor,
            snapshot.trie,
            batch.slots[rows],
            np.stack([r.profile for r in requests]),
            plan=plan,
            num_results=np.array([r.num_ads for r in requests]),
            value_table=manifest.value_table,
            banned=banned if any(map(len, banned)) else None,
            normalise=self._normalise,
            cold_start=self._cold_start,
        )
        return [
            SearchAnswer(
                beams.sids[i],
                beams.scores[i],
                beams.expected_value[i],
                manifest.version,
                snapshot.version,
                beams.widths,
                plan.narrower(self._plan),
            )
            for i in range(len(requests))
        ]

    def _answer_from_cache(self, batch: _Batch) -> list[int]:
        """Answer what the cache has; returns the rows that are left."""
        if self._cache is None:
            return list(range(len(batch.requests)))
        for i, request in enumerate(batch.requests):
            # A client that asks for widths wants to see these.
            if request.use_cache and request.plan is None and request.width_cap is None:
                batch.keys[i] = cache_key(
                    model_version=batch.manifest.version,
                    slots=batch.slots[i],
                    profile=request.profile,
                    num_ads=request.num_ads,
                    exclude=request.exclude,
                    settings=self._settings,
                )
        rows = list(batch.keys)
        for i, entry in zip(rows, self._cache.get([batch.keys[i] for i in rows]), strict=True):
            if entry is not None and self._still_good(entry, batch.requests[i], batch.snapshot):
                batch.answers[i] = SearchAnswer(
                    entry.sids,
                    entry.scores,
                    entry.expected_value,
                    batch.manifest.version,
                    entry.index_version,
                    entry.beam_widths,
                    _plan(entry).narrower(self._plan),
                )
                self.report.hits += 1
        self.report.misses = len(rows) - self.report.hits
        return [i for i, answer in enumerate(batch.answers) if not isinstance(answer, SearchAnswer)]

    def _still_good(self, entry: CachedBeams, request: SearchRequest, snapshot: Snapshot) -> bool:
        """Whether an entry is as wide as a search would be now, and has ads enough after what was paused.

        As wide up to the configured plan: an entry of it is good while the server has room for more.
        """
        if _plan(entry).narrower(self._in_use.within(self._plan)):
            return False
        _, ads = snapshot.ads_of_sids(entry.sids)
        return int((~np.isin(ads, request.exclude)).sum()) >= request.num_ads

    def _keep(self, batch: _Batch, plan: WidthPlan, rows: list[int]) -> None:
        if self._cache is None:
            return
        found = [(i, batch.answers[i]) for i in rows if i in batch.keys]
        self._cache.put(
            [
                (
                    batch.keys[i],
                    CachedBeams(
                        a.sids,
                        a.scores,
                        a.expected_value,
                        a.beam_widths,
                        (*plan.sid, plan.value),
                        a.index_version,
                    ),
                )
                for i, a in found
                if isinstance(a, SearchAnswer)
            ]
        )


def _plan(entry: CachedBeams) -> WidthPlan:
    return WidthPlan(entry.widths[:-1], entry.widths[-1])
