"""What every objective is: a batch in, a total and named parts out.

Letters: B requests, n targets of a request, T SID levels, V codes of a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from training.data.batch import Batch


class Part(NamedTuple):
    """A weighted sum over a batch; sums and weights of batches and processes add up, means do not.

    Attributes:
        sum: scalar, sum of w * x.
        weight: scalar, sum of w.
    """

    sum: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Loss:
    """What an objective gives for a batch.

    Attributes:
        total: what is minimised, as `sum / weight` over all processes; only its sum has a gradient.
        parts: what is looked at beside it, one for each of the objective's `names`.
    """

    total: Part
    parts: dict[str, Part]


class Objective(Protocol):
    """A loss of a model on a batch. The training loop knows nothing else of it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts, the same for every batch."""
        ...

    def __call__(self, model: nn.Module, batch: Batch[Tensor]) -> Loss:
        """Run `model` (a `Generator`, possibly wrapped for several processes) on a batch and rate it."""
        ...


def wide(logits: Tensor) -> Tensor:
    """Logits in float32 at least: a softmax over a codebook in bfloat16 loses what tells codes apart."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
