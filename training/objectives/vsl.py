"""Value-aware supervised learning (VSL; GR4AD, arXiv 2602.22732).

L_NTP = - sum_t log p(s_t | s_<t, X) - lambda_e log p(v | s, X)
L_VSL = E[ w ( L_NTP + lambda_mtp L_MTP + lambda_item L_item ) ]

L_item is that of models with an item level alone, and not the paper's (`training.objectives.item`).
w = w_user * w_behavior is `Batch.weight`, 0 for padding.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from training.data.batch import Batch
from training.model.copy_path import Copies
from training.objectives.base import Loss, Part
from training.objectives.item import item_loss, run_on_targets
from training.objectives.mtp import mtp_loss
from training.objectives.sid import cross_entropy, sid_log_p


@dataclass(frozen=True)
class Vsl:
    """L_VSL; its parts are the means of its terms, without their lambdas.

    Attributes:
        lambda_value: lambda_e, weight of the value level.
        lambda_mtp: weight of L_MTP; with 0 it is not computed, and its part is 0.
        lambda_item: weight of L_item; None for models without an item level.
    """

    lambda_value: float
    lambda_mtp: float
    lambda_item: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms."""
        return ("sid", "value", "mtp", *(("item",) if self.has_items else ()))

    @property
    def has_items(self) -> bool:
        """Whether the model is asked for its item level."""
        return self.lambda_item is not None

    def __call__(self, model: nn.Module, batch: Batch[Tensor]) -> Loss:
        """Teacher-forced: the model sees s_<t of every target. See `Generator.forward` for shapes."""
        said = run_on_targets(model, batch, batch.tokens, items=self.has_items, mtp=self.lambda_mtp > 0)
        return self.rate(batch, *said)

    def rate(
        self,
        batch: Batch[Tensor],
        logits: list[Tensor],
        mtp_logits: list[Tensor],
        copies: Copies | None = None,
        item_log_p: Tensor | None = None,
    ) -> Loss:
        """The loss of what a model gave for the targets of a batch, see `TeacherForced`."""
        tokens, levels = batch.tokens, batch.tokens.shape[-1]
        sid = -sid_log_p(logits, tokens, copies=copies)  # [B, n]
        value = cross_entropy(logits[levels], batch.value)
        mtp = mtp_loss(mtp_logits[:levels], tokens)
        total = sid + self.lambda_value * value + self.lambda_mtp * mtp
        terms = [sid, value, mtp]
        if self.lambda_item is not None:
            terms.append(item_loss(item_log_p))
            total = total + self.lambda_item * terms[-1]
        weight = batch.weight.sum()
        sums = [(x * batch.weight).sum() for x in (total, *terms)]
        return Loss(
            Part(sums[0], weight), {n: Part(s, weight) for n, s in zip(self.names, sums[1:], strict=True)}
        )
