"""Checkpoints: safetensors and JSON, written whole or not at all, never pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from serving.files import new_folder, sha256, undo_interrupted
from serving.model.features import FeatureSpec
from serving.search.cold_start import SEEN_SIDS, read_seen
from training.data.values import ValueBuckets
from training.loop.config import TrainingConfig
from training.model.config import ModelConfig
from training.model.gr4ad import Generator

FORMAT_VERSION = 1


class CheckpointError(RuntimeError):
    """A checkpoint is missing, corrupted, or belongs to another configuration."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build the generator and to feed it, besides its weights."""

    model: ModelConfig
    features: FeatureSpec
    level_sizes: tuple[int, ...]
    value_buckets: ValueBuckets
    profile_columns: dict[str, tuple[str, ...]]
    tokenizer_id: str

    def build(self) -> Generator:
        """Generator with fresh weights (seed torch before)."""
        return Generator(
            self.model,
            self.features,
            level_sizes=self.level_sizes,
            value_buckets=len(self.value_buckets.means),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model.model_dump(),
            "features": self.features.to_json(),
            "level_sizes": list(self.level_sizes),
            "tokenizer_id": self.tokenizer_id,
            "value_edges": self.value_buckets.edges.tolist(),
            "value_means": self.value_buckets.means.tolist(),
            "profile_columns": {k: list(v) for k, v in self.profile_columns.items()},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelSpec:
        """Inverse of `to_json`."""
        buckets = ValueBuckets(
            np.asarray(values["value_edges"], np.float32), np.asarray(values["value_means"], np.float32)
        )
        return cls(
            ModelConfig(**values["model"]),
            FeatureSpec.from_json(values["features"]),
            tuple(values["level_sizes"]),
            buckets,
            {k: tuple(v) for k, v in values["profile_columns"].items()},
            values["tokenizer_id"],
        )


def save_checkpoint(
    folder: Path,
    *,
    model: Generator,
    spec: ModelSpec,
    training: TrainingConfig,
    step: int,
    optimizer: torch.optim.Optimizer | None = None,
    history: list[dict] | None = None,
    seen_sids: np.ndarray | None = None,
) -> None:
    """Write weights, optimizer state and position; an interrupted write leaves the old checkpoint.

    `seen_sids` are the packed SIDs of the training events, int64 ascending; None where they are not known.
    """
    content = {
        "format": FORMAT_VERSION,
        "step": step,
        "spec": spec.to_json(),
        "training": training.model_dump(),
        "history": history or [],
    }
    with new_folder(folder, replace=True) as new:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, new / "model.safetensors")
        if optimizer is not None:
            state = optimizer.state_dict()["state"]
            save_file(
                {f"{i}.{k}": v.contiguous() for i, s in state.items() for k, v in s.items()},
                new / "optimizer.safetensors",
            )
        if seen_sids is not None:
            np.save(new / SEEN_SIDS, seen_sids, allow_pickle=False)
        (new / "checkpoint.json").write_text(json.dumps(content, indent=1))


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` found."""

    model: Generator
    spec: ModelSpec
    training: dict[str, Any]
    step: int
    history: list[dict]
    optimizer_state: dict[int, dict[str, torch.Tensor]] | None
    seen_sids: np.ndarray | None = None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: missing, corrupted, or of a newer format.
    """
    undo_interrupted(folder)
    try:
        content = json.loads((folder / "checkpoint.json").read_text())
        if content["format"] > FORMAT_VERSION:
            raise CheckpointError(f"{folder}: expected format <= {FORMAT_VERSION}, got {content['format']}")
        spec = ModelSpec.from_json(content["spec"])
        model = spec.build()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        state: dict[int, dict[str, torch.Tensor]] | None = None
        if (folder / "optimizer.safetensors").exists():
            state = {}
            for name, value in load_file(folder / "optimizer.safetensors").items():
                index, _, key = name.partition(".")
                state.setdefault(int(index), {})[key] = value
        seen = read_seen(folder / SEEN_SIDS) if (folder / SEEN_SIDS).exists() else None
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder}: not a readable checkpoint: {error}") from error
    return Checkpoint(model, spec, content["training"], content["step"], content["history"], state, seen)


def weights_sha256(folder: Path) -> str:
    """Of the weights of a checkpoint, to tell whether another one was made from it."""
    return sha256(folder / "model.safetensors")
