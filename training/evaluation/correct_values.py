"""Correct the expected value of a trained model: `make correct-values`.

python -m training.evaluation.correct_values --config configs/demo.yaml --run build/demo

What is added to an expected value is fitted on requests of the training weeks and kept in the checkpoint;
the next export takes it into the bundle. Weights stay as they are. The evaluation says what is left of the
error on weeks that nothing was fitted on. Where a log has too few targets nothing is corrected, with a
warning.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from training.evaluation.calibration import TooFewTargetsError, fit_correction, target_values
from training.loop.checkpoint import CheckpointError, load_checkpoint, replace_spec
from training.loop.choice import add_checkpoint_arguments, chosen_checkpoint
from training.preset.preset import Preset, add_preset_arguments
from training.rollout.executor import TorchExecutor
from training.run import RunData


def correct(preset: Preset, run: Path, *, checkpoint: Path, requests: int) -> str:
    """Fit the correction of a checkpoint on training requests, write it, and say what it adds.

    Args:
        preset: section `training` says which requests.
        run: run folder.
        checkpoint: its folder.
        requests: how many are drawn (seeded).

    Raises:
        TooFewTargetsError: there is too little to fit on; the checkpoint stays as it was.
        CheckpointError, ValueError, OSError: something is missing, or does not fit.
    """
    loaded, data = load_checkpoint(checkpoint), RunData.load(run)
    spec = loaded.spec
    data.check_tokenizer(spec)
    dataset = data.dataset(spec)
    groups = dataset.groups(
        "train",
        target_behaviors=preset.logs.target_behaviors,
        min_history=preset.training.min_history,
        recent_weeks=preset.training.recent_weeks,
    )
    drawn = np.random.default_rng(preset.evaluation.seed).permutation(len(groups))[:requests]
    values = target_values(
        TorchExecutor(loaded.model.eval()),
        dataset,
        groups=groups,
        rows=np.sort(drawn),
        value_table=spec.value_buckets.means,
        batch_size=preset.evaluation.batch_size,
    )
    correction = fit_correction(values)
    replace_spec(checkpoint, replace(spec, value_correction=correction))
    added = ", ".join(f"{at:.2f} {add:+.2f}" for at, add in correction.points)
    return f"{checkpoint}: expected values corrected by {len(values.realised):,} targets: {added}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser)
    add_checkpoint_arguments(parser)
    parser.add_argument("--requests", type=int, default=4000, help="training requests drawn [4000]")
    arguments = parser.parse_args()
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
        torch.set_num_threads(preset.training.threads)
        path = chosen_checkpoint(arguments)
        print(correct(preset, arguments.run, checkpoint=path, requests=arguments.requests))
    except TooFewTargetsError as error:
        print(f"warning: {error}; nothing is corrected", file=sys.stderr)
    except (CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
