"""Weights of another run's model, taken over by a new one where they fit.

A weight fits if it has the shape and means the same: a code's embedding is of use only to a model of the same
tokenizer, a category's only to one of the same categories.
"""

from __future__ import annotations

from pathlib import Path

import torch

from training.loop.checkpoint import CONTENT, Checkpoint, CheckpointError, load_checkpoint
from training.loop.retention import FOLDER, open_checkpoint
from training.model.gr4ad import Generator
from training.spec import ModelSpec


def open_source(path: Path) -> Checkpoint:
    """A checkpoint, or the latest one of a model's or a run's folder.

    Raises:
        CheckpointError: there is none, or it is not readable.
    """
    if (path / CONTENT).is_file():
        return load_checkpoint(path)
    for folder in (path, path / "model"):
        if (folder / FOLDER).is_dir():
            return open_checkpoint(folder)
    raise CheckpointError(
        f"training.warm_start: expected a checkpoint, or a folder of a model or run that has one, got {path}"
    )


def take_weights(model: Generator, spec: ModelSpec, *, source: Checkpoint) -> list[str]:
    """Copy what fits into a new model.

    Args:
        model: with fresh weights, which stay where nothing fits.
        spec: of the model.
        source: whose weights are taken.

    Returns:
        Names of the weights that were not taken, each with the reason.

    Raises:
        CheckpointError: none fits.
    """
    there, here = source.model.state_dict(), model.state_dict()
    taken, left = {}, []
    for name, weight in here.items():
        if name not in there:
            left.append(f"{name} (not there)")
        elif there[name].shape != weight.shape:
            left.append(f"{name} ({_size(there[name])} there, {_size(weight)} here)")
        elif why := _means_something_else(name, spec, source.spec):
            left.append(f"{name} ({why})")
        else:
            taken[name] = there[name]
    if not taken:
        raise CheckpointError(f"training.warm_start: expected weights that fit, got none: {', '.join(left)}")
    model.load_state_dict(here | taken)
    return left


def _means_something_else(name: str, spec: ModelSpec, source: ModelSpec) -> str:
    part, _, rest = name.partition(".")
    if spec.tokenizer_id != source.tokenizer_id:
        # The last head is that of the value level; with tied embeddings it is the only one.
        value_head = 0 if spec.model.tie_embeddings else len(spec.level_sizes)
        if part == "codes" or (part == "heads" and int(rest.split(".")[0]) != value_head):
            return "codes of another tokenizer"
    if name.startswith("context.profile."):
        column = int(name.split(".")[2])
        if list(spec.profile_columns.items())[column] != list(source.profile_columns.items())[column]:
            return "other categories"
    return ""


def _size(weight: torch.Tensor) -> str:
    return "x".join(map(str, weight.shape))
