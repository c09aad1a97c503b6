"""A tiny bundle, index and model repository on disk, made by the product's own steps (no training)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import torch

from export.bundle import write_bundle
from export.render import render
from indexer.store.index_store import IndexStore
from serving.backend.settings import ServingConfig
from tests.tiny import LEVEL_SIZES, SPEC, VALUE_TABLE, tiny_catalogue, tiny_model
from training.data.values import ValueBuckets
from training.loop.checkpoint import Checkpoint
from training.preset.tokenizer import TokenizerConfig
from training.spec import ModelSpec
from training.tokenizer.tokenizer import Tokenizer

WIDTHS = "4-8-16:6"


@dataclass(frozen=True)
class Pipeline:
    """One tiny deployment."""

    folder: Path
    tokenizer_id: str

    @property
    def bundles(self) -> Path:
        return self.folder / "bundles"

    @property
    def index(self) -> Path:
        return self.folder / "index"

    @property
    def repository(self) -> Path:
        return self.folder / "model_repository"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @classmethod
    def at(cls, folder: Path) -> Pipeline:
        """The deployment that `build` made in a folder."""
        return cls(folder, Tokenizer.load(folder / "tokenizer").tokenizer_id)


def small_ads(count: int = 60) -> pl.DataFrame:
    """Ads table with enough different texts for tiny codebooks."""
    words = ["apple", "pear", "bread", "milk", "soap", "paper", "cheese", "tea"]
    return pl.DataFrame(
        {
            "ad_id": np.arange(count),
            "item_id": [f"i{i}" for i in range(count)],
            "account_id": [f"a{i % 5}" for i in range(count)],
            "conversion_type": ["plain"] * count,
            "text": [f"{words[i % 8]} {words[(i // 8) % 8]} size {i % 3}" for i in range(count)],
            "created_at": np.zeros(count, np.int64),
            "status": ["active"] * count,
        }
    )


def checkpoint(*, seed: int = 0, tokenizer_id: str) -> Checkpoint:
    """Untrained tiny model as the training step would hand it over."""
    model = tiny_model(seed=seed)
    edges = np.array([0.7, 1.5, 4.0], np.float32)
    spec = ModelSpec(
        model.config,
        SPEC,
        LEVEL_SIZES,
        ValueBuckets(edges, VALUE_TABLE),
        {"age": ("old", "young"), "region": ("east", "north", "west")},
        tokenizer_id,
    )
    return Checkpoint(model=model, spec=spec, settings={"threads": 1})


def build(folder: Path) -> None:
    """Bundle version 1, index version 1, rendered cpu repository."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.fit(
        small_ads(),
        TokenizerConfig(codebook_sizes=LEVEL_SIZES[:-1], hash_size=LEVEL_SIZES[-1], embedding_dim=8),
    )
    pipeline = Pipeline(folder, tokenizer.tokenizer_id)
    tokenizer.save(pipeline.tokenizer)
    write_bundle(
        checkpoint(tokenizer_id=tokenizer.tokenizer_id), pipeline.bundles, tokenizer=pipeline.tokenizer
    )
    ad_ids, sids, active = tiny_catalogue()
    with IndexStore(pipeline.index) as store:
        store.build(
            tokenizer.tokenizer_id,
            LEVEL_SIZES,
            ad_ids=ad_ids,
            sids=sids,
            statuses=np.where(active, "active", "paused"),
        )
    render(pipeline.bundles, pipeline.repository, index=pipeline.index, config=serving_config())


def copy_of(pipeline: Pipeline, folder: Path) -> Pipeline:
    """The same deployment in a folder of its own, to be changed."""
    copied = Pipeline(folder, pipeline.tokenizer_id)
    for name in ("bundles", "index", "tokenizer"):
        shutil.copytree(getattr(pipeline, name), getattr(copied, name))
    render(copied.bundles, copied.repository, index=copied.index, config=serving_config())
    return copied


@contextmanager
def exported(graphs: Path) -> Iterator[None]:
    """In the block a bundle gets copies of these graphs: exporting them anew takes ten seconds.

    `write_bundle` still holds them against the model that it is given.
    """

    def copy(model: torch.nn.Module, folder: Path) -> None:
        for file in graphs.glob("*.onnx"):
            shutil.copy(file, folder)

    with mock.patch("export.bundle.export_graphs", copy), mock.patch("export.lower.export_graphs", copy):
        yield


def serving_config() -> ServingConfig:
    """Settings of the tiny deployment."""
    return ServingConfig(
        widths=WIDTHS,
        max_num_ads=40,
        max_exclude=50,
        max_batch_size=8,
        load_control="fixed",  # answers must not depend on how busy the machine is
        cache="off",
    )
