"""Whether what would be trained could be exported and served, asked before anything is trained."""

from __future__ import annotations

import math

import polars as pl

from serving.backend.plans import SearchPlans
from serving.backend.settings import ServingConfig
from serving.model.features import FeatureSpec
from training.preset.preset import Preset
from training.tokenizer.columns import check_readable, given_sids


def check_exportable(preset: Preset, ads: pl.DataFrame) -> None:
    """Whether a model of this preset on these ads could be exported.

    Raises:
        ValueError: the tokenizer cannot read the ads, or see `check_model`.
    """
    columns = preset.data.numeric_columns if preset.data else ()
    check_readable(ads, preset.tokenizer, numeric_columns=columns)
    sizes: tuple[int, ...]
    if preset.tokenizer.sids == "given":
        found = given_sids(ads, preset.tokenizer.given_sizes).max(axis=0).tolist()
        sizes = tuple(s or n + 1 for s, n in zip(preset.tokenizer.given_sizes, found, strict=True))
    else:
        sizes = preset.tokenizer.level_sizes
    features = preset.features.spec(
        levels=len(sizes), profile_sizes=(), request_features=preset.request_features
    )
    check_model(features, level_sizes=sizes, serving=preset.serving)


def check_model(features: FeatureSpec, *, level_sizes: tuple[int, ...], serving: ServingConfig) -> None:
    """Whether a model of this shape could be exported and served.

    Raises:
        ValueError: names everything that is in the way.
    """
    faults = []
    if features.levels != len(level_sizes):
        faults.append(f"expected features of {len(level_sizes)} SID levels, got {features.levels}")
    if math.prod(level_sizes) >= 1 << 63:
        faults.append(f"expected level sizes whose product is below 2**63, got {list(level_sizes)}")
    try:
        SearchPlans.of(serving, levels=len(level_sizes))
    except ValueError as error:
        faults.append(f"serving: {error}")
    if faults:
        raise ValueError("a model of this preset could not be served: " + "; ".join(faults))
