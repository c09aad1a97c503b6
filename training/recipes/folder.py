"""Whether a run can keep its checkpoints in a folder: there are none, or those of the same run.

A folder is named by hand (`--out`) and may hold another run, or one that began from other weights. Neither is
started over unless `--fresh` says so, and a pre-trained model is not even then: others are made from it.
"""

from __future__ import annotations

from pathlib import Path

from training.loop.checkpoint import Checkpoint, read_origin
from training.loop.retention import check_own, find_checkpoint, has_checkpoint, open_checkpoint
from training.run import SpecError

PRE_TRAINING, FP8, ONLINE = "pre-training", "fine-tuning for FP8", "learning online"


def post_training(objective: str) -> str:
    """How a run of that objective is called."""
    return f"post-training with {objective}"


def open_own(
    folder: Path, *, kind: str, trained: Path | None = None, source: str | None = None, fresh: bool = False
) -> Checkpoint | None:
    """The run to go on with; None for one that begins.

    Args:
        folder: of its checkpoints.
        kind: of the run: `PRE_TRAINING`, `FP8`, `ONLINE` or `post_training`.
        trained: folder of the checkpoint that it starts from; None for pre-training.
        source: sha256 of the weights of that checkpoint.
        fresh: start over, where that is allowed.

    Raises:
        CheckpointError: a checkpoint is not readable, or there is something else among them.
        SpecError: the folder is that of the model it starts from or of another pre-trained one; or of another
            run, or of one that began from other weights, and it is not to start over.
    """
    check_own(folder)
    same = trained is not None and folder.resolve() == trained.parents[1].resolve()
    there = find_checkpoint(folder) if has_checkpoint(folder) else None
    if there is None and not same:
        return None
    began, objective, online = read_origin(there) if there else (None, None, False)
    others = ONLINE if online else post_training(objective) if objective else FP8
    got = PRE_TRAINING if began is None else others
    if kind != PRE_TRAINING and (same or got == PRE_TRAINING):
        what = "the one that this run starts from" if same else "that of a pre-trained model"
        raise SpecError(
            f"{folder}: expected a folder for the checkpoints of this run alone, got {what}; give another "
            "--out"
        )
    if fresh:
        return None
    if got != kind:
        raise SpecError(
            f"{folder}: expected a run of {kind}, got one of {got}; give another --out, or start over with "
            "--fresh"
        )
    if began != source:
        raise SpecError(
            f"{folder}: expected a run that began from the weights {_short(source)} of {trained}, got one "
            f"that began from {_short(began)}; start over with --fresh, or give another --out"
        )
    return open_checkpoint(folder)


def _short(digest: str | None) -> str:
    return (digest or "none")[:8]
