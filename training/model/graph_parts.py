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
from training.model.step import StepLayer


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


class TailLayers(nn.Module):
    """Layers K + 1 .. L at one new level, and the head of that level; a graph says what goes into them."""

    def __init__(self, model: Generator, level: int) -> None:
        """Of a model, for `level` = 2 .. T + 1 (T + 1 is the value level)."""
        super().__init__()
        self.level, self.kv_groups = level, model.tail_kv_groups
        self.norm, self.head = model.norm, head_of(model, level)
        self.layers = nn.ModuleList(StepLayer(layer) for layer in model.tail_layers)

    def score(
        self, h: Tensor, context_kv: Tensor, bias: Tensor, *, past: list[Tensor], allowed: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Score the children of n beams.

        Args:
            h: [B n, d], what goes into the first layer.
            context_kv: [B, G, 2, H, S, e].
            bias: [B, S].
            past: of each earlier level [B, P, n, d] or [B, P, 1, d]: keys and values of each layer in turn.
            allowed: int32 [B, n, C], -1 = padding.

        Returns:
            h [B n, d] of the last layer; logprob [B, n, C]; keys and values of this level, [B, n, d] each.
        """
        batch, n = allowed.shape[:2]
        parts = [kv.unbind(1) for kv in past]  # [B, n, d] each
        new = []
        for i, layer in enumerate(self.layers):
            group = context_kv[:, min(i, self.kv_groups - 1)]  # [B, 2, H, S, e]
            earlier = [(p[2 * i], p[2 * i + 1]) for p in parts]
            h, key, value = layer(h, group, bias, past=earlier)
            new += [key, value]
        logprob = self.head(self.norm(h)).log_softmax(-1).reshape(batch, n, -1)  # [B, n, V]
        return h, logprob.gather(2, allowed.clamp(min=0).long()), new


def past_of(past_kv: list[Tensor], parents: list[Tensor]) -> list[Tensor]:
    """Of each earlier level what the ancestors of n beams left: [B, P, 1, d] of the first, then [B, P, n, d].

    Args:
        past_kv: for j = 1 .., [B, P, n_j, d]; n_1 = 1.
        parents: for j = 2 .., int32 [B, n], beam of level j.
    """
    return [past_kv[0], *(rows_of(kv, p) for kv, p in zip(past_kv[1:], parents, strict=True))]


def rows_of(kv: Tensor, parent: Tensor) -> Tensor:
    """Rows of the beams' ancestors: past_kv [B, P, n_j, d] and int32 [B, n] to [B, P, n, d]."""
    batch, parts, count, width = kv.shape
    # Whole rows of one table: ONNX Runtime copies those at memory speed.
    first = torch.arange(batch * parts, dtype=parent.dtype, device=kv.device).reshape(batch, parts, 1) * count
    return embedding(first + parent[:, None, :], kv.reshape(batch * parts * count, width))
