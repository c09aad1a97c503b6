"""Train a generator on logs (VSL).

python -m training.recipes.pretrain --config configs/demo.yaml --run build/demo

It goes on from the last checkpoint in RUN/model, also on newer logs, and says what has changed since. Under
`torchrun --nproc_per_node=N -m -- training.recipes.pretrain ...` (without `--`, torchrun takes --run for its
own) the same global batches are split over the processes, so the run is the same up to the order of
additions.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from training.loop.checkpoint import Checkpoint
from training.loop.device import Device
from training.loop.trainer import Trainer
from training.preset.preset import Preset
from training.recipes import progress
from training.recipes.command import errors_end_the_command, parse_arguments, tell, use_device
from training.recipes.folder import PRE_TRAINING, open_own
from training.recipes.requests import LoggedRequests, vsl_of
from training.recipes.warm_start import open_source, take_weights
from training.run import RunData, SpecError

FOLDER, SECTION = "model", "training"


def prepare_training(
    preset: Preset, run: Path, *, folder: Path, device: Device, fresh: bool = False
) -> Trainer | None:
    """A trainer that stands where the last checkpoint in `folder` was, or at the start of a new model.

    None where the run is at its end, and nothing has changed since.

    Raises:
        CheckpointError: the checkpoint is not readable.
        SpecError: the run is at its end, or its model does not go on, with what there is now; or the folder
            is of another run, see `open_own`.
        ValueError: data, preset and model do not fit each other, or there is nothing to train on.
    """
    config, settings = preset.training, preset.training.model_dump(mode="json")
    found = open_own(folder, kind=PRE_TRAINING, fresh=fresh)
    inputs = progress.inputs_of(preset, run)
    changed = progress.changed_since(found, SECTION, settings=settings, inputs=inputs) if found else []
    if found and progress.is_at_end(
        found, config, folder=folder, section=SECTION, changed=changed, device=device
    ):
        return None
    data = RunData.load(run)
    start = _found(found, data, preset=preset) if found else _begun(data, preset, device=device)
    if found and found.step >= config.steps:
        raise progress.stale(folder, found, section=SECTION, changed=changed)
    dataset = data.dataset(start.spec)
    source = LoggedRequests(dataset, start.spec, preset=preset, config=config, device=device)
    seen = dataset.seen_sids(start.spec.level_sizes)
    if found:
        tell(found, config.steps, changed=changed, device=device)
        seen = np.union1d(seen if found.seen_sids is None else found.seen_sids, seen)
    start = replace(start, settings=settings, inputs=inputs, seen_sids=seen)
    if progress.weighty(changed, SECTION):  # what came before says nothing of what will come
        start = replace(start, first_record=len(start.history))
    if device.rank == 0:
        parameters = sum(p.numel() for p in start.model.parameters())
        print(
            f"{parameters / 1e6:.2f} M parameters, {len(source.groups):,} training requests, "
            f"{config.steps} steps of {config.batch_size}"
        )
        for warning in preset.warnings():
            print(f"warning: {warning}", file=sys.stderr)
    objective = vsl_of(config, start.spec)
    return Trainer(start, objective, source, config=config, device=device, folder=folder)


def _found(found: Checkpoint, data: RunData, *, preset: Preset) -> Checkpoint:
    """A checkpoint with what its model is from now on."""
    warm_start = preset.training.warm_start
    if warm_start not in (None, found.settings.get("warm_start")):
        raise SpecError(
            f"training.warm_start {warm_start}: expected a new model, this one stands at step {found.step}; "
            "take the key away, or start over with --fresh"
        )
    spec = data.go_on(found.spec, preset)
    model = spec.empty()
    model.load_state_dict(found.model.state_dict())
    return replace(found, spec=spec, model=model)


def _begun(data: RunData, preset: Preset, *, device: Device) -> Checkpoint:
    """A new model, with weights of another one where the preset names it."""
    spec = data.fit_spec(preset)
    torch.manual_seed(preset.training.seed)
    model = spec.build()
    if model.item is not None:
        model.item.know(data.known_ads(spec))
    if preset.training.warm_start:
        path = Path(preset.training.warm_start)
        left = take_weights(model, spec, source=open_source(path), alignment=data.alignment)
        if device.rank == 0:
            print(f"{path}: weights taken" + (f", but for {', '.join(left)}" if left else ", all of them"))
    return Checkpoint(model=model, spec=spec, settings={})


def main() -> None:
    """Command line."""
    with errors_end_the_command():
        arguments = parse_arguments(__doc__, out=FOLDER)
        preset = Preset.load(arguments.config, arguments.overrides)
        folder = arguments.out or arguments.run / FOLDER
        with use_device(preset.training) as device:
            trainer = prepare_training(
                preset, arguments.run, folder=folder, device=device, fresh=arguments.fresh
            )
            if trainer is None:
                return
            trainer.run()
            if device.rank == 0:
                loss = trainer.history[-1]["validation_sid"]
                how = "stopped early" if trainer.exhausted else "done"
                print(f"{how}: validation loss of the SID {loss:.4f}; curves in {folder}/training.png")


if __name__ == "__main__":
    main()
