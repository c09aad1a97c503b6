"""One decoder layer `Dec`: pre-norm cross-attention to the context, causal self-attention over levels, FFN.

Letters: B requests, n beams (or targets), t levels, S context slots, d width, H heads, e = d / H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

ContextKv = tuple[Tensor, Tensor]
"""Keys and values of the context, [B, S, d] each."""


class ContextKeysValues(nn.Module):
    """Keys and values of the context; one may serve all layers (OneRec-V2 reports no loss from sharing)."""

    def __init__(self, width: int) -> None:
        """One projection to keys, one to values."""
        super().__init__()
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, context: Tensor) -> ContextKv:
        """[B, S, d] to keys and values, [B, S, d] each."""
        return self.key(context), self.value(context)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, n, d] to [B, H, n, e]."""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """Attention of [.., n, e] over [.., S, e]; causal where there is no bias [.., n or 1, S].

    On a CPU the kernel of bfloat16 takes up to six times as long as that of float32, which bf16 training is
    therefore given.
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), bias=None if bias is None else bias.float())
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)


class DecoderLayer(nn.Module):
    """GR4AD's `Dec_l` (arXiv 2602.22732, LazyAR decoder), all levels at once: training and the shared stage.

    `training.model.step.StepLayer` is the same layer for one new level, as the tails run it.
    """

    def __init__(self, width: int, heads: int, *, ffn_multiple: int, dropout: float = 0.0) -> None:
        """See `ModelConfig` for the arguments."""
        super().__init__()
        self.heads = heads
        self.norm_context = nn.LayerNorm(width)
        self.query_context = nn.Linear(width, width)
        self.out_context = nn.Linear(width, width)
        self.norm_self = nn.LayerNorm(width)
        self.qkv_self = nn.Linear(width, 3 * width)
        self.out_self = nn.Linear(width, width)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn_multiple * width), nn.GELU(), nn.Linear(ffn_multiple * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, context_kv: ContextKv, bias: Tensor) -> Tensor:
        """All levels at once.

        Args:
            h: [B, n, t, d]; n sequences share the context of their request.
            context_kv: keys and values, [B, S, d] each.
            bias: [B, S], 0 on filled slots and very negative on empty ones.

        Returns:
            [B, n, t, d].
        """
        batch, n, levels, width = h.shape
        h = self._attend_context(h.reshape(batch, n * levels, width), context_kv, bias)
        q, k, v = self.qkv_self(self.norm_self(h)).reshape(batch * n, levels, 3, self.heads, -1).unbind(2)
        attended = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # [B n, H, t, e]
        h = h + self.dropout(self.out_self(attended.transpose(1, 2).reshape(batch, n * levels, width)))
        return self._feed_forward(h).reshape(batch, n, levels, width)

    def _attend_context(self, h: Tensor, context_kv: ContextKv, bias: Tensor) -> Tensor:
        # Beams lie on the sequence dimension, so all of them read one copy of the context's keys and values.
        q = split_heads(self.query_context(self.norm_context(h)), self.heads)  # [B, H, n, e]
        k, v = (split_heads(x, self.heads) for x in context_kv)  # [B, H, S, e]
        attended = attend(q, k, v, bias=bias[:, None, None, :])
        return h + self.dropout(self.out_context(attended.transpose(1, 2).flatten(2)))

    def _feed_forward(self, h: Tensor) -> Tensor:
        return h + self.dropout(self.ffn(self.norm_ffn(h)))
