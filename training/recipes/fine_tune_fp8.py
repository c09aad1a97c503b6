"""Fine-tune a trained model for FP8.

python -m training.recipes.fine_tune_fp8 --config configs/demo.yaml --run build/demo

The products of a copy run in emulated FP8 (nvidia-modelopt) while it learns to give the probabilities of the
original, at the targets of training requests and at SIDs drawn from the catalogue. What is saved is an
ordinary checkpoint in FP32; `python -m export --precision fp8 --fine-tuned` quantizes it. Resuming, torchrun:
as in `training.recipes.pretrain`.
"""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from training.loop.checkpoint import Checkpoint, CheckpointError, load_checkpoint, weights_sha256
from training.loop.device import Device
from training.loop.patience import is_exhausted
from training.loop.retention import find_checkpoint, open_checkpoint
from training.loop.trainer import Trainer
from training.model.fp8 import quantized_copy, share_weights
from training.model.gr4ad import Generator
from training.objectives.distill import Distill
from training.preset.preset import Preset
from training.recipes import pretrain, progress
from training.recipes.command import errors_end_the_command, parse_arguments, tell, use_device
from training.recipes.folder import FP8, open_own
from training.recipes.requests import CatalogueRequests
from training.run import RunData

SECTION = "fine_tune_fp8"
FOLDER = f"{pretrain.FOLDER}/fine_tuned_fp8"


def prepare_fine_tuning(
    preset: Preset, run: Path, *, folder: Path, device: Device, fresh: bool = False
) -> Trainer | None:
    """A trainer whose model stands where the last checkpoint in `folder` was, or is the quantized original.

    None where the run is at its end, and nothing has changed since.

    Raises:
        CheckpointError: there is no trained model.
        MissingPackageError: modelopt is not installed.
        SpecError: the run is at its end, with other settings or data than there are now, or the folder is of
            another run, see `open_own`.
        ValueError: data and model do not fit each other.
    """
    config, trained = preset.fine_tune_fp8, find_checkpoint(run / pretrain.FOLDER)
    source = weights_sha256(trained)
    found = open_own(folder, kind=FP8, trained=trained, source=source, fresh=fresh)
    original = load_checkpoint(trained)
    settings, inputs = config.model_dump(mode="json"), progress.inputs_of(preset, run)
    changed = progress.to_do(found, config, folder=folder, section=SECTION, inputs=inputs, device=device)
    if changed is None:
        return None
    data = RunData.load(run)
    data.check_tokenizer(original.spec)
    dataset = data.dataset(original.spec)

    def requests(share: Device) -> CatalogueRequests:
        return CatalogueRequests(dataset, original.spec, preset=preset, config=config, device=share)

    start = Checkpoint(
        model=original.spec.build(),
        spec=original.spec,
        settings=settings,
        inputs=inputs,
        seen_sids=original.seen_sids,
        source=source,
    )
    if found:
        tell(found, config.steps, changed=changed, device=device)
        start = replace(found, model=start.model, settings=settings, inputs=inputs)
    teacher = original.model.to(device.device).eval()
    # Whole batches in every process, so that all of them measure the same ranges.
    with closing(requests(replace(device, rank=0, world=1)).batches(0)) as batches:
        calibration = [device.put(b) for b in itertools.islice(batches, config.calibration_batches)]
    torch.manual_seed(config.seed)
    student = quantized_copy(teacher, [(b.slots, b.profile, b.tokens) for b in calibration])
    share_weights(start.model, student)
    if found:
        start.model.load_state_dict(found.model.state_dict())
    return Trainer(
        start, Distill(teacher), requests(device), config=config, device=device, folder=folder, model=student
    )


def load_fine_tuned(run: Path, trained: Path) -> Generator:
    """The model that was fine-tuned from a checkpoint of this run.

    Args:
        run: run folder.
        trained: folder of the checkpoint.

    Raises:
        CheckpointError: there is none, it was made from other weights, or is not finished.
    """
    tuned = open_checkpoint(run / FOLDER)
    if tuned.source != weights_sha256(trained):
        fault = f"expected a model fine-tuned from {trained} as it is now, it was made from other weights"
    elif tuned.step < tuned.settings["steps"] and not is_exhausted(
        tuned.history, patience=tuned.settings.get("patience"), first=tuned.first_record
    ):
        fault = f"expected a finished model, it stopped at step {tuned.step} of {tuned.settings['steps']}"
    else:
        return tuned.model
    raise CheckpointError(f"{run / FOLDER}: {fault}; run `make fine-tune-fp8` again")


def main() -> None:
    """Command line."""
    with errors_end_the_command():
        arguments = parse_arguments(__doc__, out=FOLDER)
        preset = Preset.load(arguments.config, arguments.overrides)
        folder = arguments.out or arguments.run / FOLDER
        with use_device(preset.fine_tune_fp8) as device:
            trainer = prepare_fine_tuning(
                preset, arguments.run, folder=folder, device=device, fresh=arguments.fresh
            )
            if trainer is None:
                return
            if not trainer.step:
                trainer.record()
            trainer.run()
            if device.rank == 0:
                before, after = (trainer.history[i]["validation_total"] for i in (0, -1))
                print(f"{folder}: KL to the FP32 model {before:.5f} -> {after:.5f}")


if __name__ == "__main__":
    main()
