"""One decoder layer at one new level, as the serving graphs run it: the same function as `DecoderLayer`.

Weights are rearranged once so that a beam costs fewer and plainer operations: rows of all requests are one
dimension and every projection is one matrix product with its bias; queries, keys and values of the
self-attention are products of their own, so nothing has to be cut apart; the attention scale is part of the
weights.

Letters: B requests, n beams, S context slots, d width, H heads, e = d / H, t levels so far.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.model.layers import DecoderLayer, split_heads


class StepLayer(nn.Module):
    """A `DecoderLayer` that sees one new level, and keys and values of the levels before it."""

    def __init__(self, layer: DecoderLayer) -> None:
        """Rearrange copies of a layer's weights; later changes of the layer are not seen."""
        super().__init__()
        self.heads = layer.heads
        width = layer.out_self.in_features
        scale = (width // layer.heads) ** -0.5
        self.norm_context, self.norm_self, self.norm_ffn = layer.norm_context, layer.norm_self, layer.norm_ffn
        self.query_context = _linear(layer.query_context.weight, layer.query_context.bias, scale=scale)
        self.out_context, self.out_self, self.ffn = layer.out_context, layer.out_self, layer.ffn
        weights, biases = layer.qkv_self.weight.chunk(3), layer.qkv_self.bias.chunk(3)
        self.query_self = _linear(weights[0], biases[0], scale=scale)
        self.key_self, self.value_self = _linear(weights[1], biases[1]), _linear(weights[2], biases[2])

    def forward(
        self, h: Tensor, context_kv: Tensor, bias: Tensor, *, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One new level for n beams of each of B requests.

        Args:
            h: [B n, d].
            context_kv: keys and values of the context by head, [B, 2, H, S, e]; beams lie on the sequence
                dimension, so all of them read one copy.
            bias: [B, S], 0 on filled slots and very negative on empty ones.
            past: for each earlier level its keys and values, [B, n, d] each, or [B, 1, d] where all beams
                share them.

        Returns:
            h [B n, d], and keys and values of this level, [B, n, d] each.
        """
        batch, width = bias.shape[0], h.shape[-1]
        q = self.query_context(self.norm_context(h)).reshape(batch, -1, width)
        scores = torch.matmul(split_heads(q, self.heads), context_kv[:, 0].transpose(2, 3))  # [B, H, n, S]
        attended = torch.matmul((scores + bias[:, None, None, :]).softmax(-1), context_kv[:, 1])
        h = h + self.out_context(attended.transpose(1, 2).reshape(-1, width))

        x = self.norm_self(h)
        q, k, v = (
            f(x).reshape(batch, -1, width) for f in (self.query_self, self.key_self, self.value_self)
        )  # [B, n, d] each
        levels = [*past, (k, v)]
        # At most T + 1 levels attend to each other: multiply and sum beats a batched matmul of that size, and
        # a softmax written out over t small tensors beats one over rows of t numbers.
        logits = [self._by_head(q * key).sum(-1, keepdim=True) for key, _ in levels]  # [B, n, H, 1] each
        top = logits[0]
        for other in logits[1:]:
            top = torch.maximum(top, other)
        weights = [(x - top).exp() for x in logits]
        total = sum(weights[1:], start=weights[0])
        mixed = [(w / total) * self._by_head(value) for w, (_, value) in zip(weights, levels, strict=True)]
        h = h + self.out_self(sum(mixed[1:], start=mixed[0]).reshape(-1, width))
        return h + self.ffn(self.norm_ffn(h)), k, v

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, x.shape[-1] // self.heads))  # [B, n, H, e]


@torch.no_grad()
def _linear(weight: Tensor, bias: Tensor, *, scale: float = 1.0) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.copy_(weight * scale)
    linear.bias.copy_(bias * scale)
    return linear
