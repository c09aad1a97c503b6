"""Which checkpoints of a run are kept, and how they are found: `<folder>/checkpoints/step-000400`.

A step's folder is there whole or not at all, so the latest is the one of the highest step, and the best is
told by the validation figures that each one carries: no pointer that could name another one.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from serving.files import new_folder, undo_interrupted
from training.loop.checkpoint import CONTENT, Checkpoint, CheckpointError, load_checkpoint, write_checkpoint

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{6,})")


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int, fresh: bool = False) -> Path:
    """Add a checkpoint, then drop those that are neither among the last `keep` nor the best.

    Args:
        folder: of the model.
        checkpoint: of a step that was not saved yet.
        keep: how many of the last ones stay.
        fresh: it is the first of a new run; those of an older run go at the moment that it is there.

    Returns:
        Where it is.

    Raises:
        NonFiniteError: a weight is not finite; everything is as it was.
        OSError: the disk is full or not writable; everything is as it was.
    """
    root = folder / FOLDER
    name = f"step-{checkpoint.step:06d}"
    if fresh:
        with new_folder(root, replace=True) as new:
            write_checkpoint(new / name, checkpoint)
    else:
        with new_folder(root / name) as new:
            write_checkpoint(new, checkpoint)
    _drop(folder, keep=keep)
    return root / name


def find_checkpoint(folder: Path, which: str = "latest") -> Path:
    """Where a checkpoint is.

    Args:
        folder: of the model.
        which: `latest`, `best` (the lowest total loss on the validation requests of the latest), or a name:
            `step-000400`.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    found = _folders(folder)
    if which == "latest":
        path = found[-1] if found else None
    elif which == "best":
        path = _best(found)
    else:
        path = next((path for path in found if path.name == which), None)
    if path is None:
        names = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(f"{folder / FOLDER}: expected a checkpoint ({which}), found {names}")
    return path


def check_own(folder: Path) -> None:
    """Whether there is nothing but checkpoints where those of a run go: a first one replaces all of it.

    Raises:
        CheckpointError: there is something else.
    """
    root = folder / FOLDER
    names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    other = [name for name in names if not (_NAME.fullmatch(name) or name.startswith("."))]
    if other:
        raise CheckpointError(
            f"{root}: expected checkpoints alone (step-000400), got {', '.join(other[:3])} in it; give "
            "another --out"
        )


def has_checkpoint(folder: Path) -> bool:
    """Whether there is any."""
    return bool(_folders(folder))


def open_checkpoint(folder: Path, which: str = "latest") -> Checkpoint:
    """Find and read a checkpoint; see `find_checkpoint`.

    Raises:
        CheckpointError: missing, corrupted, or of another format.
    """
    return load_checkpoint(find_checkpoint(folder, which))


def _folders(folder: Path) -> list[Path]:
    root = folder / FOLDER
    undo_interrupted(root)
    names = [name.name for name in root.iterdir()] if root.is_dir() else []
    steps = sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
    return [root / f"step-{step:06d}" for step in steps]


def _best(found: list[Path]) -> Path | None:
    """Among those validated on the same requests as the latest one."""
    losses: dict[Path, float] = {}
    held_out = None
    for path in reversed(found):
        judged = _judged(path)
        if judged and held_out in (None, judged[0]):
            held_out, losses[path] = judged
    return min(losses, key=losses.__getitem__, default=None)


def _judged(path: Path) -> tuple[str, float] | None:
    """On which requests, and their loss; None if saved between two validations, or not readable."""
    try:
        content = json.loads((path / CONTENT).read_text())
        last = content["history"][-1]
        if last["step"] != content["step"]:
            return None
        return content["held_out"], float(last["validation_total"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _drop(folder: Path, *, keep: int) -> None:
    found = _folders(folder)
    best = _best(found)
    for path in found[:-keep]:
        if path != best:
            path.rename(path.with_name(f".{path.name}.gone"))  # half of a folder must not look like one
    for leftover in (folder / FOLDER).glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
