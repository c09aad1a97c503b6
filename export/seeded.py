"""A model of a preset's shape with seeded random weights: for benchmarks and compile checks, not for ads."""

from __future__ import annotations

import numpy as np
import torch

from training.data.values import ValueBuckets
from training.loop.checkpoint import Checkpoint
from training.preset.preset import Preset
from training.spec import ModelSpec

PROFILE_SIZES = (8,) * 7  # as many columns as the demo's users have


def seeded_checkpoint(preset: Preset, *, seed: int = 0) -> Checkpoint:
    """Untrained checkpoint; its tokenizer id says so, and no index of a real tokenizer matches it."""
    sizes, buckets = preset.tokenizer.level_sizes, preset.model.value_buckets
    spec = ModelSpec(
        model=preset.model.model_copy(update={"item": None}),  # it knows no ads
        features=preset.features.spec(
            levels=len(sizes), profile_sizes=PROFILE_SIZES, request_features=preset.request_features
        ),
        level_sizes=sizes,
        value_buckets=ValueBuckets(
            np.arange(1, buckets, dtype=np.float32), np.arange(buckets, dtype=np.float32) + 0.5
        ),
        profile_columns={
            f"profile_{i}": tuple(f"{i}-{j}" for j in range(1, s)) for i, s in enumerate(PROFILE_SIZES)
        },
        tokenizer_id=f"seeded-{seed}",
    )
    torch.manual_seed(seed)
    return Checkpoint(model=spec.build().eval(), spec=spec, settings={"threads": 2, "seed": seed})
