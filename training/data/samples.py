"""Training and evaluation requests, cut from an event log with the code that serves.

Letters: B requests, n targets of a request, S slots, T SID levels, P profile columns, E events, A ads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from serving.index.keys import pack
from serving.model.features import BEHAVIORS, EVENT_COLUMNS, FeatureSpec, join_codes, select_events
from training.data.batch import Batch, Sample, collate
from training.data.log import EventLog, TargetGroups, target_groups
from training.data.prepared import Prepared
from training.data.profile import ProfileVocabulary
from training.data.split import WEEK
from training.data.values import ValueBuckets


class TargetSettings(Protocol):
    """How targets of a request are drawn and weighed; section `training` of a preset has it."""

    @property
    def targets_per_request(self) -> int:
        """Most targets of a request."""

    @property
    def behavior_weights(self) -> Mapping[Any, float]:
        """Weight of a target by its behavior; 0 for one that is not named."""

    @property
    def seed(self) -> int:
        """Of the draw."""


class RequestDataset:
    """Requests cut from an event log: a target group is a request, its history lies strictly before it."""

    def __init__(
        self, prepared: Prepared, sids: pl.DataFrame, *, spec: FeatureSpec, profile: ProfileVocabulary
    ) -> None:
        """Join the log with the SIDs.

        Args:
            prepared: tables and split.
            sids: columns ad_id, s1 .. s_T; must hold every ad of the log.
            spec: what a context looks like.
            profile: the model's, which may be older than the tables: categories it lacks are unknown.

        Raises:
            ValueError: an ad of the log has no SID, or users lack a profile column.
        """
        self.spec, self.split = spec, prepared.split
        self.log = EventLog.from_tables(prepared.tables)
        self.profile = profile.encode(prepared.tables.users.sort("user_id"))
        sids = sids.sort("ad_id")
        self.ad_ids = sids["ad_id"].to_numpy()
        self.ad_sids = np.ascontiguousarray(sids.drop("ad_id").to_numpy(), np.int32)  # [A, T]
        self.event_ad = np.minimum(np.searchsorted(self.ad_ids, self.log.ad_ids), len(self.ad_ids) - 1)  # [E]
        missing = np.flatnonzero(self.ad_ids[self.event_ad] != self.log.ad_ids)
        if len(missing):
            raise ValueError(
                f"expected a SID for every ad of the events; {len(missing)} events have none, "
                f"first ad_id {self.log.ad_ids[missing[0]]}: tokenizer and data do not belong together"
            )

    def seen_sids(self, level_sizes: tuple[int, ...]) -> np.ndarray:
        """Packed SIDs of the ads of the training weeks' events, int64 ascending."""
        seen = np.unique(self.event_ad[self.log.timestamp < self.split.train_end])
        return np.unique(pack(self.ad_sids[seen], level_sizes))

    def groups(
        self,
        part: str,
        *,
        target_behaviors: tuple[str, ...],
        min_history: int,
        recent_weeks: int | None = None,
    ) -> TargetGroups:
        """Requests of `part`: train, validation or test; only its last `recent_weeks` if given."""
        bounds = {
            "train": (0, self.split.train_end),
            "validation": (self.split.train_end, self.split.validation_end),
            "test": (self.split.validation_end, self.split.end),
        }
        start, stop = bounds[part]
        if recent_weeks is not None:
            start = max(start, stop - recent_weeks * WEEK)
        return target_groups(
            self.log, start=start, stop=stop, target_behaviors=target_behaviors, min_history=min_history
        )

    def target_counts(self, groups: TargetGroups) -> np.ndarray:
        """Number of targets of each request, int64 [N]."""
        before = np.concatenate([[0], np.cumsum(np.isin(self.log.behavior, groups.target_codes))])
        return before[groups.end] - before[groups.begin]

    def targets(self, groups: TargetGroups, row: int) -> np.ndarray:
        """Events, positions in the log, that are the targets of request `row`."""
        events = np.arange(groups.begin[row], groups.end[row])
        return events[np.isin(self.log.behavior[events], groups.target_codes)]

    def context(self, groups: TargetGroups, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slots int32 [B, S, T + 3] and profile int32 [B, P] of requests."""
        log, spec = self.log, self.spec
        events = np.empty((len(rows), spec.slots), np.int64)
        columns = np.empty((len(rows), spec.slots, EVENT_COLUMNS), np.int32)
        for i, row in enumerate(rows):
            begin = groups.begin[row]
            first = max(log.user_ptr[groups.user_row[row]], begin - spec.max_history)
            past = slice(first, begin)
            history = select_events(
                spec,
                log.ad_ids[past],
                behaviors=log.behavior[past],
                timestamps=log.timestamp[past],
                now=int(groups.now[row]),
            )
            events[i] = np.where(history.events >= 0, first + history.events, -1)
            columns[i] = history.columns
        codes = self.ad_sids[self.event_ad[events]]  # [B, S, T]; of empty slots anything
        return join_codes(codes, columns, shown=events >= 0), self.profile[groups.user_row[rows]]

    def samples(
        self,
        groups: TargetGroups,
        rows: np.ndarray,
        *,
        config: TargetSettings,
        buckets: ValueBuckets,
        epoch: int,
    ) -> list[Sample]:
        """Requests with their targets; which targets are drawn depends on (seed, epoch, request) alone."""
        weights = np.zeros(len(BEHAVIORS) + 1, np.float32)
        for name, weight in config.behavior_weights.items():
            weights[BEHAVIORS[name]] = weight
        slots, profile = self.context(groups, rows)
        found = []
        for i, row in enumerate(rows):
            events = self.targets(groups, row)
            if len(events) > config.targets_per_request:
                generator = np.random.default_rng((config.seed, epoch, int(row)))
                events = generator.choice(events, config.targets_per_request, replace=False)
            found.append(
                Sample(
                    slots=slots[i],
                    profile=profile[i],
                    tokens=self.ad_sids[self.event_ad[events]].astype(np.int64),
                    value=buckets.encode(self.log.value[events]),
                    weight=weights[self.log.behavior[events]],
                )
            )
        return found

    def batch(
        self,
        groups: TargetGroups,
        rows: np.ndarray,
        *,
        config: TargetSettings,
        buckets: ValueBuckets,
        epoch: int,
    ) -> Batch[np.ndarray]:
        """`samples` of the requests `rows`, side by side."""
        return collate(self.samples(groups, rows, config=config, buckets=buckets, epoch=epoch))


def load_sids(folder: str | Path) -> pl.DataFrame:
    """SIDs that the tokenizer step wrote: ad_id Int64, s1 .. s_T Int32."""
    return pl.read_parquet(Path(folder) / "sids.parquet")
