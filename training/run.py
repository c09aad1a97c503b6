"""A run folder (`data/`, `tokenizer/`) and a preset, opened for training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from serving.model.features import FeatureSpec
from training.checkpoint import ModelSpec
from training.data.config import DataConfig
from training.data.log import TargetGroups
from training.data.prepared import load_prepared
from training.data.samples import RequestDataset, load_sids
from training.data.values import ValueBuckets
from training.loop.config import TrainingConfig
from training.model.config import ModelConfig
from training.preset import Preset
from training.tokenizer.tokenizer import Tokenizer


def make_spec(
    dataset: RequestDataset,
    model: ModelConfig,
    *,
    features: FeatureSpec,
    groups: TargetGroups,
    level_sizes: tuple[int, ...],
    tokenizer_id: str,
    profile_columns: dict[str, tuple[str, ...]],
) -> ModelSpec:
    """Model specification with value buckets fitted on the training targets only."""
    targets = np.isin(dataset.log.behavior, groups.target_codes) & (
        dataset.log.timestamp < dataset.split.train_end
    )
    buckets = ValueBuckets.fit(dataset.log.value[targets], buckets=model.value_buckets)
    return ModelSpec(model, features, level_sizes, buckets, profile_columns, tokenizer_id)


def open_run(preset: Preset, run: Path) -> tuple[RequestDataset, ModelSpec, TrainingConfig, DataConfig]:
    """Dataset and specification of a run folder that holds `data/` and `tokenizer/`."""
    prepared = load_prepared(run / "data")
    tokenizer = Tokenizer.load(run / "tokenizer")
    data, training = preset.logs, preset.training
    spec = preset.features.spec(
        levels=len(tokenizer.level_sizes), profile_sizes=prepared.profile.cardinalities
    )
    dataset = RequestDataset(prepared, load_sids(run / "tokenizer"), spec=spec)
    groups = dataset.groups("train", target_behaviors=data.target_behaviors, min_history=training.min_history)
    return (
        dataset,
        make_spec(
            dataset,
            preset.model,
            features=spec,
            groups=groups,
            level_sizes=tokenizer.level_sizes,
            tokenizer_id=tokenizer.tokenizer_id,
            profile_columns=dict(prepared.profile.categories),
        ),
        training,
        data,
    )
