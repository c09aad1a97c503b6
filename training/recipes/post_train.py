"""Teach a trained generator what its own candidates are worth (RSPO, UVR, DPO, GRPO).

python -m training.recipes.post_train --config configs/demo.yaml --run build/demo

It starts from the last checkpoint in RUN/model, and learns from the lists of candidates that a roll-out of
those weights made and a reward model scored, beside the targets of the same requests. Objective vsl
(`--set post_training.objective=vsl`) learns from the targets alone: the control. What is saved is an ordinary
checkpoint in RUN/model/post_trained/<objective>. Resuming, torchrun: as in `training.recipes.pretrain`.
"""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.inputs import named
from training.loop.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from training.loop.device import Device
from training.loop.retention import find_checkpoint
from training.loop.trainer import Trainer
from training.model.gr4ad import Generator
from training.objectives.balance import Balanced, measure_balance
from training.objectives.base import Objective
from training.objectives.dpo import Dpo
from training.objectives.grpo import Grpo
from training.objectives.joint import Joint, ListObjective, TwoTerms
from training.objectives.list_scores import RewardScale
from training.objectives.rspo import Rspo
from training.objectives.uvr import Uvr
from training.objectives.vsl import Vsl
from training.preset.loop import LoopConfig
from training.preset.preset import Preset
from training.preset.recipes import PostTrainConfig, TrainingConfig
from training.recipes import pretrain, progress
from training.recipes.command import errors_end_the_command, parse_arguments, tell, use_device
from training.recipes.folder import open_own, post_training
from training.recipes.listed_requests import ListedRequests, ListsOfParts
from training.recipes.requests import vsl_of
from training.run import RunData

SECTION = "post_training"
FOLDER = f"{pretrain.FOLDER}/post_trained"


def prepare_post_training(
    preset: Preset, run: Path, *, folder: Path, device: Device, fresh: bool = False
) -> Trainer | None:
    """A trainer whose model stands where the last checkpoint in `folder` was, or is the trained one.

    None where the run is at its end, and nothing has changed since.

    Raises:
        CheckpointError: there is no trained model.
        ListStoreError: lists or their rewards are missing, damaged, or not of the trained model.
        SpecError: the run is at its end, with other settings or data than there are now, or the folder is of
            another run, see `open_own`.
        ValueError: data and model do not fit each other, or the lists teach nothing.
    """
    config, trained = preset.post_training, find_checkpoint(run / pretrain.FOLDER)
    source, settings = weights_sha256(trained), config.model_dump(mode="json")
    kind = post_training(config.objective)
    found = open_own(folder, kind=kind, trained=trained, source=source, fresh=fresh)
    lists = ListsOfParts.open(run, config)
    inputs = progress.inputs_of(preset, run, more_files=lists.files(run)) | _of_targets(preset.training)
    changed = progress.to_do(found, config, folder=folder, section=SECTION, inputs=inputs, device=device)
    if changed is None:
        return None
    original = load_checkpoint(trained)
    lists.check(original.spec, source)
    data = RunData.load(run)
    data.check_tokenizer(original.spec)
    dataset = data.dataset(original.spec)

    def requests(share: Device) -> ListedRequests:
        return ListedRequests(dataset, original.spec, lists=lists, preset=preset, device=share)

    start = found or Checkpoint(
        model=original.model, spec=original.spec, settings={}, seen_sids=original.seen_sids, source=source
    )
    if found:
        tell(found, config.steps, changed=changed, device=device)
    vsl = vsl_of(preset.training, original.spec)
    objective: Objective = vsl
    balance = start.balance
    if config.objective != "vsl":
        terms = two_terms(config, vsl)
        if balance is None:  # of lists alone, too: those that teach nothing are found before the first step
            # Whole batches in every process, so that all of them measure the same.
            whole = requests(replace(device, rank=0, world=1))
            balance = _measured(start.model, terms, whole, config=config, device=device)
        objective = Balanced(terms, _list_weight(config, balance), supervised=config.supervised)
    start = replace(start, settings=settings, inputs=inputs, balance=balance)
    return Trainer(start, objective, requests(device), config=config, device=device, folder=folder)


def two_terms(config: PostTrainConfig, vsl: Vsl) -> TwoTerms:
    """The losses of an objective other than vsl, of targets and of lists."""
    scale = RewardScale(by=config.reward_scale, top=config.reward_top)
    rspo = Rspo(beta=config.beta, delta=config.delta, sibling_weight=config.sibling_weight)
    if config.objective == "uvr":
        return Uvr(vsl, rspo, scale)
    if config.objective == "rspo":
        return Joint(vsl, rspo, scale)
    of_lists: dict[str, ListObjective] = {
        "dpo": Dpo(beta=config.beta, sibling_weight=config.sibling_weight),
        "grpo": Grpo(epsilon=config.epsilon, kl_weight=config.kl_weight),
    }
    # The order of rewards, and their z-scores, are those of the rewards themselves.
    return Joint(vsl, of_lists[config.objective], RewardScale())


def _measured(
    model: Generator, terms: TwoTerms, requests: ListedRequests, *, config: PostTrainConfig, device: Device
) -> float:
    with closing(requests.batches(0)) as batches:
        first = [device.put(batch) for batch in itertools.islice(batches, config.balance_batches)]
    balance = measure_balance(model.to(device.device), terms, first)
    if device.rank == 0:
        print(
            f"lambda = |g_VSL| / |g_RL| = {balance:.4g} over {len(first)} batches; lists weigh "
            f"{_list_weight(config, balance):.4g}"
        )
    return balance


def _list_weight(config: PostTrainConfig, balance: float) -> float:
    """Of a list beside a target of weight 1; lists alone have nothing to be balanced with."""
    return config.strength * balance if config.supervised else config.strength


def _of_targets(training: TrainingConfig) -> dict[str, Any]:
    """Settings of section `training` that say which targets are learned from, and how."""
    own = training.model_dump(mode="json", exclude={"warm_start", *LoopConfig.model_fields})
    return named("training", own)


def main() -> None:
    """Command line."""
    with errors_end_the_command():
        arguments = parse_arguments(__doc__, out=f"{FOLDER}/OBJECTIVE")
        preset = Preset.load(arguments.config, arguments.overrides)
        folder = arguments.out or arguments.run / FOLDER / preset.post_training.objective
        with use_device(preset.post_training) as device:
            trainer = prepare_post_training(
                preset, arguments.run, folder=folder, device=device, fresh=arguments.fresh
            )
            if trainer is None:
                return
            if not trainer.step:
                trainer.record()
            trainer.run()
            if device.rank == 0:
                print(_summary(trainer, folder))


def _summary(trainer: Trainer, folder: Path) -> str:
    first, last = trainer.history[0], trainer.history[-1]
    drift = f", log p / p_ref {last['train_drift']:+.3f}" if "train_drift" in last else ""
    return (
        f"{folder}: validation loss of the SID {first['validation_sid']:.4f} -> {last['validation_sid']:.4f}"
        f"{drift}; curves in {folder}/training.png"
    )


if __name__ == "__main__":
    main()
