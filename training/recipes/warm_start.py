"""Weights of another run's model, taken over by a new one where they fit.

A weight fits if it has the shape and means the same: a category's embedding is of use only to a model of the
same categories, a code's to one of the same tokenizer, or of one that was aligned to it, whose codes take the
rows of those they go on from (`training.tokenizer.align`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training.loop.checkpoint import CONTENT, Checkpoint, CheckpointError, load_checkpoint
from training.loop.retention import FOLDER, open_checkpoint
from training.model.gr4ad import Generator
from training.model.item_head import KNOWN
from training.spec import ModelSpec
from training.tokenizer.alignment import NONE, Alignment


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


def take_weights(
    model: Generator, spec: ModelSpec, *, source: Checkpoint, alignment: Alignment | None = None
) -> list[str]:
    """Copy what fits into a new model.

    Args:
        model: with fresh weights, which stay where nothing fits.
        spec: of the model.
        source: whose weights are taken.
        alignment: of the codes of the model's tokenizer to those of an older one.

    Returns:
        Names of the weights that were not taken, or not whole, each with the reason.

    Raises:
        CheckpointError: none fits.
    """
    there, here = source.model.state_dict(), model.state_dict()
    taken, left = {}, []
    for name, weight in here.items():
        if name in KNOWN:
            continue  # which ads there are says this run
        level = _level_of(name, spec) if spec.tokenizer_id != source.spec.tokenizer_id else None
        if name not in there:
            left.append(f"{name} (not there)")
        elif name == "item.ids.weight" and there[name].shape[1:] == weight.shape[1:]:
            taken[name], missing = _of_ads(
                weight, there[name], ads=here["item.ad_ids"], old=there["item.ad_ids"]
            )
            left += [f"{name} ({missing} ads are not there)"] if missing else []
        elif name == "item.text.weight" and spec.tokenizer_id != source.spec.tokenizer_id:
            left.append(f"{name} (vectors of another tokenizer)")
        elif level is not None and (alignment is None or alignment.aligned_to != source.spec.tokenizer_id):
            left.append(f"{name} (codes of another tokenizer)")
        elif level is not None and there[name].shape[1:] == weight.shape[1:]:
            old = alignment.sources[level] if alignment else np.empty(0, np.int64)
            taken[name] = _aligned(weight, there[name], old=old, first=_first_code(name))
            if missing := len(weight) - _first_code(name) - int((old != NONE).sum()):
                left.append(f"{name} ({missing} codes go on from none)")
        elif there[name].shape != weight.shape:
            left.append(f"{name} ({_size(there[name])} there, {_size(weight)} here)")
        elif _has_other_categories(name, spec, source.spec):
            left.append(f"{name} (other categories)")
        else:
            taken[name] = there[name]
    if not taken:
        raise CheckpointError(f"training.warm_start: expected weights that fit, got none: {', '.join(left)}")
    model.load_state_dict(here | taken)
    return left


def _level_of(name: str, spec: ModelSpec) -> int | None:
    """Level, from 0, whose codes the rows of a weight belong to; None where they are no codes of a SID."""
    part, *rest = _within(name).split(".")
    if part == "codes":
        return int(rest[1])
    # The last head is that of the value level; with tied embeddings it is the only one.
    value_head = 0 if spec.model.tie_embeddings else len(spec.level_sizes)
    return int(rest[0]) if part == "heads" and int(rest[0]) != value_head else None


def _within(name: str) -> str:
    """Name of a weight within the part that has tables of its own, copy path or item level."""
    return name.removeprefix("copy_path.").removeprefix("item.")


def _first_code(name: str) -> int:
    """Row of code 0: row 0 of a table of embeddings is padding."""
    return 1 if _within(name).startswith("codes.") else 0


def _aligned(here: torch.Tensor, there: torch.Tensor, *, old: np.ndarray, first: int) -> torch.Tensor:
    """Rows of the new codes, [first + K, ..], each that of its old code; of one with none as it is."""
    rows, codes = here.clone(), np.flatnonzero(old != NONE)
    rows[:first] = there[:first]
    rows[first + codes] = there[first + old[codes]]
    return rows


def _of_ads(
    here: torch.Tensor, there: torch.Tensor, *, ads: torch.Tensor, old: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Rows of ads [A, ..], each that of the same ad where it is there; and how many are not."""
    place = torch.searchsorted(old, ads).clamp(max=len(old) - 1)
    same = old[place] == ads
    return torch.where(same[:, None], there[place], here), int((~same).sum())


def _has_other_categories(name: str, spec: ModelSpec, source: ModelSpec) -> bool:
    name = _within(name)
    if not name.startswith("context.profile."):
        return False
    column = int(name.split(".")[2])
    return list(spec.profile_columns.items())[column] != list(source.profile_columns.items())[column]


def _size(weight: torch.Tensor) -> str:
    return "x".join(map(str, weight.shape))
