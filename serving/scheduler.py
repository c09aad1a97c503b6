"""What the beam scheduler does with a batch: pick the model version, group by width plan, search, split.

No Triton here; `model_repository/beam_scheduler` is its adapter. Letters: S history slots, T SID levels,
P profile columns, n beams.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.beam_search import Normalise, beam_search
from serving.bundle import CURRENT, BundleError, Manifest, read_current
from serving.executor import Executor
from serving.index.layout import IndexStoreError
from serving.index.reader import IndexReader
from serving.index.snapshot import Snapshot
from serving.request import fill_slots
from serving.widths import WidthPlan

logger = logging.getLogger(__name__)

RETRY_S = 1.0  # between two looks at a version that was refused: its files are hashed each time


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
    """

    slot_ads: np.ndarray
    slots: np.ndarray
    profile: np.ndarray
    num_ads: int
    exclude: np.ndarray
    plan: WidthPlan | None = None
    width_cap: int | None = None


@dataclass(frozen=True)
class SearchAnswer:
    """Beams of one request, best first; at least `num_ads` where so many live SIDs exist.

    Attributes:
        sids: int32 [n, T].
        scores: float32 [n].
        expected_value: float32 [n]; the first num_ads have one.
        model_version: version of every graph that ran.
        index_version: version of the index that the search used.
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


class ActiveModel:
    """The version that CURRENT names, if it is complete, loaded, and its tokenizer's generation is ready.

    A version that is not usable is refused with a log line, and the one in use stays.
    """

    def __init__(
        self, bundles: str | Path, *, reader: IndexReader, is_loaded: Callable[[Manifest], bool]
    ) -> None:
        """Find the first usable version.

        Args:
            bundles: folder of bundles.
            reader: index.
            is_loaded: whether the engine has every graph of a version.

        Raises:
            BundleError: CURRENT names no complete version.
            IndexStoreError: its tokenizer's generation is not ready.
        """
        self._bundles, self._reader, self._is_loaded = Path(bundles), reader, is_loaded
        self._stamp, self._retry_at = self._read_stamp(), 0.0
        # Its graphs may still be loading: the first search finds out.
        self.manifest = read_current(self._bundles)
        self._require_generation(self.manifest)

    def refresh(self) -> bool:
        """Follow CURRENT; True when another version is in use now. Call between batches."""
        stamp = self._read_stamp()
        if stamp == self._stamp or time.monotonic() < self._retry_at:
            return False
        try:
            manifest = read_current(self._bundles)
            if manifest.features != self.manifest.features:
                raise BundleError(
                    f"model version {manifest.version}: expected the features of version "
                    f"{self.manifest.version}, {self.manifest.features}, got {manifest.features}; "
                    "render the repository and start again"
                )
            if not self._is_loaded(manifest):
                raise BundleError(f"model version {manifest.version}: its graphs are not loaded")
            self._require_generation(manifest)
        except (BundleError, IndexStoreError) as error:
            logger.error("model version %d stays in use: %s", self.manifest.version, error)
            # Not remembered as seen: the version may still be loading. Nor read again with every batch.
            self._retry_at = time.monotonic() + RETRY_S
            return False
        self._stamp = stamp
        old, self.manifest = self.manifest, manifest
        if old.tokenizer_id != manifest.tokenizer_id:
            self._reader.forget(old.tokenizer_id)
        return manifest.version != old.version

    def _read_stamp(self) -> tuple[int, int]:
        try:
            found = (self._bundles / CURRENT).stat()
        except OSError:
            return (0, 0)
        return found.st_mtime_ns, found.st_ino

    def _require_generation(self, manifest: Manifest) -> None:
        try:
            self._reader.snapshot_of(manifest.tokenizer_id)
        except IndexStoreError as error:
            raise IndexStoreError(
                f"model version {manifest.version} is of tokenizer {manifest.tokenizer_id}: {error}"
            ) from error


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
    ) -> None:
        """Wire up.

        Args:
            reader: index.
            active: model version.
            plan: configured widths.
            make_executor: engine for one model version.
            max_plan: policy: widest plan a request may ask for (default: the configured one).
            normalise: of each level, see `beam_search`.
        """
        self._reader, self._active, self._make_executor = reader, active, make_executor
        self._plan, self._max_plan, self._normalise = plan, max_plan or plan, normalise
        self._executor = make_executor(active.manifest)

    def search(self, requests: list[SearchRequest]) -> list[SearchAnswer | Exception]:
        """Answer a batch; a failing engine fails the requests of its group only."""
        self._reader.refresh()
        if self._active.refresh():
            self._executor = self._make_executor(self._active.manifest)
        answers: list[SearchAnswer | Exception] = [RuntimeError("not searched")] * len(requests)
        if not requests:
            return answers
        try:
            snapshot = self._reader.snapshot_of(self._active.manifest.tokenizer_id)
        except IndexStoreError as error:
            logger.exception("search failed")
            return [error] * len(requests)
        slots = fill_slots(
            snapshot, np.stack([r.slot_ads for r in requests]), np.stack([r.slots for r in requests])
        )
        groups: dict[WidthPlan, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(self._plan_of(request), []).append(i)
        for plan, rows in groups.items():
            try:
                found = self._search_group(snapshot, plan, [requests[i] for i in rows], slots=slots[rows])
            except Exception as error:  # one group must not take the others, or the server, down
                logger.exception("search failed")
                found = [error] * len(rows)
            for i, answer in zip(rows, found, strict=True):
                answers[i] = answer
        return answers

    def _plan_of(self, request: SearchRequest) -> WidthPlan:
        plan = self._plan if request.plan is None else request.plan.within(self._max_plan)
        return plan if request.width_cap is None else plan.capped(request.width_cap)

    def _search_group(
        self, snapshot: Snapshot, plan: WidthPlan, requests: list[SearchRequest], *, slots: np.ndarray
    ) -> list[SearchAnswer | Exception]:
        manifest = self._active.manifest
        banned = [snapshot.banned_leaves(r.exclude) for r in requests]
        beams = beam_search(
            self._executor,
            snapshot.trie,
            slots,
            np.stack([r.profile for r in requests]),
            plan=plan,
            num_results=np.array([r.num_ads for r in requests]),
            value_table=manifest.value_table,
            banned=banned if any(map(len, banned)) else None,
            normalise=self._normalise,
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
