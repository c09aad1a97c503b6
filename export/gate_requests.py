"""Requests that the precision gate searches with, and the catalogue that it searches.

Letters: N requests, S slots, T SID levels, P profile columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from export.graphs import example_request
from serving.index.snapshot import IndexSnapshot
from training.loop.checkpoint import Checkpoint
from training.preset.preset import Preset
from training.run import RunData
from training.spec import ModelSpec

SEEDED_ADS = 100_000


@dataclass(frozen=True)
class GateRequests:
    """Requests and catalogue.

    Attributes:
        slots: int32 [N, S, T + 3].
        profile: int32 [N, P].
        snapshot: the catalogue.
        targets: of each request, distinct ads that it should find; None for random requests.
    """

    slots: np.ndarray
    profile: np.ndarray
    snapshot: IndexSnapshot
    targets: list[np.ndarray] | None


def held_out_requests(
    run: Path,
    spec: ModelSpec,
    *,
    preset: Preset,
    count: int,
    seed: int,
    part: Literal["train", "validation"] = "validation",
) -> GateRequests:
    """Requests of the validation weeks (or the training weeks) against the whole catalogue.

    The test weeks stay unseen: a figure that decides whether a model is published is no test of it.

    Args:
        run: run folder with `data/` and `tokenizer/`.
        spec: the model's.
        preset: for its sections `data` and `training`.
        count: requests drawn; all of them when there are fewer.
        seed: of the draw.
        part: weeks.

    Raises:
        ValueError: data are missing, hold no such request, or do not fit the model.
    """
    for file, command in (
        (run / "data" / "stats.json", "make data"),
        (run / "tokenizer" / "sids.parquet", "make tokenize"),
    ):
        if not file.is_file():
            raise ValueError(
                f"{file}: expected it, to compare what graphs find on held-out requests, found none; run "
                f"`{command}`, or export with --precision fp32"
            )
    behaviors, min_history = preset.logs.target_behaviors, preset.training.min_history
    data = RunData.load(run)
    data.check_tokenizer(spec)
    dataset = data.dataset(spec)
    groups = dataset.groups(part, target_behaviors=behaviors, min_history=min_history)
    if not len(groups):
        raise ValueError(
            f"{run / 'data'}: expected at least one {part} request with {behaviors} after "
            f"{min_history} events of history, found none; nothing can be compared"
        )
    rows = np.sort(np.random.default_rng(seed).permutation(len(groups))[:count])
    slots, profile = dataset.context(groups, rows)
    return GateRequests(
        slots,
        profile,
        IndexSnapshot.build(
            dataset.ad_ids,
            dataset.ad_sids,
            active=np.ones(len(dataset.ad_ids), bool),
            level_sizes=spec.level_sizes,
        ),
        [np.unique(dataset.log.ad_ids[dataset.targets(groups, row)]) for row in rows],
    )


def random_requests(checkpoint: Checkpoint, *, count: int, seed: int) -> GateRequests:
    """Random requests against a random catalogue, for a model with seeded weights."""
    slots, profile = example_request(
        checkpoint.model, batch=count, generator=torch.Generator().manual_seed(seed)
    )
    random = np.random.default_rng(seed)
    sids = np.stack([random.integers(0, v, SEEDED_ADS) for v in checkpoint.spec.level_sizes], axis=1)
    snapshot = IndexSnapshot.build(
        np.arange(SEEDED_ADS),
        sids.astype(np.int32),
        active=np.ones(SEEDED_ADS, bool),
        level_sizes=checkpoint.spec.level_sizes,
    )
    return GateRequests(slots.numpy(), profile.numpy(), snapshot, None)
