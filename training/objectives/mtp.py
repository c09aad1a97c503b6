"""L_MTP = - sum_t log p(s_t | X), every level from the shared stage alone (GR4AD, arXiv 2602.22732)."""

from __future__ import annotations

import torch
from torch import Tensor

from training.objectives.base import wide


def mtp_loss(logits: list[Tensor], tokens: Tensor) -> Tensor:
    """Loss of each target, [B, n].

    Args:
        logits: for SID levels 1 .. T, [B, V_t]: one distribution a request, no token went in.
        tokens: int [B, n, T].
    """
    total = torch.zeros(tokens.shape[:2], device=tokens.device)
    for t, level in enumerate(logits):
        total = total - wide(level).log_softmax(-1).gather(1, tokens[..., t])  # [B, V] at [B, n]
    return total
