"""Distillation: a model learns to give the probabilities of another one.

L = E[ w sum_t KL(p_t || q_t) ] over levels t = 1 .. T + 1, p of the teacher and q of the model, at the
tokens of the batch. With a copy path, p_t are those of the model without it, and the divergence of who speaks
(the model, or which slot of the history) comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from training.data.batch import Batch
from training.model.gr4ad import TeacherForced
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
            wanted = TeacherForced(*self.teacher(batch.slots, batch.profile, batch.tokens))
        got = TeacherForced(*model(batch.slots, batch.profile, batch.tokens))
        each = divergence(wanted.logits, got.logits)  # [B, n]
        if wanted.copies is not None and got.copies is not None:
            each = each + divergence([wanted.copies.logprob], [got.copies.logprob])[:, None]
        return Loss(Part((each * batch.weight).sum(), batch.weight.sum()), {})


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
