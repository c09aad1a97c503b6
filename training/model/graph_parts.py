"""What the graphs of every decoder are made of.

Letters: B requests, n beams, V codes of a level, S context slots, d width, H heads, e = d / H, R = L - K tail
layers, G sets of context keys and values (1 where the layers share one, else R), P rows of past_kv.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from training.model.gr4ad import Generator
from training.model.layers import ContextKv


def tail_context(model: Generator, context_kv: list[ContextKv]) -> Tensor:
    """Keys and values of the context that the tail layers read, by head, [B, G, 2, H, S, e]."""
    groups = context_kv[model.shared :][: model.tail_kv_groups]
    stacked = torch.stack([torch.stack(kv, dim=1) for kv in groups], dim=1)  # [B, G, 2, S, d]
    return stacked.unflatten(-1, (model.config.heads, -1)).transpose(3, 4)


@torch.no_grad()
def head_of(model: Generator, level: int) -> nn.Linear:
    """Head of a level as one product: tied codes are its weight."""
    if level > model.levels or not model.config.tie_embeddings:
        return cast(nn.Linear, model.heads[-1 if level > model.levels else level - 1])
    codes = model.codes.table(level).weight[1:]  # [V, d]
    head = nn.Linear(codes.shape[1], codes.shape[0], bias=False)
    head.weight.copy_(codes)
    return head


def rows_of(kv: Tensor, parent: Tensor) -> Tensor:
    """Rows of the beams' ancestors: past_kv [B, P, n_j, d] and int32 [B, n] to [B, P, n, d]."""
    batch, parts, count, width = kv.shape
    # Whole rows of one table: ONNX Runtime copies those at memory speed.
    first = torch.arange(batch * parts, dtype=parent.dtype, device=kv.device).reshape(batch, parts, 1) * count
    return embedding(first + parent[:, None, :], kv.reshape(batch * parts * count, width))
