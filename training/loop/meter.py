"""Sums of an objective's parts over batches and processes."""

from __future__ import annotations

import torch

from training.loop.device import Device
from training.objectives.base import Loss, Objective

TOTAL = "total"


class Meter:
    """Adds on the device, so that a step does not wait for its numbers to reach the host.

    Sums are float64, so that they do not depend on where a span of steps was interrupted.
    """

    def __init__(self, objective: Objective, device: Device) -> None:
        """Every process has the same names, also one that adds nothing."""
        self.names = (TOTAL, *objective.names)
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums = torch.zeros(len(self.names), 2, dtype=torch.float64, device=self._device.device)

    def add(self, loss: Loss) -> None:
        """Add a batch."""
        parts = [loss.total, *(loss.parts[name] for name in self.names[1:])]
        self._sums += torch.stack([torch.stack(part) for part in parts]).detach()

    def means(self) -> dict[str, float]:
        """Mean of every part over all processes; none where nothing was added. All processes must call it."""
        return {name: total / weight for name, (total, weight) in self.sums().items() if weight}

    def sums(self) -> dict[str, list[float]]:
        """[sum, weight] of every part over all processes; all of them must call it."""
        return dict(zip(self.names, self._device.add_up(self._sums).tolist(), strict=True))

    def restore(self, sums: dict[str, list[float]]) -> None:
        """Go on from `sums`, which the first process takes over.

        Raises:
            KeyError: a part is missing.
        """
        self.reset()
        if self._device.rank == 0:
            self._sums += torch.tensor([sums[name] for name in self.names], dtype=torch.float64).to(
                self._sums
            )
