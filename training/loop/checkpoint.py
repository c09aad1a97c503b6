"""One checkpoint: safetensors and JSON in a folder, never pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from serving.files import sha256, write_file
from serving.search.cold_start import SEEN_SIDS, read_seen
from training.model.gr4ad import Generator
from training.spec import ModelSpec

FORMAT_VERSION = 2
MODEL, OPTIMIZER, CONTENT = "model.safetensors", "optimizer.safetensors", "checkpoint.json"
_LEARNT = "learnt.npy"

OptimizerState = dict[int, dict[str, torch.Tensor]]


class CheckpointError(RuntimeError):
    """A checkpoint is missing, corrupted, or belongs to another model."""


class NonFiniteError(ArithmeticError):
    """A run's loss, gradient or weights are no numbers any more."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model and where its run stands; a run starts from one and saves others.

    Attributes:
        model: the weights, float32.
        spec: what they mean.
        settings: of the run, as its section of the preset had them.
        step: optimizer steps so far.
        seconds: of training so far.
        history: a record for each validation; see `training.loop.trainer`.
        sums: [sum, weight] of every part of the objective over the steps since the last record.
        optimizer_state: by position of the parameter; None before the first step.
        seen_sids: packed SIDs int64 ascending of the events of the training weeks; None where not known.
        held_out: names the validation requests of the last record; losses on others are not to be compared.
        source: sha256 of the weights that a fine-tuned model was made from.
        first_record: of the history that is of the validation requests of `held_out`.
        balance: lambda by which lists count beside targets in post-training, as measured at its start; None
            where it was not.
        inputs: what the run reads besides its settings, see `serving.inputs.Inputs.values`; None where not
            known.
        online: where a run that learns from what is served stands, see `training.online.state`; None of other
            runs.
        learnt: int64, what such a run remembers of targets that it has learnt.
    """

    model: Generator
    spec: ModelSpec
    settings: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, list[float]] = field(default_factory=dict)
    optimizer_state: OptimizerState | None = None
    seen_sids: np.ndarray | None = None
    held_out: str = ""
    source: str | None = None
    first_record: int = 0
    balance: float | None = None
    inputs: dict[str, Any] | None = None
    online: dict[str, Any] | None = None
    learnt: np.ndarray | None = None


_PLAIN = ("settings", "step", "seconds", "history", "sums", "held_out", "source")  # as they are in JSON
_ADDED = ("first_record", "balance", "inputs", "online")  # likewise; older checkpoints do not have them


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the files of a checkpoint into `folder`, which is made.

    Raises:
        NonFiniteError: a weight is infinite or not a number; nothing was written.
    """
    weights = {name: value.cpu().contiguous() for name, value in checkpoint.model.state_dict().items()}
    require_finite(weights, step=checkpoint.step)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / MODEL)
    if checkpoint.optimizer_state is not None:
        state = checkpoint.optimizer_state.items()
        save_file(
            {f"{i}.{key}": value.cpu().contiguous() for i, values in state for key, value in values.items()},
            folder / OPTIMIZER,
        )
    if checkpoint.seen_sids is not None:
        np.save(folder / SEEN_SIDS, checkpoint.seen_sids, allow_pickle=False)
    if checkpoint.learnt is not None:
        np.save(folder / _LEARNT, checkpoint.learnt, allow_pickle=False)
    content = {"format": FORMAT_VERSION, "spec": checkpoint.spec.to_json()}
    content |= {name: getattr(checkpoint, name) for name in (*_PLAIN, *_ADDED)}
    (folder / CONTENT).write_text(json.dumps(content, indent=1))


def require_finite(weights: Mapping[str, torch.Tensor], *, step: int) -> None:
    """Refuse weights that are not all finite.

    Raises:
        NonFiniteError: says how many are not, and the first.
    """
    bad = [name for name, value in weights.items() if not value.isfinite().all()]
    if bad:
        raise NonFiniteError(
            f"step {step}: expected finite weights, {len(bad)} of {len(weights)} tensors are not, first "
            f"{bad[0]}; not saved"
        )


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read what `write_checkpoint` wrote.

    Raises:
        CheckpointError: missing, corrupted, or of another format.
    """
    try:
        content = json.loads((folder / CONTENT).read_text())
        if content["format"] != FORMAT_VERSION:
            raise CheckpointError(f"{folder}: expected format {FORMAT_VERSION}, got {content['format']}")
        spec = ModelSpec.from_json(content["spec"])
        model = spec.build()
        model.load_state_dict(load_file(folder / MODEL))
        return Checkpoint(
            model=model,
            spec=spec,
            optimizer_state=_optimizer_state(folder / OPTIMIZER),
            seen_sids=read_seen(folder / SEEN_SIDS) if (folder / SEEN_SIDS).exists() else None,
            learnt=np.load(folder / _LEARNT, allow_pickle=False) if (folder / _LEARNT).exists() else None,
            **{name: content[name] for name in _PLAIN},
            **{name: content[name] for name in _ADDED if name in content},
        )
    except CheckpointError:
        raise
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a readable checkpoint: {error}") from error


def replace_spec(folder: Path, spec: ModelSpec) -> None:
    """Give a checkpoint another specification of the same weights.

    Raises:
        OSError: it cannot be read or written; it is as it was then.
    """
    content = json.loads((folder / CONTENT).read_text()) | {"spec": spec.to_json()}
    write_file(folder / CONTENT, json.dumps(content, indent=1))


def weights_sha256(folder: Path) -> str:
    """Of the weights of a checkpoint, to tell whether another one was made from it."""
    return sha256(folder / MODEL)


class Origin(NamedTuple):
    """What a checkpoint comes from.

    Attributes:
        source: sha256 of the weights that its run began from, None for a pre-trained one.
        objective: of post-training, None for other runs.
        online: whether its run learns from what is served.
    """

    source: str | None
    objective: str | None
    online: bool


def read_origin(folder: Path) -> Origin:
    """What a checkpoint comes from; no weight is read.

    Raises:
        CheckpointError: it is not readable.
    """
    try:
        content = json.loads((folder / CONTENT).read_text())
        source, objective = content["source"], content["settings"].get("objective")
        online = content.get("online") is not None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: not a readable checkpoint: {error}") from error
    source, objective = (None if text is None else str(text) for text in (source, objective))
    return Origin(source, objective, online)


def _optimizer_state(path: Path) -> OptimizerState | None:
    if not path.exists():
        return None
    state: OptimizerState = {}
    for name, value in load_file(path).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    return state
