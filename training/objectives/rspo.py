"""Ranking-guided softmax preference optimization (RSPO; GR4AD, arXiv 2602.22732).

L_RSPO = E_i log2( 1 + sum_{j in E_i} M_ij exp(a_ij) ),   E_i = { j : v_j < v_i }
a_ij   = beta [ (log p(y_j|X) - C log p_ref(y_j|X)) - (log p(y_i|X) - C log p_ref(y_i|X)) ]
M_ij   = ( 1/D_|i-j| - 1/D_{|i-j|+1} ) |G_i - G_j|,   D_k = log2(1+k),   G_i = (2^{v_i} - 1) / idealDCG
C      = 1 iff all of E_i + {i} have p_ref and their mean log(p/p_ref) < delta, else 0 (reference-free)

i, j in the discount are ranks by reward. It bounds the cost in NDCG as long as sum_j M_ij < 1, which holds
for ranks; a weight of siblings above 0 can break it.

Letters: B lists, n candidates of a list, c anchors at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from training.objectives.base import Loss, Part
from training.objectives.list_scores import ListScores, ranks
from training.objectives.pairs import CHUNK, by_anchor, log1p_sum_exp, log_siblings, worse

_LOG_2 = math.log(2)


@dataclass(frozen=True)
class Rspo:
    """L_RSPO of a list is the mean over its candidates; one of which none is worth less has 0.

    Attributes:
        beta: of the differences of log-probabilities.
        delta: mean log(p/p_ref) from which on an anchor is judged without the reference.
        sibling_weight: see `log_siblings`; 0 for none.
        chunk: most anchors at a time.
    """

    beta: float
    delta: float
    sibling_weight: float = 0.0
    chunk: int = CHUNK
    names: ClassVar[tuple[str, ...]] = ("list", "gate", "drift")

    def __call__(self, scores: ListScores, anchor_weight: Tensor | None = None) -> Loss:
        """Sum over the lists that have a pair.

        Args:
            scores: of the candidates.
            anchor_weight: [B, n], of each candidate's term; None for 1.

        Returns:
            Parts are the loss; `gate`, the share of C = 1 among anchors with a pair; and `drift`.
        """
        log_m = _PairWeights.of(scores)

        def losses(at: slice) -> tuple[Tensor, Tensor, Tensor]:
            pairs = worse(scores.reward, scores.there, at)
            gate = self._gate(scores, pairs, at)
            y = scores.log_p[:, None, :] - gate[..., None] * scores.log_p_ref.nan_to_num()[:, None, :]
            anchor = scores.log_p[:, at] - gate * scores.log_p_ref.nan_to_num()[:, at]
            a = self.beta * (y - anchor[..., None])  # [B, c, n]
            a = a + log_m(at).to(a.dtype) + log_siblings(scores, at, weight=self.sibling_weight)
            return log1p_sum_exp(a, pairs) / _LOG_2, gate, pairs.any(-1)

        loss, gate, has_pair = by_anchor(losses, scores.there.shape[1], chunk=self.chunk)
        if anchor_weight is not None:
            loss = loss * anchor_weight
        total = (loss.sum(-1) / scores.there.sum(-1).clamp(min=1)).sum()
        lists = has_pair.any(-1).sum().to(loss.dtype)
        anchors = has_pair.sum().to(loss.dtype)
        of = (Part(total, lists), Part((gate * has_pair).sum(), anchors), scores.drift())
        return Loss(of[0], dict(zip(self.names, of, strict=True)))

    def _gate(self, scores: ListScores, pairs: Tensor, at: slice) -> Tensor:
        """C of each anchor, 0 or 1, [B, c]."""
        ratio, known = scores.log_ratio().detach(), scores.has_reference
        every = known[:, at] & ~(pairs & ~known[:, None, :]).any(-1)
        total = ratio[:, at] + torch.where(pairs, ratio[:, None, :], 0.0).sum(-1)
        return (every & (total / (1 + pairs.sum(-1)) < self.delta)).to(ratio.dtype)


@dataclass(frozen=True)
class _PairWeights:
    """log M_ij, in float64 because neighbours far down a list differ little.

    Attributes:
        rank: int64 [B, n], by reward.
        gain: G_i, float64 [B, n].
        log_discount: float64 [n], of rank differences.
    """

    rank: Tensor
    gain: Tensor
    log_discount: Tensor

    @classmethod
    def of(cls, scores: ListScores) -> _PairWeights:
        rank = ranks(scores.reward, scores.there)
        gain = torch.expm1(scores.reward * _LOG_2)  # 2^v - 1
        # The best has rank 0; what is absent gains nothing.
        ideal = (gain / torch.log2(rank.double() + 2)).sum(-1, keepdim=True)
        k = torch.arange(rank.shape[1], device=rank.device, dtype=torch.float64).clamp(min=1)
        discount = 1 / torch.log2(1 + k) - 1 / torch.log2(2 + k)
        return cls(rank, gain / torch.where(ideal > 0, ideal, 1.0), discount.log())

    def __call__(self, at: slice) -> Tensor:
        """Of some anchors, [B, c, n]; -inf between equals."""
        apart = (self.rank[:, at, None] - self.rank[:, None, :]).abs()
        gap = (self.gain[:, at, None] - self.gain[:, None, :]).abs()
        return self.log_discount[apart] + gap.log()
