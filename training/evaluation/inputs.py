"""What an evaluation is made from, so that one that is there already is not made again."""

from __future__ import annotations

from pathlib import Path

from serving.inputs import Inputs, named
from training.loop.checkpoint import CONTENT, MODEL
from training.preset.preset import Preset
from training.rollout.audiences import settings_of

_FILES = ("ads.parquet", "users.parquet", "events.parquet", "split.json")


def inputs_of(preset: Preset, run: Path, *, checkpoint: Path, before: Inputs | None) -> Inputs:
    """Inputs of a report on a checkpoint.

    Args:
        preset: section `evaluation`, and what says which requests there are, and which ads they may see.
        run: run folder.
        checkpoint: its folder.
        before: record of the last evaluation.

    Raises:
        OSError: a file is missing.
    """
    files = {f"data/{name}": run / "data" / name for name in _FILES}
    files |= {"sids": run / "tokenizer" / "sids.parquet", "weights": checkpoint / MODEL}
    files["checkpoint"] = checkpoint / CONTENT  # with the correction of expected values
    values = {
        **named("evaluation", preset.evaluation.model_dump(mode="json")),
        "checkpoint": checkpoint.name,
        "training.min_history": preset.training.min_history,
        "data.target_behaviors": preset.logs.target_behaviors,
        **settings_of(preset.serving),
    }
    return Inputs.now(values, files=files, before=before)
