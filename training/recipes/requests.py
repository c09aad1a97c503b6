"""Batches of logged requests, for the recipes that train on them.

Letters: B requests, n targets of a request, T SID levels.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import replace

import numpy as np

from serving.model.features import BEHAVIORS
from training.data.batch import Batch, Sample, collate
from training.data.groups import TargetGroups
from training.data.order import BatchOrder
from training.data.samples import RequestDataset
from training.data.stream import stream
from training.data.user_value import user_weights
from training.loop.device import Device
from training.objectives.vsl import Vsl
from training.preset.loop import LoopConfig
from training.preset.preset import Preset
from training.preset.recipes import FineTuneConfig, TrainingConfig
from training.spec import ModelSpec

_NAMED = 8  # requests that an error names


def vsl_of(config: TrainingConfig, spec: ModelSpec) -> Vsl:
    """The loss of the targets, with its term of the item level for a model that has one."""
    return Vsl(
        lambda_value=config.lambda_value,
        lambda_mtp=config.lambda_mtp,
        lambda_item=None if spec.items is None else config.lambda_item,
    )


class LoggedRequests:
    """Requests of the training and validation weeks; a `training.loop.source.Source`."""

    def __init__(
        self, dataset: RequestDataset, spec: ModelSpec, *, preset: Preset, config: LoopConfig, device: Device
    ) -> None:
        """Find the requests.

        Args:
            dataset: events and SIDs.
            spec: of the model.
            preset: section `training` says which requests and targets.
            config: how many at a time; seed of their order.
            device: which share is this process's.

        Raises:
            ValueError: no training or validation request, or fewer in a batch than processes.
        """
        self.dataset, self._spec, self._config, self._device = dataset, spec, config, device
        self._training, behaviors = preset.training, preset.logs.target_behaviors
        history = self._training.min_history
        self.groups, self.held_out_groups = (
            self._kept(
                part,
                dataset.groups(part, target_behaviors=behaviors, min_history=history, recent_weeks=weeks),
            )
            for part, weeks in (("train", self._training.recent_weeks), ("validation", None))
        )
        if self._training.following_requests:
            self.groups = self.groups.with_following(self._training.following_requests)
        self._user_weights = None
        if self._training.user_weight == "value":
            self._user_weights = user_weights(dataset.log, dataset.parts, target_behaviors=behaviors)
        for name, groups in (("training", self.groups), ("validation", self.held_out_groups)):
            if not len(groups):
                raise ValueError(
                    f"expected at least one {name} request with {history} earlier events and a target among "
                    f"{behaviors}, got none; see training.min_history, training.recent_weeks and "
                    "data.target_behaviors"
                )
            self._check_weights(name, groups)
        drawn = np.random.default_rng(config.seed).permutation(len(self.held_out_groups))
        self._held_out_rows = np.sort(drawn[: config.validation_requests])
        self.held_out = _digest(dataset, self.held_out_groups, rows=self._held_out_rows)
        counts = np.minimum(dataset.target_counts(self.groups), self._training.targets_per_request)
        self._order = BatchOrder(counts, batch_size=config.batch_size, seed=config.seed)
        if self._order.batch_size < device.world:
            raise ValueError(
                f"expected at least one request of a batch for each of {device.world} processes, got batches "
                f"of {self._order.batch_size}"
            )

    def _kept(self, part: str, groups: TargetGroups) -> TargetGroups:
        """Those of the requests of a part that are used: all of them."""
        return groups

    def _check_weights(self, name: str, groups: TargetGroups) -> None:
        weights, log = self._training.behavior_weights, self.dataset.log
        codes = set(log.behavior[groups.target_events].tolist())
        found = [behavior for behavior, code in BEHAVIORS.items() if code in codes]
        if not any(weight > 0 for behavior, weight in weights.items() if behavior in found):
            raise ValueError(
                f"training.behavior_weights: expected a weight > 0 for a behavior of the {name} targets (of "
                f"{', '.join(found)}), got {weights}"
            )

    def batches(self, start: int) -> Generator[Batch[np.ndarray], None, None]:
        """This process's share from a step on; later ones are built while the model works on one."""

        def build(step: int) -> Batch[np.ndarray]:
            epoch, rows = self._order(step)
            return self._batch(self.groups, self._share(rows), epoch=epoch)

        return stream(build, itertools.count(start), workers=self._config.workers, describe=self.describe)

    def validation(self) -> Iterator[Batch[np.ndarray]]:
        """This process's share of the drawn validation requests."""
        rows = self._held_out_rows
        for first in range(0, len(rows), self._config.batch_size):
            share = self._share(rows[first : first + self._config.batch_size])
            if len(share):
                yield self._batch(self.held_out_groups, share, epoch=0)

    def some(self, step: int, count: int) -> list[Sample]:
        """At most `count` requests of a step's batch with their targets; the same ones each time."""
        epoch, rows = self._order(step)
        return self._samples(self.groups, rows[:count], epoch=epoch)

    def describe(self, step: int) -> str:
        """User and time of the first requests of a step."""
        epoch, rows = self._order(step)
        users = self.dataset.log.user_ids[self.groups.user_row[rows]]
        times = self.groups.now[rows]
        named = [f"{user} at {time}" for user, time in zip(users[:_NAMED], times, strict=False)]
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        return f"the batch (epoch {epoch}) holds the requests of users {', '.join(named)}{more}"

    def _share(self, rows: np.ndarray) -> np.ndarray:
        return rows[self._device.rank :: self._device.world]

    def _batch(self, groups: TargetGroups, rows: np.ndarray, *, epoch: int) -> Batch[np.ndarray]:
        return collate(self._samples(groups, rows, epoch=epoch))

    def _samples(self, groups: TargetGroups, rows: np.ndarray, *, epoch: int) -> list[Sample]:
        return self.dataset.samples(
            groups,
            rows,
            config=self._training,
            buckets=self._spec.value_buckets,
            epoch=epoch,
            user_weights=self._user_weights,
        )


def _digest(dataset: RequestDataset, groups: TargetGroups, *, rows: np.ndarray) -> str:
    """The same for the same users and times."""
    content = dataset.log.user_ids[groups.user_row[rows]].tobytes() + groups.now[rows].tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


class CatalogueRequests(LoggedRequests):
    """Logged requests with SIDs of any ads beside their targets, because beams visit more than targets."""

    _config: FineTuneConfig

    def _batch(self, groups: TargetGroups, rows: np.ndarray, *, epoch: int) -> Batch[np.ndarray]:
        """The SIDs have weight 1, and value bucket 0 for want of a value."""
        batch = super()._batch(groups, rows, epoch=epoch)
        sids = self.dataset.ad_sids
        shape = len(rows), self._config.catalogue_targets
        ads = [self._random(epoch, row).integers(0, len(sids), shape[1]) for row in rows]
        return replace(
            batch,
            tokens=np.concatenate([batch.tokens, sids[np.stack(ads)].astype(np.int64)], axis=1),
            ads=None,  # not those of all SIDs
            value=np.concatenate([batch.value, np.zeros(shape, np.int64)], axis=1),
            weight=np.concatenate([batch.weight, np.ones(shape, np.float32)], axis=1),
        )

    def _random(self, epoch: int, row: int) -> np.random.Generator:
        return np.random.default_rng((self._config.seed, epoch, int(row)))
