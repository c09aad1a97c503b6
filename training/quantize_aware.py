"""Fine-tune a trained model for FP8: `python -m training.quantize_aware --config ... --run ...`.

The products of a copy run in emulated FP8 (nvidia-modelopt) while it learns to give the probabilities of the
original: L = sum_t KL(p_t || q_t) over levels 1 .. T + 1, at the targets of training requests and at SIDs
drawn from the catalogue, because beams visit more than targets. What is saved is an ordinary checkpoint in
FP32; `python -m export --precision fp8 --fine-tuned` quantizes it.

Letters: B requests, n targets, T SID levels, V codes of a level.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint, weights_sha256
from training.data.log import TargetGroups
from training.data.order import BatchOrder
from training.data.samples import RequestDataset
from training.data.values import ValueBuckets
from training.fp8 import FP8, MissingPackageError, expose_tied_heads, modelopt_quantization
from training.loop.config import TrainingConfig
from training.model.gr4ad import Generator
from training.preset import ConfigError, Preset, add_preset_arguments
from training.recipes.config import FineTuneConfig
from training.run import open_run

FOLDER = "fine_tuned_fp8"

Inputs = tuple[Tensor, Tensor, Tensor]
"""Slots int32 [B, S, T + 3], profile int32 [B, P], tokens int64 [B, n, T]."""


def fine_tune(
    model: Generator,
    dataset: RequestDataset,
    groups: TargetGroups,
    validation: TargetGroups,
    *,
    config: FineTuneConfig,
    training: TrainingConfig,
    buckets: ValueBuckets,
) -> tuple[Generator, dict[str, float]]:
    """A model that answers in FP8 as `model` does in FP32.

    Args:
        model: trained; not changed.
        dataset: requests.
        groups: training requests.
        validation: requests to measure on.
        config: length, learning rate.
        training: how targets are drawn.
        buckets: of values.

    Returns:
        The fine-tuned model in FP32, and the mean KL on validation batches before and after.

    Raises:
        MissingPackageError: modelopt is not installed.
    """
    mtq = modelopt_quantization()
    torch.manual_seed(config.seed)
    teacher = model.eval()
    student = copy.deepcopy(model)
    expose_tied_heads(student)
    batches = _batches(dataset, groups, config=config, training=training, buckets=buckets)

    def warm(quantized: torch.nn.Module) -> None:
        for inputs in itertools.islice(batches, config.calibration_batches):
            quantized(*inputs)

    with torch.no_grad():
        mtq.quantize(student, FP8, forward_loop=warm)
    weights = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    held_out = list(
        itertools.islice(
            _batches(dataset, validation, config=config, training=training, buckets=buckets),
            config.validation_batches,
        )
    )
    before = _mean_divergence(teacher, student, held_out)
    losses = []
    with tqdm(total=config.steps, desc="fine-tune fp8", unit="step", file=sys.stderr, mininterval=2.0) as bar:
        for inputs in itertools.islice(batches, config.steps):
            with torch.no_grad():
                wanted, _ = teacher(*inputs)
            got, _ = student(*inputs)
            loss = divergence(wanted, got)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, training.clip_norm)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            bar.update(1)
            bar.set_postfix(kl=f"{np.mean(losses[-20:]):.5f}")
    plain = copy.deepcopy(model)
    plain.load_state_dict({k: v for k, v in student.state_dict().items() if "_quantizer." not in k})
    return plain, {"kl_before": before, "kl_after": _mean_divergence(teacher, student, held_out)}


def load_fine_tuned(run: Path, checkpoint: Checkpoint) -> Generator:
    """The model that was fine-tuned from RUN/model/checkpoint as it is now.

    Raises:
        CheckpointError: there is none, or it was made from other weights.
    """
    folder = run / "model" / FOLDER
    tuned = load_checkpoint(folder)
    same = tuned.spec.to_json() == checkpoint.spec.to_json()
    source = weights_sha256(run / "model" / "checkpoint")
    if not (same and tuned.history and tuned.history[-1].get("source") == source):
        raise CheckpointError(
            f"{folder}: expected a model fine-tuned from RUN/model/checkpoint as it is now, it was made from "
            f"other "
            "weights; run `make quantize-aware` again"
        )
    return tuned.model


def divergence(wanted: list[Tensor], got: list[Tensor]) -> Tensor:
    """sum_t KL(p_t || q_t), the mean over requests and targets; logits [B, n, V_t] of each level."""
    total = torch.zeros(())
    for p, q in zip(wanted, got, strict=True):
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        total = total + (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return total


@torch.no_grad()
def _mean_divergence(teacher: Generator, student: torch.nn.Module, batches: list[Inputs]) -> float:
    return float(np.mean([float(divergence(teacher(*x)[0], student(*x)[0])) for x in batches]))


def _batches(
    dataset: RequestDataset,
    groups: TargetGroups,
    *,
    config: FineTuneConfig,
    training: TrainingConfig,
    buckets: ValueBuckets,
) -> Iterator[Inputs]:
    counts = np.minimum(dataset.target_counts(groups), training.targets_per_request)
    order = BatchOrder(counts, batch_size=config.batch_size, seed=config.seed)
    random = np.random.default_rng(config.seed)
    for step in itertools.count():
        epoch, rows = order(step)
        batch = dataset.batch(groups, rows, config=training, buckets=buckets, epoch=epoch)
        drawn = dataset.ad_sids[
            random.integers(0, len(dataset.ad_sids), (len(rows), config.catalogue_targets))
        ]
        tokens = np.concatenate([batch.tokens, drawn.astype(np.int64)], axis=1)
        yield torch.from_numpy(batch.slots), torch.from_numpy(batch.profile), torch.from_numpy(tokens)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser)
    parser.add_argument("--run", required=True, type=Path, help="run folder with data/, tokenizer/, model/")
    parser.add_argument("--out", type=Path, help=f"checkpoint to write (default: RUN/model/{FOLDER})")
    arguments = parser.parse_args()
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
        config = preset.fine_tune_fp8
        dataset, spec, training, data = open_run(preset, arguments.run)
        checkpoint = load_checkpoint(arguments.run / "model" / "checkpoint")
        _check_same_run(checkpoint, spec.tokenizer_id, where=arguments.run)
        torch.set_num_threads(training.threads)
        groups, validation = (
            dataset.groups(
                part,
                target_behaviors=data.target_behaviors,
                min_history=training.min_history,
                recent_weeks=weeks,
            )
            for part, weeks in (("train", training.recent_weeks), ("validation", None))
        )
        model, figures = fine_tune(
            checkpoint.model,
            dataset,
            groups,
            validation,
            config=config,
            training=training,
            buckets=checkpoint.spec.value_buckets,
        )
        out = arguments.out or arguments.run / "model" / FOLDER
        out.parent.mkdir(parents=True, exist_ok=True)
        source = weights_sha256(arguments.run / "model" / "checkpoint")
        record = {"step": checkpoint.step, "quantize_aware": config.model_dump(), **figures, "source": source}
        save_checkpoint(
            out,
            model=model,
            spec=checkpoint.spec,
            training=TrainingConfig(**checkpoint.training),
            step=checkpoint.step,
            history=[*checkpoint.history, record],
            seen_sids=checkpoint.seen_sids,
        )
    except (ConfigError, CheckpointError, MissingPackageError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; nothing was written") from None
    print(f"{out}: KL to the FP32 model {figures['kl_before']:.5f} -> {figures['kl_after']:.5f}")


def _check_same_run(checkpoint: Checkpoint, tokenizer_id: str, *, where: Path) -> None:
    if checkpoint.spec.tokenizer_id != tokenizer_id:
        raise ValueError(
            f"{where}: expected tokenizer {checkpoint.spec.tokenizer_id} (the model's), got {tokenizer_id}; "
            "train again"
        )


if __name__ == "__main__":
    main()
