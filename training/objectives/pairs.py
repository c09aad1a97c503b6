"""Losses over pairs of candidates of a list: each is the anchor once, against all that are worth less.

Letters: B lists, n candidates of a list, c anchors at a time, T SID levels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from training.objectives.list_scores import ListScores

CHUNK = 128  # anchors at a time: pairs of a list of 1,024 would be a million


def by_anchor(
    losses: Callable[[slice], tuple[Tensor, ...]], count: int, *, chunk: int = CHUNK
) -> tuple[Tensor, ...]:
    """Each of the results [B, n] of a function of some anchors, over all of them.

    With more anchors than a chunk the pairs are not kept for the backward pass but computed again there, so
    memory grows with n and not with its square.

    Args:
        losses: of the anchors of a slice, [B, c] each.
        count: n.
        chunk: most anchors at a time.
    """
    if count <= chunk:
        return losses(slice(0, count))
    parts = [
        checkpoint(losses, slice(first, min(first + chunk, count)), use_reentrant=False)
        for first in range(0, count, chunk)
    ]
    return tuple(torch.cat(columns, dim=1) for columns in zip(*parts, strict=True))


def worse(reward: Tensor, there: Tensor, at: slice) -> Tensor:
    """E_i of some anchors: which candidates are worth less, bool [B, c, n]."""
    both = there[:, at, None] & there[:, None, :]
    return both & (reward[:, None, :] < reward[:, at, None])


def log_siblings(scores: ListScores, at: slice, *, weight: float) -> Tensor | float:
    """Weigh pairs: log(1 + weight * leading codes that a candidate shares with the anchor), [B, c, n].

    Siblings under one prefix are the hard negatives: the model tells them apart at the last codes alone.
    """
    if not weight:
        return 0.0
    same = scores.sids[:, at, None] == scores.sids[:, None]  # [B, c, n, T]
    shared = same.to(torch.int64).cumprod(-1).sum(-1)
    return torch.log1p(weight * shared.to(scores.log_p.dtype))


def log1p_sum_exp(a: Tensor, pairs: Tensor) -> Tensor:
    """Find log(1 + sum_j exp(a_ij)) over the pairs that count, [B, c] of [B, c, n]; 0 where none does."""
    terms = torch.where(pairs, a, -torch.inf)
    return functional.pad(terms, (1, 0)).logsumexp(-1)  # the 1 is exp(0)
