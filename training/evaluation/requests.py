"""Requests of a held-out part, with what they should have found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data.groups import TargetGroups
from training.data.samples import RequestDataset


@dataclass(frozen=True)
class Requests:
    """Drawn requests.

    Attributes:
        groups: requests of the part.
        rows: those of them that were drawn.
        targets: of each drawn request, distinct ads int64 that it should have found.
        values: of each, the value of each target.
    """

    groups: TargetGroups
    rows: np.ndarray
    targets: list[np.ndarray]
    values: list[np.ndarray]

    @property
    def now(self) -> np.ndarray:
        """Time of each drawn request, int64 unix seconds."""
        return self.groups.now[self.rows]


def draw_requests(
    dataset: RequestDataset,
    *,
    target_behaviors: tuple[str, ...],
    min_history: int,
    count: int,
    seed: int,
    part: str = "test",
) -> Requests:
    """Draw requests of a part.

    Raises:
        ValueError: there is none.
    """
    groups = dataset.groups(part, target_behaviors=target_behaviors, min_history=min_history)
    if not len(groups):
        raise ValueError(f"expected at least one {part} request, got none")
    rows = np.sort(np.random.default_rng(seed).permutation(len(groups))[:count])
    targets, values = [], []
    for row in rows:
        events = dataset.targets(groups, row)
        ads, at = np.unique(dataset.log.ad_ids[events], return_inverse=True)
        targets.append(ads)
        values.append(np.bincount(at, weights=dataset.log.value[events]))
    return Requests(groups, rows, targets, values)
