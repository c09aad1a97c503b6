"""Training and evaluation requests, cut from an event log with the code that serves.

Letters: B requests, n targets of a request, S slots, T SID levels, P columns of profile and request, E
events, A ads, R requests of the log.
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
from training.data.groups import TargetGroups, history
from training.data.lists import CandidateFlag, CandidateList
from training.data.parts import TRAIN
from training.data.prepared import Prepared
from training.data.profile import ProfileVocabulary
from training.data.split import PARTS, WEEK
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
    """Requests cut from an event log, each with the history that was known strictly before it."""

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
            ValueError: an ad of the log has no SID, users lack a profile column, or events a request feature.
        """
        self.spec, self.split, self.vocabulary = spec, prepared.split, profile
        self.log, self.parts = prepared.log, prepared.parts
        self.profile = profile.encode(prepared.tables.users.sort("user_id"))
        self.request_codes = _request_codes(spec, prepared.tables.events, anchors=self.log.exposures.anchor)
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
        """Packed SIDs of the ads of the training part's events, int64 ascending."""
        seen = np.unique(self.event_ad[self.parts.event == TRAIN])
        return np.unique(pack(self.ad_sids[seen], level_sizes))

    def groups(
        self,
        part: str,
        *,
        target_behaviors: tuple[str, ...],
        min_history: int,
        recent_weeks: int | None = None,
    ) -> TargetGroups:
        """Requests of `part`: train, validation or test; of train only the last `recent_weeks` if given."""
        start = 0
        if recent_weeks is not None and part == PARTS[TRAIN]:
            start = self.split.train_end - recent_weeks * WEEK
        return self.parts.groups(
            self.log,
            PARTS.index(part),
            target_behaviors=target_behaviors,
            min_history=min_history,
            start=start,
        )

    def target_counts(self, groups: TargetGroups) -> np.ndarray:
        """Number of targets of each request, int64 [N]."""
        return np.diff(groups.target_ptr)

    def targets(self, groups: TargetGroups, row: int) -> np.ndarray:
        """Events, positions in the log, that are the outcomes of the targets of request `row`."""
        return groups.target_events[groups.target_ptr[row] : groups.target_ptr[row + 1]]

    def history(self, groups: TargetGroups, row: int, *, newest: int | None = None) -> np.ndarray:
        """Events, positions in the log, known before request `row` and not its own, oldest first."""
        return history(self.log, int(groups.request[row]), newest=newest)

    def candidates(self, groups: TargetGroups, row: int, *, least: str) -> CandidateList:
        """The targets of request `row` as the list of what was shown; what came of each is its reward.

        With groups of all behaviors as targets these are all exposures of the request, so that an impression
        without a click is a candidate of reward 0. Where each was shown, says `log.position` of its event.

        Args:
            groups: requests.
            row: one of them.
            least: behavior from which on the value of an outcome is its reward; what came to less has 0.
        """
        events = self.targets(groups, row)
        counts = self.log.behavior[events] >= BEHAVIORS[least]
        return CandidateList(
            sids=self.ad_sids[self.event_ad[events]],
            reward=np.where(counts, self.log.value[events], np.float32(0)),
            flags=np.full(len(events), CandidateFlag.LOGGED, np.uint8),
            ads=self.log.ad_ids[events],
        )

    def context(self, groups: TargetGroups, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slots and habits int32 [B, S + H, T + 3] and profile int32 [B, P] of requests."""
        slots, profile, _ = self._contexts(groups, rows)
        return slots, profile

    def _contexts(self, groups: TargetGroups, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`context`, and the ads of the slots int64 [B, S], -1 in empty ones."""
        log, spec = self.log, self.spec
        events = np.empty((len(rows), spec.rows), np.int64)
        columns = np.empty((len(rows), spec.rows, EVENT_COLUMNS), np.int32)
        for i, row in enumerate(rows):
            past = self.history(groups, row, newest=spec.max_history)
            shown = select_events(
                spec,
                log.ad_ids[past],
                behaviors=log.behavior[past],
                timestamps=log.timestamp[past],
                now=int(groups.now[row]),
            )
            events[i] = np.where(shown.events >= 0, past[shown.events] if len(past) else -1, -1)
            columns[i] = shown.columns
        codes = self.ad_sids[self.event_ad[events]]  # [B, S + H, T]; of empty rows anything
        profile = self.profile[groups.user_row[rows]], self.request_codes[groups.request[rows]]
        slots = events[:, : spec.slots]
        shown_ads = np.where(slots >= 0, log.ad_ids[slots], -1)
        return join_codes(codes, columns, shown=events >= 0), np.concatenate(profile, axis=1), shown_ads

    def samples(
        self,
        groups: TargetGroups,
        rows: np.ndarray,
        *,
        config: TargetSettings,
        buckets: ValueBuckets,
        epoch: int,
        user_weights: np.ndarray | None = None,
    ) -> list[Sample]:
        """Requests with their targets; which targets are drawn depends on (seed, epoch, request) alone.

        Args:
            groups: requests.
            rows: some of them.
            config: how targets are drawn, and w_behavior.
            buckets: of their values.
            epoch: of the run.
            user_weights: w_user, float32 of each row of the log's users; None for 1.
        """
        weights = np.zeros(len(BEHAVIORS) + 1, np.float32)
        for name, weight in config.behavior_weights.items():
            weights[BEHAVIORS[name]] = weight
        slots, profile, slot_ads = self._contexts(groups, rows)
        found = []
        for i, row in enumerate(rows):
            events = self.targets(groups, row)
            if len(events) > config.targets_per_request:
                generator = np.random.default_rng((config.seed, epoch, int(row)))
                events = generator.choice(events, config.targets_per_request, replace=False)
            weight = weights[self.log.behavior[events]]
            found.append(
                Sample(
                    slots=slots[i],
                    profile=profile[i],
                    tokens=self.ad_sids[self.event_ad[events]].astype(np.int64),
                    value=buckets.encode(self.log.value[events]),
                    weight=weight if user_weights is None else weight * user_weights[groups.user_row[row]],
                    slot_ads=slot_ads[i],
                    ads=self.log.ad_ids[events],
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


def _request_codes(spec: FeatureSpec, events: pl.DataFrame, *, anchors: np.ndarray) -> np.ndarray:
    """Codes int32 [R, Q] of the Q request features, of each request's first row."""
    codes = np.zeros((len(anchors), len(spec.request_features)), np.int32)
    for q, feature in enumerate(spec.request_features):
        if feature.column not in events.columns:
            raise ValueError(
                f"events: expected the column {feature.column!r} of request feature {feature.name!r}, got "
                f"{events.columns}; name it in data.request_features and run `make data` again"
            )
        column = events[feature.column]
        if feature.size and column.dtype == pl.String:
            raise ValueError(
                f"events: expected whole numbers in {feature.column!r}, which request feature "
                f"{feature.name!r} gives a size, got texts; give it `values` instead"
            )
        values = column[anchors] if feature.size else column[anchors].cast(pl.String)
        known = {value: feature.code(value) for value in values.drop_nulls().unique().to_list()}
        if known:
            encoded = values.replace_strict(known, default=0, return_dtype=pl.Int32)
            codes[:, q] = encoded.fill_null(0).to_numpy()
    return codes


def load_sids(folder: str | Path) -> pl.DataFrame:
    """SIDs that the tokenizer step wrote: ad_id Int64, s1 .. s_T Int32."""
    return pl.read_parquet(Path(folder) / "sids.parquet")
