"""The training loop: one for all objectives, on one device or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from serving.model.value_correction import UNCORRECTED
from training.data.batch import Batch
from training.loop.checkpoint import Checkpoint, CheckpointError, NonFiniteError
from training.loop.device import Device
from training.loop.log import Progress, RunLog
from training.loop.meter import Meter
from training.loop.optimizer import learning_rate, make_optimizer
from training.loop.patience import is_exhausted
from training.loop.retention import save_checkpoint
from training.loop.signals import StopSignals
from training.loop.source import Source
from training.objectives.base import Loss, Objective
from training.preset.loop import LoopConfig


class Outcome(NamedTuple):
    """What a step gave, possibly still on its way from the device.

    Attributes:
        step: that was made, counted from 0.
        numbers: mean loss, norm of the gradient, number of processes that were asked to stop, and of those
            for which it is time to save.
    """

    step: int
    numbers: Callable[[], list[float]]


class Trainer:
    """One training run; `run` goes from where the starting checkpoint stands to the last step."""

    def __init__(
        self,
        start: Checkpoint,
        objective: Objective,
        source: Source,
        *,
        config: LoopConfig,
        device: Device,
        folder: Path,
        model: nn.Module | None = None,
    ) -> None:
        """Move the model to the device and restore optimizer and sums.

        Args:
            start: what the run starts from, fresh or saved by an earlier run.
            objective: what is minimised.
            source: batches.
            config: steps, optimiser, how often to validate and what to keep.
            device: of this process.
            folder: where checkpoints and curves go.
            model: what is trained, where that is another module with the same weights as `start.model`.

        Raises:
            CheckpointError: `start` has made steps but brings no optimizer state.
        """
        self.start, self.objective, self.source = start, objective, source
        self.config, self.device, self.folder = config, device, folder
        self.model = (model or start.model).to(device.device)
        self.optimizer = make_optimizer(self.model, config)
        self.step, self.history = start.step, list(start.history)
        self._running = Meter(objective, device)
        if start.step:
            self._restore(start)
        self._fresh = not start.step
        # Losses on other validation requests, of an earlier log, are not to be compared.
        self._first = start.first_record if start.held_out == source.held_out else len(start.history)
        self._seconds, self._began, self._saved = start.seconds, time.monotonic(), time.monotonic()
        self._log = RunLog(folder, step=start.step, records=len(start.history)) if device.rank == 0 else None

    @property
    def exhausted(self) -> bool:
        """Whether the run's patience is at its end, so that no step is made any more."""
        return is_exhausted(self.history, patience=self.config.patience, first=self._first)

    def run(self) -> None:
        """Train to the last step or the end of patience, with validation and checkpoints on the way.

        Raises:
            NonFiniteError: a loss, gradient or weight is not finite; the last good checkpoint stays.
            KeyboardInterrupt: a signal asked to stop; where the run stands is saved.
        """
        config, parallel = self.config, self.device.parallel(self.model)
        self._began = self._saved = time.monotonic()
        earlier: Outcome | None = None
        stop = False
        with (
            StopSignals() as signals,
            closing(self.source.batches(self.step)) as batches,
            Progress(self.step, config.steps, shown=self.device.rank == 0) as bar,
        ):
            while self.step < config.steps and not stop and not self.exhausted:
                outcome = self._train_step(parallel, next(batches), stop=signals.received)
                # Looked at one step late, so that the device always has a step to work on.
                stop, save = self._asked(earlier) if earlier else (False, False)
                due = self.step % config.validate_every == 0 or self.step == config.steps
                if due or stop or save:
                    stop |= self._asked(outcome)[0]
                if due:
                    self.record()
                    bar.show(self.history[-1])
                if due or stop or save:
                    self.save()
                earlier = outcome
                bar.advance()
        if self._log:
            self._log.close()
        if stop and self.step < config.steps:
            raise KeyboardInterrupt(
                f"stopped at step {self.step} of {config.steps}; run again to go on there"
            )

    def record(self) -> None:
        """Validate, and add a record to the history: step, seconds, learning rate, means of every part.

        Raises:
            NonFiniteError: the validation loss is not finite.
        """
        train, validation = self._running.means(), self._validate()
        bad = {name: value for name, value in validation.items() if not math.isfinite(value)}
        if bad:
            raise NonFiniteError(f"step {self.step}: expected a finite validation loss, got {bad}; not saved")
        self.history.append(
            {
                "step": self.step,
                "seconds": round(self._elapsed(), 1),
                "learning_rate": learning_rate(max(self.step - 1, 0), self.config),
                **{f"train_{name}": value for name, value in train.items()},
                **{f"validation_{name}": value for name, value in validation.items()},
            }
        )
        self._running.reset()

    def save(self) -> None:
        """Write a checkpoint, and show the history."""
        sums = self._running.sums()
        if self._log is None:
            return
        checkpoint = replace(
            self.start,
            spec=replace(self.start.spec, value_correction=UNCORRECTED),  # it was of other weights
            step=self.step,
            seconds=self._elapsed(),
            history=self.history,
            sums=sums,
            held_out=self.source.held_out,
            first_record=self._first,
            optimizer_state=self.optimizer.state_dict()["state"],
        )
        save_checkpoint(self.folder, checkpoint, keep=self.config.keep_checkpoints, fresh=self._fresh)
        self._fresh, self._saved = False, time.monotonic()
        self._log.show(self.history)

    def _train_step(self, parallel: nn.Module, batch: Batch[np.ndarray], *, stop: bool) -> Outcome:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        torch.manual_seed(_seed(self.config.seed, step=self.step, rank=self.device.rank))  # dropout, if any
        parallel.train()
        loss = self._loss(parallel, batch)
        asked = [torch.full_like(loss.total.weight, float(flag)) for flag in (stop, self._time_to_save())]
        weight, *asked = self.device.add_up(torch.stack([loss.total.weight.detach(), *asked])).unbind()
        mean = loss.total.sum / weight.clamp(min=1e-9)
        self.optimizer.zero_grad(set_to_none=True)
        # Gradients are averaged over processes; the loss is a mean over the targets of all of them.
        (mean * self.device.world).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self._running.add(loss)
        self.step += 1
        return Outcome(self.step - 1, self.device.fetch(torch.stack([mean.detach(), norm, *asked])))

    def _loss(self, model: nn.Module, batch: Batch[np.ndarray]) -> Loss:
        with self.device.autocast():
            return self.objective(model, self.device.put(batch))

    def _time_to_save(self) -> bool:
        """Whether minutes have passed since the last checkpoint; once for each time they have."""
        minutes = self.config.checkpoint_minutes
        if self._log is None or minutes is None or time.monotonic() - self._saved < 60 * minutes:
            return False
        self._saved = time.monotonic()
        return True

    def _asked(self, outcome: Outcome) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether it is time to save; all of them find the same.

        Raises:
            NonFiniteError: loss or gradient of that step are not finite.
        """
        loss, norm, stop, save = outcome.numbers()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteError(
                f"step {outcome.step}: expected a finite loss and gradient, got loss {loss:g} and gradient "
                f"norm {norm:g}; {self.source.describe(outcome.step)}; not saved"
            )
        return stop > 0, save > 0

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        self.model.eval()
        meter = Meter(self.objective, self.device)
        for batch in self.source.validation():
            meter.add(self._loss(self.model, batch))
        return meter.means()

    def _restore(self, start: Checkpoint) -> None:
        if not start.optimizer_state:
            raise CheckpointError(
                f"{self.folder}: expected the optimizer's state of step {start.step}, the checkpoint has none"
            )
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": start.optimizer_state, "param_groups": groups})
        self._running.restore(start.sums)

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._began


def _seed(seed: int, *, step: int, rank: int) -> int:
    """Of what is drawn at random within a step: other numbers in every step and process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
