"""Train the generator: `python -m training.train --config configs/demo.yaml --run build/demo`.

Under `torchrun --nproc_per_node=N -m -- training.train ...` (without `--`, torchrun takes --run for its
own) the same global batches are split over the processes, so the run is the same up to the order of
additions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Generator as Iteration
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from serving.files import undo_interrupted
from training.checkpoint import CheckpointError, ModelSpec, load_checkpoint, save_checkpoint
from training.data.batch import Batch
from training.data.log import TargetGroups
from training.data.order import BatchOrder
from training.data.samples import RequestDataset
from training.data.stream import stream
from training.loop.config import TrainingConfig
from training.model.gr4ad import Generator
from training.objectives.vsl import VslLoss, vsl_loss
from training.plots import plot_training
from training.preset import ConfigError, Preset, add_preset_arguments
from training.run import open_run


class Trainer:
    """One training run; `run` goes from where it stands to the last step."""

    def __init__(
        self,
        dataset: RequestDataset,
        spec: ModelSpec,
        config: TrainingConfig,
        *,
        target_behaviors: tuple[str, ...],
        folder: Path,
    ) -> None:
        """Seed, build the model, find the requests.

        Raises:
            ValueError: no training or validation request.
        """
        self.dataset, self.spec, self.config, self.folder = dataset, spec, config, folder
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.groups = dataset.groups(
            "train",
            target_behaviors=target_behaviors,
            min_history=config.min_history,
            recent_weeks=config.recent_weeks,
        )
        self.validation = dataset.groups(
            "validation", target_behaviors=target_behaviors, min_history=config.min_history
        )
        for name, groups in (("training", self.groups), ("validation", self.validation)):
            if not len(groups):
                raise ValueError(
                    f"expected at least one {name} request with {config.min_history} earlier events "
                    f"and a target among {target_behaviors}, got none"
                )
        if min(config.batch_size, len(self.groups)) < self.world:
            raise ValueError(
                f"expected at least one request of a batch for each of {self.world} processes, got batches "
                f"of {min(config.batch_size, len(self.groups))}"
            )
        counts = np.minimum(dataset.target_counts(self.groups), config.targets_per_request)
        self._order = BatchOrder(counts, batch_size=config.batch_size, seed=config.seed)
        torch.manual_seed(config.seed)
        self.model = spec.build()
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.weight_decay),
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step, self.history = 0, []  # type: int, list[dict]
        self._stop = False
        self._seen_sids = dataset.seen_sids(spec.level_sizes)

    def resume(self) -> bool:
        """Continue from the checkpoint in the folder, if there is one.

        Raises:
            CheckpointError: it was made by another configuration.
        """
        folder = self.folder / "checkpoint"
        undo_interrupted(folder)
        if not folder.exists():
            return False
        found = load_checkpoint(folder)
        wanted = json.loads(json.dumps({"spec": self.spec.to_json(), "training": self.config.model_dump()}))
        came = json.loads(json.dumps({"spec": found.spec.to_json(), "training": found.training}))
        for part in wanted:
            differing = [k for k in wanted[part] if wanted[part][k] != came[part].get(k)]
            if differing:
                key = differing[0]
                raise CheckpointError(
                    f"{folder}: made with {part}.{key} = {str(came[part].get(key))[:80]}, expected "
                    f"{str(wanted[part][key])[:80]}; use --fresh or another folder"
                )
        self.model.load_state_dict(found.model.state_dict())
        if found.step and not found.optimizer_state:
            raise CheckpointError(
                f"{folder}: expected optimizer.safetensors at step {found.step}, found none"
            )
        if found.optimizer_state:
            state = self.optimizer.state_dict()
            self.optimizer.load_state_dict(
                {"state": found.optimizer_state, "param_groups": state["param_groups"]}
            )
        self.step, self.history = found.step, found.history
        return True

    def run(self) -> dict:
        """Train to the last step, with validation on the way; returns the last record of the history."""
        config = self.config
        parallel = DistributedDataParallel(self.model) if self.world > 1 else self.model
        previous = [signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)]
        began = time.monotonic()
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            desc="train",
            unit="step",
            disable=self.rank > 0,
            mininterval=2.0,
            file=sys.stderr,
        )
        running = np.zeros(5)
        batches = self._batches()
        try:
            while self.step < config.steps and not self._stop:
                running += self._train_step(parallel, next(batches))
                bar.update(1)
                if self.step % config.validate_every == 0 or self.step == config.steps:
                    self._record(running, seconds=time.monotonic() - began)
                    bar.set_postfix(
                        train=f"{self.history[-1]['train_sid']:.3f}",
                        validation=f"{self.history[-1]['validation_sid']:.3f}",
                    )
                    running[:] = 0
                    self.save()
        finally:
            batches.close()
            bar.close()
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), previous, strict=True):
                signal.signal(number, handler)
        if self._stop:
            # Sums since the last record are not part of a checkpoint, so only whole spans are resumed from.
            raise KeyboardInterrupt(
                f"stopped at step {self.step}; run again to resume from the last checkpoint"
            )
        return self.history[-1]

    def save(self) -> None:
        """Write checkpoint and curves (rank 0)."""
        if self.rank == 0:
            save_checkpoint(
                self.folder / "checkpoint",
                model=self.model,
                spec=self.spec,
                training=self.config,
                step=self.step,
                optimizer=self.optimizer,
                history=self.history,
                seen_sids=self._seen_sids,
            )
            plot_training(self.history, self.folder / "training.png")

    def _batches(self) -> Iteration[Batch, None, None]:
        """Batches from the current step on; the next one is built while the model works on this one."""

        def build(step: int) -> Batch:
            epoch, rows = self._order(step)
            return self.dataset.batch(
                self.groups,
                rows[self.rank :: self.world],
                config=self.config,
                buckets=self.spec.value_buckets,
                epoch=epoch,
            )

        return stream(build, itertools.count(self.step), workers=self.config.workers)

    def _train_step(self, parallel: torch.nn.Module, batch: Batch) -> np.ndarray:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        torch.manual_seed(hash((config.seed, self.step, self.rank)) & 0x7FFFFFFF)  # dropout, if any
        parallel.train()
        loss = self._loss(parallel, batch)
        weight = self._sum(loss.weight.detach())
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages gradients over processes; the loss is a mean over the targets of all of them.
        (loss.total * self.world / weight.clamp(min=1e-9)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.step += 1
        return _numbers(loss)

    def _loss(self, model: torch.nn.Module, batch: Batch) -> VslLoss:
        tokens = torch.from_numpy(batch.tokens)
        logits, mtp = model(torch.from_numpy(batch.slots), torch.from_numpy(batch.profile), tokens)
        return vsl_loss(
            logits,
            mtp,
            tokens=tokens,
            value=torch.from_numpy(batch.value),
            weight=torch.from_numpy(batch.weight),
            lambda_value=self.config.lambda_value,
            lambda_mtp=self.config.lambda_mtp,
        )

    def _record(self, running: np.ndarray, *, seconds: float) -> None:
        train = self._sum(torch.from_numpy(running)).numpy()
        validation = self._sum(torch.from_numpy(self._validate())).numpy()
        record: dict = {
            "step": self.step,
            "seconds": round(seconds, 1),
            "learning_rate": learning_rate(self.step - 1, self.config),
        }
        for part, sums in (("train", train), ("validation", validation)):
            for name, value in zip(
                ("total", "sid", "value", "mtp"), sums[:4] / max(sums[4], 1e-9), strict=True
            ):
                record[f"{part}_{name}"] = float(value)
        self.history.append(record)

    @torch.no_grad()
    def _validate(self) -> np.ndarray:
        rows = _sample(self.validation, self.config.validation_requests, self.config.seed)[
            self.rank :: self.world
        ]
        self.model.eval()
        sums = np.zeros(5)
        for start in range(0, len(rows), self.config.batch_size):
            batch = self.dataset.batch(
                self.validation,
                rows[start : start + self.config.batch_size],
                config=self.config,
                buckets=self.spec.value_buckets,
                epoch=0,
            )
            sums += _numbers(self._loss(self.model, batch))
        return sums

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def _request_stop(self, *_: object) -> None:
        self._stop = True


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then cosine to a hundredth of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * (0.505 + 0.495 * math.cos(math.pi * min(progress, 1.0)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser)
    parser.add_argument("--run", required=True, type=Path, help="run folder with data/ and tokenizer/")
    parser.add_argument("--out", type=Path, help="where checkpoint and curves go (default: RUN/model)")
    parser.add_argument("--fresh", action="store_true", help="do not resume from a checkpoint")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
        dataset, spec, config, data = open_run(preset, arguments.run)
        torch.set_num_threads(config.threads)
        trainer = Trainer(
            dataset,
            spec,
            config,
            target_behaviors=data.target_behaviors,
            folder=arguments.out or arguments.run / "model",
        )
        if not arguments.fresh and trainer.resume() and trainer.rank == 0:
            print(f"resumed at step {trainer.step} of {config.steps}")
        if trainer.rank == 0:
            parameters = sum(p.numel() for p in trainer.model.parameters())
            print(
                f"{parameters / 1e6:.2f} M parameters, {len(trainer.groups):,} training requests, "
                f"{config.steps} steps of {config.batch_size}"
            )
        last = trainer.run() if trainer.step < config.steps else trainer.history[-1]
        if trainer.rank == 0:
            print(
                f"done: validation loss of the SID {last['validation_sid']:.4f}; "
                f"curves in {trainer.folder}/training.png"
            )
    except (ConfigError, CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt as stop:
        raise SystemExit(f"\n{stop}") from stop
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _parameter_groups(model: Generator, weight_decay: float) -> list[dict]:
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "codes" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "codes" in n]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _sample(groups: TargetGroups, count: int, seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(len(groups))
    return np.sort(order[:count])


def _numbers(loss: VslLoss) -> np.ndarray:
    return np.array([float(x.detach()) for x in (loss.total, loss.sid, loss.value, loss.mtp, loss.weight)])


if __name__ == "__main__":
    main()
