"""log p(y | X) of semantic IDs that are given, level by level, with what a copy path adds.

Letters: B requests, n SIDs of each, T SID levels, V codes of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.model.copy_path import Copies
from training.objectives.base import wide


def level_log_p(logits: list[Tensor], tokens: Tensor, *, copies: Copies | None = None) -> list[Tensor]:
    """Log p(s_t | s_<t, X) of each level, T of [B, n]; their sum is log p(y | X).

    With a copy path a level has the ratio of the mixtures of two prefixes, see `training.model.copy_path`.

    Args:
        logits: teacher-forced, [B, n, V] of at least the T levels.
        tokens: int [B, n, T].
        copies: what the history adds; None for what the logits say.
    """
    levels = [-cross_entropy(logits[t], tokens[..., t]) for t in range(tokens.shape[-1])]
    if copies is None:
        return levels
    mass = copies.prefix_log_mass(tokens)  # [B, n, T]
    model = copies.logprob[:, :1]  # [B, 1], log(1 - g) + log p_model of the prefix
    before, found = torch.zeros_like(levels[0]), []
    for t, level in enumerate(levels):
        model = model + level
        prefix = torch.logaddexp(model, mass[..., t])
        found.append(prefix - before)
        before = prefix
    return found


def sid_log_p(logits: list[Tensor], tokens: Tensor, *, copies: Copies | None = None) -> Tensor:
    """Log p(y | X), [B, n]; arguments of `level_log_p`."""
    return sum_of(level_log_p(logits, tokens, copies=copies))


def sum_of(levels: list[Tensor]) -> Tensor:
    """Sum of tensors of one shape."""
    return torch.stack(levels).sum(0)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-log softmax of the target, [B, n], of logits [B, n, V]; in float32 at least."""
    flat = wide(logits).flatten(0, 1)
    return functional.cross_entropy(flat, target.flatten(), reduction="none").view_as(target)
