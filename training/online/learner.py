"""The loop of a run without an end: take samples, make a step, save what may be published."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from serving.index.keys import pack
from training.data.batch import Sample, collate
from training.loop.checkpoint import Checkpoint, CheckpointError
from training.loop.device import Device
from training.loop.meter import TOTAL, Meter
from training.loop.optimizer import constant_rate, make_optimizer
from training.loop.retention import save_checkpoint
from training.objectives.balance import Balanced, gradient_norms
from training.objectives.base import Objective
from training.objectives.joint import TwoTerms
from training.objectives.vsl import Vsl
from training.online.guards import GuardError, Guards
from training.online.intake import Intake, teaches
from training.online.state import BALANCE_BATCHES
from training.preset.online import OnlineConfig

POLL_S = 0.1  # between two looks for samples
_HISTORY = 256  # records that a checkpoint keeps


class Learner:
    """Learns from an intake until it is told to stop.

    Attributes:
        step: steps so far.
        state: what the weights have learnt.
        history: a record for each checkpoint, the newest ones.
    """

    def __init__(
        self,
        start: Checkpoint,
        intake: Intake,
        replay: Callable[[int, int], list[Sample]],
        *,
        objective: Vsl | TwoTerms,
        guards: Guards,
        config: OnlineConfig,
        device: Device,
        folder: Path,
        say: Callable[[str], object],
    ) -> None:
        """Move the model to the device and restore the optimizer.

        Args:
            start: what the run starts from, with its `online` state in `intake`.
            intake: served samples.
            replay: samples of the logs, of a step and how many: the same ones each time.
            objective: of targets alone, or of targets and lists.
            guards: asked before each checkpoint.
            config: section `online`.
            device: of this process.
            folder: where checkpoints go.
            say: is told of each checkpoint.

        Raises:
            CheckpointError: `start` has made steps but brings no optimizer state.
        """
        self.step, self.history, self.state = start.step, list(start.history), intake.state
        self._start, self._intake, self._replay, self._guards = start, intake, replay, guards
        self._terms, self._config, self._device = objective, config, device
        self._folder, self._say = folder, say
        self.model = start.model.to(device.device)
        self._optimizer = make_optimizer(self.model, config)
        if start.step:
            if not start.optimizer_state:
                raise CheckpointError(f"{folder}: expected an optimizer's state, step {start.step} has none")
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": start.optimizer_state, "param_groups": groups})
        self._meter = Meter(self._objective(), device)
        self._seen = start.seen_sids
        self._new: list[np.ndarray] = []
        self._saved_step, self._saved, self._began = start.step, -math.inf, time.monotonic()

    def run(self, stop: Callable[[], bool]) -> None:
        """Learn until `stop`; then what was taken is learnt and saved.

        Raises:
            GuardError: see `Guards.check`; or a loss or gradient is not finite. The last checkpoint stays.
            NonFiniteError: a weight is not; likewise.
            FeedbackStoreError: the store is damaged, or another one.
            OSError: the disk is full or not writable.
        """
        try:
            self._run(stop)
        finally:
            self._intake.close()

    def _run(self, stop: Callable[[], bool]) -> None:
        config = self._config
        self._guards.begin(self.model, self.state)
        self._say(f"ready at step {self.step}, behind sample {self.state.offset}")
        room = max(1, config.batch_size - round(config.replay * config.batch_size))
        ready: list[Sample] = []
        since, replayed = time.monotonic(), 0
        while not (stopping := stop()) or ready:
            if not stopping:
                if not ready:
                    since = time.monotonic()
                ready += self._intake.take(room - len(ready))
            waited = time.monotonic() - since
            if ready and (len(ready) == room or waited >= config.wait_seconds or stopping):
                self._make_step(ready)
                ready, replayed = [], 0
            elif not ready and replayed < config.replay_only_steps and config.replay:
                self._make_step([])
                replayed += 1
            elif not self._intake.has_more:
                time.sleep(POLL_S)
            if not ready and time.monotonic() - self._saved >= config.checkpoint_seconds:
                self.save()
        self.save()

    def save(self) -> None:
        """Write a checkpoint, if there was a step since the last one and the guards let it pass.

        Raises:
            GuardError: they do not.
            NonFiniteError: a weight is no number.
            OSError: the disk is full or not writable.
        """
        if self.step == self._saved_step:
            return
        state = self.state
        loss, entropy = self._guards.check(self.model, state, unseen=self._intake.unseen())
        means = self._meter.means()
        lag = time.time() - self._intake.newest_written
        record = {
            "step": self.step,
            "time": round(time.time(), 3),
            "offset": state.offset,
            "lag_seconds": round(lag, 2),
            "probe_loss": loss,
            "entropy": entropy,
            **{f"train_{name}": value for name, value in means.items()},
        }
        self.history = [*self.history, record][-_HISTORY:]
        if self._new:
            new = np.unique(np.concatenate(self._new))
            self._seen = new if self._seen is None else np.union1d(self._seen, new)
        checkpoint = replace(
            self._start,
            model=self.model,
            step=self.step,
            seconds=self._start.seconds + time.monotonic() - self._began,
            history=self.history,
            optimizer_state=self._optimizer.state_dict()["state"],
            seen_sids=self._seen,
            balance=state.balance,
            online=state.to_json(),
            learnt=state.memory(),
        )
        # The first one takes the place of all that a run before this one has left.
        fresh = not self._saved_step
        save_checkpoint(self._folder, checkpoint, keep=self._config.keep_checkpoints, fresh=fresh)
        self._saved_step, self._saved, self._new = self.step, time.monotonic(), []
        state.since = {"step": self.step, "offset": state.offset}
        self._meter.reset()
        total = f"loss {means[TOTAL]:.3f}, " if TOTAL in means else ""
        self._say(
            f"step {self.step} saved: {total}probe {loss:.3f}; {state.learnt} samples learnt, "
            f"{state.empty} empty, {state.refused} refused, {state.lost} lost, {self._intake.behind} behind; "
            f"{lag:.1f} s after the answer"
        )

    def _make_step(self, served: list[Sample]) -> None:
        config = self._config
        count = self._replay_of(len(served)) if served else config.batch_size
        samples = served + (self._replay(self.step, count) if count else [])
        batch = self._device.put(collate(samples))
        if (
            any(map(teaches, samples))
            and self.state.norms[2] < BALANCE_BATCHES
            and not isinstance(self._terms, Vsl)
        ):
            norms = gradient_norms(self.model, self._terms, batch)
            if all(0 < norm < math.inf for norm in norms):
                self.state.norms = [a + b for a, b in zip(self.state.norms, (*norms, 1.0), strict=True)]
        for group in self._optimizer.param_groups:
            group["lr"] = constant_rate(self.step, config)
        torch.manual_seed(_seed(config.seed, step=self.step))  # dropout, if any
        self.model.train()
        with self._device.autocast():
            loss = self._objective()(self.model, batch)
        # Of a few targets of little weight, or of lists alone, a step is not made larger.
        mean = loss.total.sum / loss.total.weight.clamp(min=1.0)
        self._optimizer.zero_grad(set_to_none=True)
        mean.backward()
        gradient = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        found, norm = float(mean.detach()), float(gradient)
        if not (math.isfinite(found) and math.isfinite(norm)):
            raise GuardError(
                f"step {self.step}: expected a finite loss and gradient, got loss {found:g} and "
                f"gradient norm {norm:g}; its last sample is {self.state.offset}; not saved"
            )
        self._optimizer.step()
        self._meter.add(loss)
        self.step += 1
        sizes = self._start.spec.level_sizes
        self._new += [pack(s.tokens.astype(np.int32), sizes) for s in served if len(s.tokens)]

    def _objective(self) -> Objective:
        if isinstance(self._terms, Vsl):
            return self._terms
        return Balanced(self._terms, self._config.strength * self.state.balance)

    def _replay_of(self, served: int) -> int:
        """How many samples of the logs go with so many served ones."""
        share = self._config.replay
        return min(round(share / (1 - share) * served), self._config.batch_size - served)


def _seed(seed: int, *, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
