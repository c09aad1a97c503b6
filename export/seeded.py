"""A model of a preset's shape with seeded random weights: for benchmarks and compile checks, not for ads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from serving.model.features import FeatureSpec
from training.checkpoint import Checkpoint, ModelSpec
from training.config import FeatureConfig, load_section
from training.dataset import ValueBuckets
from training.model.config import ModelConfig
from training.tokenizer import TokenizerConfig

PROFILE_SIZES = (8,) * 7  # as many columns as the demo's users have


def seeded_checkpoint(config: str | Path, *, seed: int = 0, overrides: tuple[str, ...] = ()) -> Checkpoint:
    """Untrained checkpoint; its tokenizer id says so, and no index of a real tokenizer matches it.

    Raises:
        ConfigError: the preset is not valid.
    """
    sizes = load_section(config, "tokenizer", TokenizerConfig, overrides=overrides).level_sizes
    features = load_section(config, "features", FeatureConfig, overrides=overrides)
    model_config = load_section(config, "model", ModelConfig, overrides=overrides)
    buckets = model_config.value_buckets
    spec = ModelSpec(
        model=model_config,
        features=FeatureSpec(levels=len(sizes), profile_sizes=PROFILE_SIZES, **features.model_dump()),
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
    return Checkpoint(
        model=spec.build().eval(),
        spec=spec,
        training={"threads": 2, "seed": seed},
        step=0,
        history=[],
        optimizer_state=None,
    )
