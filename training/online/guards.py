"""What must hold before weights that have learnt online are saved: what is not saved is not published."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from training.data.batch import Batch
from training.loop.device import Device
from training.objectives.base import Part
from training.objectives.item import run_on_targets
from training.objectives.vsl import Vsl
from training.online.state import OnlineState
from training.preset.online import OnlineConfig

_KEPT = 0.9  # of the moving average at each look


class GuardError(ArithmeticError):
    """Weights have gone bad: they are not saved, and the last good checkpoint stays."""


class Guards:
    """Look at a model through the same validation requests each time."""

    def __init__(
        self, probe: Sequence[Batch[np.ndarray]], vsl: Vsl, config: OnlineConfig, *, device: Device
    ) -> None:
        """Keep the requests.

        Args:
            probe: validation requests.
            vsl: their loss.
            config: section `online`.
            device: of the model.
        """
        self._probe, self._vsl, self._config, self._device = list(probe), vsl, config, device

    def begin(self, model: nn.Module, state: OnlineState) -> None:
        """Look at the weights that a run starts from; nothing where it goes on.

        Raises:
            GuardError: they give no finite loss.
        """
        if state.loss is None:
            state.loss, state.entropy = self.look(model)
            if not math.isfinite(state.loss):
                raise GuardError(f"expected a finite loss of the probe at the start, got {state.loss}")

    def check(self, model: nn.Module, state: OnlineState, *, unseen: float | None) -> tuple[float, float]:
        """Refuse weights, or move the average on.

        Args:
            model: as it would be saved.
            state: of the run.
            unseen: see `training.online.intake.Intake.unseen`.

        Returns:
            Loss and entropy of the probe.

        Raises:
            GuardError: says which guard, what it allows, and what came.
        """
        assert state.loss is not None
        assert state.entropy is not None
        config = self._config
        loss, entropy = self.look(model)
        if not math.isfinite(loss):
            raise GuardError(f"expected a finite loss of the probe, got {loss}")
        if loss > state.loss * (1 + config.max_loss_rise):
            raise GuardError(
                "online.max_loss_rise: expected a loss of the probe of at most "
                f"{1 + config.max_loss_rise:g} x its moving average {state.loss:.4f}, got {loss:.4f}"
            )
        if entropy < config.min_entropy * state.entropy:
            raise GuardError(
                f"online.min_entropy: expected an entropy of the first level of at least "
                f"{config.min_entropy:g} x {state.entropy:.3f} of the start, got {entropy:.3f}: everybody is "
                "given the same"
            )
        if unseen is not None and unseen > config.max_unseen:
            raise GuardError(
                f"online.max_unseen: expected at most {config.max_unseen:.0%} of the ads of late answers "
                f"without the SID that they were served with, got {unseen:.0%}: is the index, or the "
                "tokenizer, another one?"
            )
        state.loss = _KEPT * state.loss + (1 - _KEPT) * loss
        return loss, entropy

    @torch.no_grad()
    def look(self, model: nn.Module) -> tuple[float, float]:
        """Mean loss of the targets, and entropy in nats of the mean distribution of the first level."""
        model.eval()
        losses: list[Part] = []
        first: list[torch.Tensor] = []
        for batch in (self._device.put(batch) for batch in self._probe):
            with self._device.autocast():
                said = run_on_targets(model, batch, batch.tokens, items=self._vsl.has_items)
                losses.append(self._vsl.rate(batch, *said).total)
            first.append(said.logits[0][:, 0].float().softmax(-1))
        total, weight = (float(torch.stack(part).sum()) for part in zip(*losses, strict=True))
        mean = torch.cat(first).mean(0)
        return total / max(weight, 1e-9), float(torch.special.entr(mean).sum())
