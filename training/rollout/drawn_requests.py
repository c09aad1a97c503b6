"""Requests that lists are made for, with what the log has of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.model.features import BEHAVIORS
from training.data.groups import TargetGroups
from training.data.samples import RequestDataset
from training.preset.rollout import RolloutConfig
from training.rollout.candidates import Logged

_IMPRESSION = ("impression",)


@dataclass(frozen=True, kw_only=True)
class DrawnRequests:
    """Requests that lists are made for, the oldest first.

    Attributes:
        groups: requests of a part, with their targets.
        every: the same and others, where all that was shown is a target.
        impressions: those that the log has impressions of, which are the targets.
        rows: int64, those of `groups` that were drawn.
    """

    groups: TargetGroups
    every: TargetGroups
    impressions: TargetGroups
    rows: np.ndarray

    @classmethod
    def draw(
        cls,
        dataset: RequestDataset,
        part: str,
        *,
        config: RolloutConfig,
        target_behaviors: tuple[str, ...],
        min_history: int,
    ) -> DrawnRequests:
        """Draw `config.requests` of a part.

        Raises:
            ValueError: there is none.
        """
        groups, every, impressions = (
            dataset.groups(
                part, target_behaviors=behaviors, min_history=min_history, recent_weeks=config.recent_weeks
            )
            for behaviors in (target_behaviors, tuple(BEHAVIORS), _IMPRESSION)
        )
        if not len(groups):
            raise ValueError(f"expected at least one {part} request with a target, got none")
        rows = np.sort(np.random.default_rng(config.seed).permutation(len(groups))[: config.requests])
        rows = rows[np.argsort(groups.now[rows], kind="stable")]
        return cls(groups=groups, every=every, impressions=impressions, rows=rows)

    def logged(self, dataset: RequestDataset, row: int) -> Logged:
        """What the log has of request `row` of `groups`."""
        request = int(self.groups.request[row])

        def ads_of(groups: TargetGroups) -> np.ndarray:
            at = int(np.searchsorted(groups.request, request))
            found = at < len(groups) and int(groups.request[at]) == request
            events = dataset.targets(groups, at) if found else np.zeros(0, np.int64)
            return dataset.log.ad_ids[events]

        return Logged(
            impressions=ads_of(self.impressions),
            shown=ads_of(self.every),
            targets=ads_of(self.groups),
        )
