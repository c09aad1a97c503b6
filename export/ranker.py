"""What becomes the ranking stage of a bundle: a reward model of the run, or the item level of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.item_ranker import check_item_ranker, write_item_ranker
from export.reward_ranker import check_reward_ranker, load_reward_model, write_reward_ranker
from serving.model.manifest import Manifest, RankerKind
from training.loop.checkpoint import Checkpoint
from training.model.gr4ad import Generator
from training.model.item_graph import item_of
from training.reward.reward_model import RewardModel

RankedBy = RewardModel | Generator
"""A generator ranks by its item level."""


def load_ranker(kind: RankerKind, run: Path, checkpoint: Checkpoint) -> RankedBy:
    """What ranks beside a model that is to be exported.

    Args:
        kind: of the ranker.
        run: run folder.
        checkpoint: the model.

    Raises:
        RewardError, CatalogueError, OSError: see `load_reward_model`.
        ValueError: the model has no item level.
    """
    if kind == "reward":
        return load_reward_model(run, checkpoint.spec)
    item_of(checkpoint.model)
    return checkpoint.model


def write_ranker(ranker: RankedBy, bundle: Path) -> dict[str, Any]:
    """Write graph and tables into the folder of a bundle; returns what its manifest says of them.

    Raises:
        ValueError: it has no ONNX form, or no item level.
        OSError: the disk is full or not writable.
    """
    if isinstance(ranker, RewardModel):
        return write_reward_ranker(ranker, bundle)
    return write_item_ranker(ranker, bundle)


def check_ranker(ranker: RankedBy, bundle: Path, manifest: Manifest, *, seed: int = 0) -> float:
    """Largest error of a bundle's ranking stage over random requests.

    Raises:
        ParityError: it is too large, or is not a number.
        BundleError: the bundle's ranker cannot be used.
    """
    if isinstance(ranker, RewardModel):
        return check_reward_ranker(ranker, bundle, manifest, seed=seed)
    return check_item_ranker(ranker, bundle, manifest, seed=seed)
