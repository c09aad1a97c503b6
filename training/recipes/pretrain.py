"""Train a generator on logs (VSL).

python -m training.recipes.pretrain --config configs/demo.yaml --run build/demo

It goes on from the last checkpoint in RUN/model, also on newer logs. Under
`torchrun --nproc_per_node=N -m -- training.recipes.pretrain ...` (without `--`, torchrun takes --run for its
own) the same global batches are split over the processes, so the run is the same up to the order of
additions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from training.loop.checkpoint import Checkpoint
from training.loop.device import Device
from training.loop.retention import has_checkpoint, open_checkpoint
from training.loop.trainer import Trainer
from training.objectives.vsl import Vsl
from training.preset.preset import Preset
from training.recipes.command import errors_end_the_command, parse_arguments, tell, use_device
from training.recipes.requests import LoggedRequests
from training.run import RunData

FOLDER = "model"


def prepare_training(
    preset: Preset, run: Path, *, folder: Path, device: Device, fresh: bool = False
) -> Trainer:
    """A trainer that stands where the last checkpoint in `folder` was, or at the start of a new model.

    Raises:
        CheckpointError: the checkpoint is not readable.
        ValueError: data, preset and model do not fit each other, or there is nothing to train on.
    """
    config, data = preset.training, RunData.load(run)
    found = open_checkpoint(folder) if not fresh and has_checkpoint(folder) else None
    if found:
        data.check_spec(found.spec, preset)
    spec = found.spec if found else data.fit_spec(preset)
    dataset = data.dataset(spec)
    source = LoggedRequests(dataset, spec, preset=preset, config=config, device=device)
    settings, seen = config.model_dump(mode="json"), dataset.seen_sids(spec.level_sizes)
    if found:
        tell(found, settings, device=device)
        before = seen if found.seen_sids is None else found.seen_sids
        start = replace(found, settings=settings, seen_sids=np.union1d(before, seen))
    else:
        torch.manual_seed(config.seed)
        start = Checkpoint(model=spec.build(), spec=spec, settings=settings, seen_sids=seen)
    if device.rank == 0:
        parameters = sum(p.numel() for p in start.model.parameters())
        print(
            f"{parameters / 1e6:.2f} M parameters, {len(source.groups):,} training requests, "
            f"{config.steps} steps of {config.batch_size}"
        )
    objective = Vsl(lambda_value=config.lambda_value, lambda_mtp=config.lambda_mtp)
    return Trainer(start, objective, source, config=config, device=device, folder=folder)


def main() -> None:
    """Command line."""
    with errors_end_the_command():
        arguments = parse_arguments(__doc__, out=FOLDER)
        preset = Preset.load(arguments.config, arguments.overrides)
        with use_device(preset.training) as device:
            trainer = prepare_training(
                preset, arguments.run, folder=arguments.out, device=device, fresh=arguments.fresh
            )
            trainer.run()
            if device.rank == 0 and trainer.history:
                loss = trainer.history[-1]["validation_sid"]
                print(f"done: validation loss of the SID {loss:.4f}; curves in {arguments.out}/training.png")


if __name__ == "__main__":
    main()
