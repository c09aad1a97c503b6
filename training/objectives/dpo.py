"""Softmax direct preference optimization (S-DPO, arXiv 2406.09215), a baseline of GR4AD (arXiv 2602.22732).

L_DPO = E_i - log sigma( - log sum_{j in E_i} exp(a_ij) ) = E_i ln( 1 + sum_{j in E_i} exp(a_ij) )
a_ij  = beta [ log p(y_j|X) / p_ref(y_j|X) - log p(y_i|X) / p_ref(y_i|X) ],   E_i = { j : v_j < v_i }

Every candidate is once the chosen one, against all that are worth less. So it is RSPO without the weights of
ranks and always with the reference.

Letters: B lists, n candidates of a list, c anchors at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from training.objectives.base import Loss, Part
from training.objectives.list_scores import ListScores
from training.objectives.pairs import CHUNK, by_anchor, log1p_sum_exp, log_siblings, worse


@dataclass(frozen=True)
class Dpo:
    """L_DPO of a list is the mean over its candidates; those without a reference are left out.

    Attributes:
        beta: of the log-ratios.
        sibling_weight: see `log_siblings`; 0 for none.
        chunk: most anchors at a time.
    """

    beta: float
    sibling_weight: float = 0.0
    chunk: int = CHUNK
    names: ClassVar[tuple[str, ...]] = ("list", "drift")

    def __call__(self, scores: ListScores) -> Loss:
        """Sum over the lists that have a pair."""
        there, ratio = scores.has_reference, scores.log_ratio()

        def losses(at: slice) -> tuple[Tensor, Tensor]:
            pairs = worse(scores.reward, there, at)
            a = self.beta * (ratio[:, None, :] - ratio[:, at, None])  # [B, c, n]
            a = a + log_siblings(scores, at, weight=self.sibling_weight)
            return log1p_sum_exp(a, pairs), pairs.any(-1)

        loss, has_pair = by_anchor(losses, there.shape[1], chunk=self.chunk)
        total = (loss.sum(-1) / there.sum(-1).clamp(min=1)).sum()
        part = Part(total, has_pair.any(-1).sum().to(loss.dtype))
        return Loss(part, dict(zip(self.names, (part, scores.drift()), strict=True)))
