"""Group relative policy optimization (GRPO, arXiv 2402.03300), a baseline of GR4AD (arXiv 2602.22732).

L_GRPO = E_i - min( r_i A_i, clip(r_i, 1 - epsilon, 1 + epsilon) A_i ) + kl_weight ( 1/r_i - 1 + log r_i )
r_i    = p(y_i|X) / p_ref(y_i|X),   A_i = (v_i - mean v) / std v  within the list

The group is the list: its candidates are beams, not draws, so the mean over them is not one under p_ref.
p_ref is the model that made the list, old policy and reference at once.

Letters: B lists, n candidates of a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from training.objectives.base import Loss, Part
from training.objectives.list_scores import ListScores

_LARGEST = 20.0  # of |log r|: beyond, a ratio is as good as infinite, and exp would soon be


@dataclass(frozen=True)
class Grpo:
    """L_GRPO of a list is the mean over its candidates; those without a reference are left out.

    Attributes:
        epsilon: of the clipped ratio.
        kl_weight: of the estimate of KL(p || p_ref).
    """

    epsilon: float
    kl_weight: float = 0.0
    names: ClassVar[tuple[str, ...]] = ("list", "clipped", "drift")

    def __call__(self, scores: ListScores) -> Loss:
        """Sum over the lists whose rewards differ.

        Returns:
            Parts are the loss; `clipped`, the share of candidates whose gradient the clip takes away; and
            `drift`.
        """
        there, log_ratio = scores.has_reference, scores.log_ratio().clamp(-_LARGEST, _LARGEST)
        dtype = log_ratio.dtype
        advantage = advantages(scores.reward, there).to(dtype)
        ratio = log_ratio.exp()
        plain = ratio * advantage
        clipped = ratio.clamp(1 - self.epsilon, 1 + self.epsilon) * advantage
        loss = -torch.minimum(plain, clipped)
        if self.kl_weight:
            loss = loss + self.kl_weight * (torch.expm1(-log_ratio) + log_ratio)
        differs = (advantage != 0).any(-1, keepdim=True)
        total = (torch.where(there & differs, loss, 0.0).sum(-1) / there.sum(-1).clamp(min=1)).sum()
        of = (
            Part(total, differs.sum().to(dtype)),
            Part((clipped < plain).sum().to(dtype), (there & differs).sum().to(dtype)),
            scores.drift(),
        )
        return Loss(of[0], dict(zip(self.names, of, strict=True)))


def advantages(reward: Tensor, there: Tensor) -> Tensor:
    """A_i, float64 [B, n]; 0 in a list of one or of equals, and where nothing is."""
    count = there.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(there, reward, 0.0).sum(-1, keepdim=True) / count
    centred = torch.where(there, reward - mean, 0.0)
    deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    highest = torch.where(there, reward, -torch.inf).amax(-1, keepdim=True)
    lowest = torch.where(there, reward, torch.inf).amin(-1, keepdim=True)
    return torch.where(highest > lowest, centred / deviation.clamp(min=1e-300), 0.0)
