"""What the beam scheduler does with a batch: pick version and widths, ask the cache, search, split.

No Triton here; `model_repository/beam_scheduler` is its adapter.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from serving.batch import Batch, BatchReport, BatchResult, SearchAnswer, SearchRequest
from serving.cache import BeamCache
from serving.cached_answers import CachedAnswers
from serving.canary_answers import answer_with_canary
from serving.capped_answers import with_enough_accounts
from serving.engines.bls import EngineError
from serving.index.eligible import Terms
from serving.index.layout import IndexStoreError
from serving.index.reader import IndexReader
from serving.load.arrivals import LoadView, Waiting
from serving.load.cost_model import BatchCost
from serving.load.policy import Decision, FixedPolicy, OverloadError, Policy
from serving.load.pruning import Asked, Pruning
from serving.load.queue_depth import QueueReading
from serving.model.active_model import ActiveModel
from serving.model.bundle import BundleError
from serving.model.features import fill_slots
from serving.model.manifest import Manifest
from serving.model.value_correction import ValueCorrection
from serving.opened import Opened
from serving.search.beam_search import beam_search
from serving.search.beams import Beams
from serving.search.cold_start import ColdStart
from serving.search.executor import Executor
from serving.search.normalise import Normalise
from serving.search.widths import WidthPlan

logger = logging.getLogger(__name__)


class Scheduler:
    """Searches batches with one index snapshot of its generation, and each request with one model version."""

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
        pruning: Pruning | None = None,
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
            max_plan: widest plan a request may ask for (default: the configured one).
            normalise: of each level, see `beam_search`.
            make_cold_start: what unseen SIDs get, for one model version.
            policy: load control; None for the configured widths whatever the load.
            pruning: which searches are pruned; None for none.
            cache: results of the last minute; None for none.
            queue: what the server says of the queue.
            clock: monotonic seconds, the one of `SearchRequest.arrived`.
        """
        self._reader, self._active, self._make_executor = reader, active, make_executor
        self._plan, self._max_plan, self._normalise = plan, max_plan or plan, normalise
        self._policy, self._queue = policy or FixedPolicy(plan), queue
        self._pruning = pruning
        self._cached = None if cache is None else CachedAnswers(cache, plan=plan)
        self._clock = clock
        self._make_cold_start = make_cold_start
        self._opened: dict[int, Opened] = {}
        self._open()
        self._in_use = plan  # by the last decision

    def _open(self) -> None:
        """Of the version in use and, where there is one, the canary; one that was open stays so."""
        canary, before = self._active.canary, self._opened
        wanted = [self._active.manifest]
        if canary is not None and canary.manifest is not None:
            wanted.append(canary.manifest)
        self._opened = {m.version: before[m.version] for m in wanted if m.version in before}
        del before  # what is not wanted any more goes before others come
        for manifest in wanted:
            if manifest.version not in self._opened:
                self._opened[manifest.version] = Opened(
                    manifest,
                    executor=self._make_executor(manifest),
                    make_cold_start=self._make_cold_start,
                    normalise=self._normalise,
                )

    def search(self, requests: list[SearchRequest]) -> BatchResult:
        """Answer a batch; a failing engine fails the requests of its group only, with the same exception.

        Where it failed because the graphs of the version in use are gone, another version searches for those
        requests, if one can.
        """
        began, report = self._clock(), BatchReport()
        answers: list[SearchAnswer | Exception] = []
        self._reader.refresh()
        try:
            self._active.refresh()
            self._open()
            answers = self._answer_all(requests, report)
            lost = [i for i, answer in enumerate(answers) if isinstance(answer, EngineError)]
            if lost and self._active.replace_lost():
                self._open()
                manifest = self._active.manifest
                found = self._answer([requests[i] for i in lost], report, manifest=manifest)
                for i, answer in zip(lost, found, strict=True):
                    answers[i] = answer
        except BundleError as error:  # no version can search now
            answers = [a if isinstance(a, SearchAnswer) else error for a in answers or requests]
        report.version, report.refused = self._active.manifest.version, self._active.refused
        report.failed = sum(isinstance(a, Exception) and not isinstance(a, OverloadError) for a in answers)
        report.degraded = sum(a.degraded for a in answers if isinstance(a, SearchAnswer))
        report.seconds = self._clock() - began
        return BatchResult(answers, report)

    def _answer_all(
        self, requests: list[SearchRequest], report: BatchReport
    ) -> list[SearchAnswer | Exception]:
        running, canary = self._active.manifest, self._active.canary
        if canary is None:
            return self._answer(requests, report, manifest=running)
        return answer_with_canary(
            requests,
            canary,
            running,
            answer=lambda rows, manifest: self._answer(rows, report, manifest=manifest),
            report=report,
        )

    def _answer(
        self, requests: list[SearchRequest], report: BatchReport, *, manifest: Manifest
    ) -> list[SearchAnswer | Exception]:
        """Of one version, all of one index snapshot."""
        if not requests:
            return []
        opened = self._opened[manifest.version]
        try:
            snapshot = self._reader.snapshot_of(manifest.tokenizer_id)
        except IndexStoreError as error:
            return [error] * len(requests)
        batch = Batch(
            requests=requests,
            snapshot=snapshot,
            manifest=manifest,
            slots=fill_slots(
                snapshot, np.stack([r.slot_ads for r in requests]), np.stack([r.slots for r in requests])
            ),
            answers=[RuntimeError("not searched")] * len(requests),
            report=report,
        )
        if self._cached is not None:
            # An entry of the configured plan is good while the server has room for more.
            at_least = self._in_use.within(self._plan)
            self._cached.answer(batch, settings=opened.settings, at_least=at_least)
        left = [i for i, answer in enumerate(batch.answers) if not isinstance(answer, SearchAnswer)]
        if left:
            self._search_rows(opened, batch, left, decision=self._decide(batch, left))
        return batch.answers

    def _decide(self, batch: Batch, rows: list[int]) -> Decision:
        """Of load control, for the rows that must be searched."""
        reading = self._queue()
        view = LoadView(
            [Waiting(batch.requests[i].arrived, batch.requests[i].deadline) for i in rows],
            # With a cache, arrivals are not what must be searched: the process counts its own misses.
            reading if reading is None or self._cached is None else reading._replace(total=None),
        )
        decision = self._policy.decide(self._clock(), view)
        self._in_use = decision.plan
        before = batch.report.decision  # of the canary's requests
        rejected = before.rejected + decision.rejected if before else decision.rejected
        batch.report.decision = replace(decision, rejected=rejected)
        batch.report.queue_depth = None if reading is None else reading.pending
        return decision

    def _search_rows(self, opened: Opened, batch: Batch, rows: list[int], *, decision: Decision) -> None:
        for at, reason in decision.rejected:
            batch.answers[rows[at]] = OverloadError(reason)
        rejected = {at for at, _ in decision.rejected}
        plans: dict[WidthPlan, list[int]] = {}
        for at, i in enumerate(rows):
            if at not in rejected:
                request = batch.requests[i]
                wanted = None if request.plan is None else request.plan.within(self._max_plan)
                plan = decision.plan_for(wanted, width_cap=request.width_cap)
                plans.setdefault(plan, []).append(i)
        groups = ((p, *group) for p, members in plans.items() for group in self._groups(batch, p, members))
        for plan, members, pruned in groups:
            opened.executor.take()
            began = self._clock()
            try:
                found = self._search_group(opened, batch, members, plan=plan, pruned=pruned)
            except Exception as error:  # one group must not take the others, or the server, down
                for i in members:
                    batch.answers[i] = error
                continue
            self._learn(opened, self._clock() - began, plan=plan, pruned=pruned, requests=len(members))
            batch.report.searched += len(members)
            for i, answer in zip(members, found, strict=True):
                batch.answers[i] = answer
            if self._cached is not None:
                self._cached.keep(batch, members, plan=plan)

    def _groups(
        self, batch: Batch, plan: WidthPlan, rows: list[int]
    ) -> Iterator[tuple[list[int], list[Asked]]]:
        """Rows of one plan that share a search, and what they ask for where it is to be pruned."""
        plain, pruned = [], defaultdict[bool, dict[int, Asked]](dict)
        for i in rows:
            request = batch.requests[i]
            asked = Asked(request.num_ads, request.ranked_among, request.by_value)
            if self._pruning is not None:
                self._pruning.came(asked)
            if self._pruning is not None and self._pruning.pays(plan, asked, requests=len(rows)):
                pruned[asked.by_value][i] = asked
            else:
                plain.append(i)
        for members in pruned.values():
            yield list(members), list(members.values())
        if plain:
            yield plain, []

    def _learn(
        self, opened: Opened, seconds: float, *, plan: WidthPlan, pruned: list[Asked], requests: int
    ) -> None:
        """From a search that ran; the first one of an executor says nothing of the later ones."""
        calls, first, opened.first = opened.executor.take(), opened.first, False
        if first:
            return
        rows = sum(call.rows for call in calls)
        self._policy.observe(self._clock(), BatchCost(requests, rows, seconds))
        if self._pruning is not None:
            for call in calls:
                self._pruning.calls.observe(call.rows * call.requests, call.seconds)
            self._pruning.observe(plan, pruned, rows=rows)

    def _search_group(
        self, opened: Opened, batch: Batch, rows: list[int], *, plan: WidthPlan, pruned: list[Asked]
    ) -> list[SearchAnswer]:
        requests, snapshot, manifest = [batch.requests[i] for i in rows], batch.snapshot, batch.manifest
        beams = self._beams(opened, batch, rows, plan=plan, pruned=pruned, terms=[r.terms for r in requests])
        answers = [
            SearchAnswer(
                sids=beams.sids[i],
                scores=beams.scores[i],
                expected_value=beams.expected_value[i],
                model_version=manifest.version,
                index_version=snapshot.version,
                beam_widths=beams.widths,
                degraded=plan.narrower(self._plan),
            )
            for i in range(len(requests))
        ]
        for at, request in enumerate(requests):
            if request.max_per_account:
                one, asked = rows[at : at + 1], pruned[at : at + 1]
                again = partial(self._beams, opened, batch, one, plan=plan, pruned=asked)
                answers[at] = with_enough_accounts(answers[at], request, snapshot, again=again)
        return answers

    def _beams(
        self,
        opened: Opened,
        batch: Batch,
        rows: list[int],
        *,
        plan: WidthPlan,
        pruned: list[Asked],
        terms: list[Terms],
    ) -> Beams:
        requests, snapshot, manifest = [batch.requests[i] for i in rows], batch.snapshot, batch.manifest
        banned = [snapshot.banned_leaves(r.exclude, t) for r, t in zip(requests, terms, strict=True)]
        eligible = [snapshot.eligible(t) for t in terms]
        return beam_search(
            opened.executor,
            snapshot.trie,
            batch.slots[rows],
            np.stack([r.profile for r in requests]),
            plan=plan,
            num_results=np.array([r.num_ads for r in requests]),
            value_table=manifest.value_table,
            pool=np.array([a.pool(plan) for a in pruned]) if pruned else None,
            by_value=bool(pruned) and pruned[0].by_value,
            banned=banned if any(map(len, banned)) else None,
            eligible=eligible if any(e is not None for e in eligible) else None,
            normalise=self._normalise,
            cold_start=opened.cold_start,
            value_correction=ValueCorrection(manifest.value_correction),
        )
