"""What candidate lists are made from, so that those that are there already are not made again."""

from __future__ import annotations

from pathlib import Path

from serving.inputs import Inputs, named
from training.data.list_about import FORMAT
from training.data.parts import TRAIN
from training.data.split import PARTS
from training.loop.checkpoint import MODEL
from training.preset.preset import Preset
from training.preset.rollout import RolloutConfig
from training.rollout import audiences

_FILES = ("ads.parquet", "users.parquet", "events.parquet", "split.json")


def inputs_of(preset: Preset, run: Path, *, part: str, checkpoint: Path, before: Inputs | None) -> Inputs:
    """Inputs of the lists of a part.

    Args:
        preset: section `rollout`, and what says which requests there are, and which ads they may see.
        run: run folder.
        part: train, validation or test.
        checkpoint: folder of the model that searches.
        before: record of the last roll-out.

    Raises:
        OSError: a file is missing.
    """
    files = {f"data/{name}": run / "data" / name for name in _FILES}
    files |= {"sids": run / "tokenizer" / "sids.parquet", "weights": checkpoint / MODEL}
    settings = settings_of(preset, part=part)
    how_it_runs = {"batch_size"}  # another one gives the same lists
    values = {
        **named("rollout", settings.model_dump(mode="json", exclude=how_it_runs)),
        "part": part,
        "format": FORMAT,
        "training.min_history": preset.training.min_history,
        "data.target_behaviors": preset.logs.target_behaviors,
        **audiences.settings_of(preset.serving),
    }
    return Inputs.now(values, files=files, before=before)


def settings_of(preset: Preset, *, part: str) -> RolloutConfig:
    """Section `rollout` with what it leaves to other sections."""
    config = preset.rollout
    widths = config.widths or preset.evaluation.widths
    weeks = (config.recent_weeks or preset.training.recent_weeks) if part == PARTS[TRAIN] else None
    return config.model_copy(update={"widths": widths, "recent_weeks": weeks})
