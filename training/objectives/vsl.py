"""Value-aware supervised learning (VSL; GR4AD, arXiv 2602.22732).

L_NTP = - sum_t log p(s_t | s_<t, X) - lambda_e log p(v | s, X)
L_VSL = E[ w ( L_NTP + lambda_mtp L_MTP ) ]

w = w_user * w_behavior is `Batch.weight`, 0 for padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from training.data.batch import Batch
from training.model.copy_path import Copies
from training.objectives.base import Loss, Part
from training.objectives.mtp import mtp_loss
from training.objectives.sid import cross_entropy, sid_log_p


@dataclass(frozen=True)
class Vsl:
    """L_VSL; its parts are the means of its three terms, without their lambdas.

    Attributes:
        lambda_value: lambda_e, weight of the value level.
        lambda_mtp: weight of L_MTP.
    """

    lambda_value: float
    lambda_mtp: float
    names: ClassVar[tuple[str, ...]] = ("sid", "value", "mtp")

    def __call__(self, model: nn.Module, batch: Batch[Tensor]) -> Loss:
        """Teacher-forced: the model sees s_<t of every target. See `Generator.forward` for shapes."""
        return self.rate(batch, *model(batch.slots, batch.profile, batch.tokens))

    def rate(
        self,
        batch: Batch[Tensor],
        logits: list[Tensor],
        mtp_logits: list[Tensor],
        copies: Copies | None = None,
    ) -> Loss:
        """The loss of what a model gave for the targets of a batch, see `TeacherForced`."""
        tokens, levels = batch.tokens, batch.tokens.shape[-1]
        sid = -sid_log_p(logits, tokens, copies=copies)  # [B, n]
        value = cross_entropy(logits[levels], batch.value)
        mtp = mtp_loss(mtp_logits[:levels], tokens)
        total = sid + self.lambda_value * value + self.lambda_mtp * mtp
        weight = batch.weight.sum()
        sums = [(x * batch.weight).sum() for x in (total, sid, value, mtp)]
        return Loss(
            Part(sums[0], weight), {n: Part(s, weight) for n, s in zip(self.names, sums[1:], strict=True)}
        )
