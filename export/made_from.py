"""What a bundle is made from, so that an export whose bundle is there already makes no second one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.reward_ranker import REWARD
from serving.inputs import RECORD, Inputs, named
from serving.model.bundle import versions
from serving.model.manifest import RankerKind
from training.loop.checkpoint import CONTENT, MODEL
from training.loop.retention import find_checkpoint
from training.preset.precision import Precision
from training.preset.preset import Preset
from training.recipes.fine_tune_fp8 import FOLDER as FINE_TUNED
from training.reward.reward_model import MODEL as REWARD_MODEL
from training.tokenizer.storage import MANIFEST

EVALUATION = "evaluation.json"


def made_from(
    run: Path,
    trained: Path,
    *,
    preset: Preset,
    precision: Precision,
    fine_tuned: bool,
    ranker: RankerKind | None,
    version: int,
) -> Inputs:
    """Inputs of a bundle.

    Args:
        run: run folder.
        trained: folder of the checkpoint.
        preset: sections `precision` and `serving` say what a precision below FP32 must pass.
        precision: of the graphs.
        fine_tuned: whether they are those of the fine-tuned model.
        ranker: kind of its ranking stage; None for a bundle without one.
        version: of the bundle, or of the newest one where it is asked whether that will do.

    Raises:
        CheckpointError: there is no fine-tuned model.
        OSError: something cannot be read.
    """
    values: dict[str, Any] = {"bundle": version, "precision": precision, "fine_tuned": fine_tuned}
    files = {
        "weights": trained / MODEL,
        "checkpoint": trained / CONTENT,
        "tokenizer": run / "tokenizer" / MANIFEST,
        "evaluation": trained.parents[1] / EVALUATION,  # beside checkpoints/ of its model
    }
    if precision != "fp32":
        values |= named("precision", preset.precision.model_dump(mode="json"))
        values |= {f"serving.{key}": getattr(preset.serving, key) for key in ("widths", "normalise")}
        files |= {f"data/{name}": run / "data" / name for name in ("events.parquet", "users.parquet")}
    if fine_tuned:
        files["fine-tuned weights"] = find_checkpoint(run / FINE_TUNED) / MODEL
    if ranker:  # which else is not named: bundles of before have none
        values["ranker"] = ranker
    if ranker == "reward":
        files["reward model"] = run / REWARD / REWARD_MODEL
    there = {name: path for name, path in files.items() if path.is_file()}  # the export says what it misses
    return Inputs.now(values, files=there, before=Inputs.load(run / "bundles" / RECORD))


def newest(bundles: Path) -> int:
    """Version of the newest bundle; 0 where there is none."""
    return max(versions(bundles), default=0)
