"""What a model says of the candidates of a batch, beside what their reference said and what they are worth.

Letters: B lists, n candidates of a list, T SID levels, V codes of a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training.data.lists import Lists
from training.model.copy_path import Copies
from training.objectives.base import Part
from training.objectives.sid import sid_log_p

ScaleName = Literal["max", "range", "rank"]


@dataclass(frozen=True)
class RewardScale:
    """How rewards of a list become exponents v of 2^v, of which only small ones are sane.

    Attributes:
        by: max divides by the largest of the list; rank is the share of the others that are worth less: v
            falls evenly along the list, as over equal-frequency buckets; in both, what is worth less than
            nothing is worth 0. range takes the least of the list for 0.
        top: v of the best candidate.
    """

    by: ScaleName = "max"
    top: float = 4.0

    def __call__(self, reward: Tensor, there: Tensor) -> Tensor:
        """Find v of each candidate, float64 [B, n] in 0 .. top; 0 in a list without differences to scale."""
        reward = torch.where(there, reward.double(), 0.0)
        if self.by == "range":
            least = torch.where(there, reward, torch.inf).amin(-1, keepdim=True)
            reward = torch.where(there, reward - least, 0.0)
        reward = reward.clamp(min=0.0)
        if self.by == "rank":
            return self.top * _share_below(reward, there)
        largest = reward.amax(-1, keepdim=True)
        return self.top * reward / torch.where(largest > 0, largest, 1.0)


@dataclass(frozen=True)
class ListScores:
    """Candidates of B lists, scored.

    Attributes:
        sids: int [B, n, T].
        there: bool [B, n]; False for padding, and for a candidate whose reward is no finite number.
        log_p: [B, n], log p(s_1 .. s_T | X) of the model, with gradient.
        log_p_ref: [B, n], of the model that made the list; NaN where none did.
        reward: float64 [B, n], v as `RewardScale` gives it.
    """

    sids: Tensor
    there: Tensor
    log_p: Tensor
    log_p_ref: Tensor
    reward: Tensor

    @classmethod
    def of(
        cls,
        lists: Lists[Tensor],
        logits: list[Tensor],
        *,
        scale: RewardScale,
        copies: Copies | None = None,
    ) -> ListScores:
        """Score lists.

        Args:
            lists: candidates.
            logits: teacher-forced for the candidates, [B, n, V] of at least the T levels.
            scale: of their rewards.
            copies: what the history adds; None of a model without a copy path.
        """
        log_p = sid_log_p(logits, lists.sids, copies=copies)
        there = (lists.flags != 0) & lists.reward.isfinite()
        reference = lists.log_p_ref
        if reference is None:
            reference = torch.full_like(lists.reward, torch.nan)
        return cls(
            sids=lists.sids,
            there=there,
            log_p=log_p,
            log_p_ref=reference.to(log_p.dtype),
            reward=scale(lists.reward, there),
        )

    @property
    def has_reference(self) -> Tensor:
        """Candidates with a reference, bool [B, n]."""
        return self.there & self.log_p_ref.isfinite()

    def log_ratio(self) -> Tensor:
        """Give log p / p_ref of each candidate, [B, n]; 0 where it has no reference."""
        return torch.where(self.has_reference, self.log_p - self.log_p_ref.nan_to_num(), 0.0)

    def drift(self) -> Part:
        """Mean log p / p_ref over the candidates with a reference: how far the model went from it."""
        return Part(self.log_ratio().detach().sum(), self.has_reference.sum().to(self.log_p.dtype))


def _share_below(reward: Tensor, there: Tensor) -> Tensor:
    """Which share of the other candidates of its list are worth less, float64 [B, n]; 0 in a list of one."""
    ascending = torch.where(there, reward, torch.inf).sort(dim=-1).values
    below = torch.searchsorted(ascending, reward).double()
    others = (there.sum(-1, keepdim=True) - 1).clamp(min=1)
    return torch.where(there, below / others, 0.0)


def ranks(values: Tensor, there: Tensor) -> Tensor:
    """Place of each candidate, int64 [B, n], 0 the highest value; equals in list order, absent ones last."""
    order = torch.where(there, -values, torch.inf).argsort(dim=-1, stable=True)
    return order.argsort(dim=-1)
