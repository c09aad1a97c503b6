"""A training run without logs: the tiny model, random requests, any objective."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.pipeline import checkpoint
from tests.tiny import LEVEL_SIZES, VALUE_TABLE, random_requests
from training.data.batch import Batch
from training.loop.checkpoint import Checkpoint
from training.loop.config import LoopConfig
from training.loop.device import Device
from training.loop.trainer import Trainer
from training.objectives.base import Objective
from training.objectives.vsl import Vsl
from training.spec import ModelSpec

VSL = Vsl(lambda_value=0.2, lambda_mtp=0.3)


class ToySource:
    """Batches of 6 requests with 2 targets, each a pure function of the step.

    Attributes:
        spoil: at these steps, a function that changes the batch before it is used.
    """

    held_out = "toys"

    def __init__(self, spoil: dict[int, Any] | None = None) -> None:
        self.spoil = spoil or {}
        self.built: list[int] = []

    def batches(self, start: int) -> Iterator[Batch]:
        step = start
        while True:
            self.built.append(step)
            yield self.spoil.get(step, lambda batch: batch)(toy_batch(step))
            step += 1

    def validation(self) -> list[Batch]:
        return [toy_batch(10_000 + i) for i in range(2)]

    def describe(self, step: int) -> str:
        return f"the toy batch {step}"


def toy_batch(seed: int) -> Batch:
    """SIDs that depend on the profile, so that there is something to learn."""
    slots, profile = random_requests(6, seed=seed)
    random = np.random.default_rng(seed)
    tokens = np.stack(
        [(profile[:, :1] + t + random.integers(0, 2, (6, 2))) % v for t, v in enumerate(LEVEL_SIZES)], -1
    )
    value = random.integers(0, len(VALUE_TABLE), (6, 2))
    return Batch(
        slots=slots,
        profile=profile,
        tokens=tokens.astype(np.int64),
        value=value,
        weight=np.ones((6, 2), np.float32),
    )


def start(**changes: Any) -> Checkpoint:
    """The untrained tiny model; `model` changes its configuration, e.g. {"dropout": 0.1}."""
    found = checkpoint(tokenizer_id="toy")
    if "model" in changes:
        spec = replace(found.spec, model=found.spec.model.model_copy(update=changes.pop("model")))
        found = _rebuilt(spec)
    return replace(found, **changes)


def _rebuilt(spec: ModelSpec) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(model=spec.build(), spec=spec, settings={})


def toy_trainer(
    folder: Path,
    beginning: Checkpoint | None = None,
    *,
    source: ToySource | None = None,
    objective: Objective = VSL,
    device: Device | None = None,
    **config: Any,
) -> Trainer:
    """30 steps, validated every 10, unless `config` says otherwise."""
    options = {"steps": 30, "validate_every": 10, "warmup_steps": 2, "learning_rate": 0.01} | config
    return Trainer(
        beginning or start(),
        objective,
        source or ToySource(),
        config=LoopConfig(**options),
        device=device or Device(),
        folder=folder,
    )
