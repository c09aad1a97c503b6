"""Distillation: a model learns to give the probabilities of another one.

L = E[ w sum_t KL(p_t || q_t) ] over levels t = 1 .. T + 1, p of the teacher and q of the model, at the
tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from training.data.batch import Batch
from training.objectives.base import Loss, Part, wide


@dataclass(frozen=True)
class Distill:
    """The divergence from a teacher.

    Attributes:
        teacher: a `Generator` in evaluation mode, on the device of the batches; it gets no gradient.
    """

    teacher: nn.Module
    names: ClassVar[tuple[str, ...]] = ()

    def __call__(self, model: nn.Module, batch: Batch[Tensor]) -> Loss:
        """Teacher-forced, both models alike."""
        with torch.no_grad():
            wanted, _ = self.teacher(batch.slots, batch.profile, batch.tokens)
        got, _ = model(batch.slots, batch.profile, batch.tokens)
        total = (divergence(wanted, got) * batch.weight).sum()
        return Loss(Part(total, batch.weight.sum()), {})


def divergence(wanted: list[Tensor], got: list[Tensor]) -> Tensor:
    """sum_t KL(p_t || q_t) of each target, [B, n]; logits [B, n, V_t] of each level.

    Raises:
        ValueError: one has more levels than the other.
    """
    total = torch.zeros(wanted[0].shape[:-1], device=wanted[0].device)
    for p, q in zip(wanted, got, strict=True):
        log_p, log_q = wide(p).log_softmax(-1), wide(q).log_softmax(-1)
        total = total + (log_p.exp() * (log_p - log_q)).sum(-1)
    return total
