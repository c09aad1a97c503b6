"""The copy path: what of the next SID the history explains, by pointing at one of its slots.

    p(y | X) = (1 - g) p_model(y | X) + g sum_s w_s [sid_s = y]

A pointer-sentinel mixture (Merity et al., arXiv 1609.07843): one softmax over the filled slots and a
sentinel, which stands for the model; what the slots get together is g, each one's part of it w_s. Without a
history the sentinel has all. Of a prefix of any length the same holds with the mass of the slots whose SID
begins with it,

    p(s_1 .. s_t | X) = (1 - g) p_model(s_1 .. s_t | X) + g sum_s w_s [sid_s begins with s_1 .. s_t]

so p of a level given those before it is the ratio of two such, and the levels' product is p(y | X).

Letters: B requests, n targets of a request, S history slots, T SID levels, d width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from serving.model.features import BEHAVIORS, FeatureSpec
from training.model.context import EMPTY_SLOT_BIAS

FIRST_GATE = 0.1  # g of a full history before anything is learnt: the model has most to learn at first


class Copies(NamedTuple):
    """The mixture of a batch.

    Attributes:
        logprob: float32 [B, 1 + S]: log(1 - g), then log(g w_s) of each slot, `EMPTY_SLOT_BIAS` of an empty
            one.
        sids: int [B, S, T], codes of each slot; -1 in an empty one.
    """

    logprob: Tensor
    sids: Tensor

    def prefix_log_mass(self, tokens: Tensor) -> Tensor:
        """Log of g times the mass of the slots whose SID begins with s_1 .. s_t, [B, n, T].

        It is finite where there is none, so that a gradient stays a number: as low as what an empty slot has.

        Args:
            tokens: int [B, n, T].
        """
        same = tokens[:, :, None] == self.sids[:, None]  # [B, n, S, T]
        begins = same.cumprod(-1).bool()
        slots = self.logprob[:, None, 1:, None]  # [B, 1, S, 1]
        return torch.where(begins, slots, EMPTY_SLOT_BIAS).logsumexp(2)


class CopyPath(nn.Module):
    """Weights of slots and sentinel: an attention query of the request, and what each slot is alone.

    The query is made of m_1, the shared stage's state of the first level, which has seen the whole context.
    Its matrix is multiplied and summed, not a product: it runs once a request, and what tells slots apart
    stays out of what INT8 and FP8 quantize.
    """

    def __init__(self, spec: FeatureSpec, *, width: int) -> None:
        """All slots equal, g = `FIRST_GATE` of a full history; `initialise` leaves that as it is."""
        super().__init__()
        self.levels = spec.levels
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.zeros(width, width))
        self.behavior = nn.Parameter(torch.zeros(len(BEHAVIORS) + 1))
        self.gap = nn.Parameter(torch.zeros(spec.gap_buckets))
        self.count = nn.Parameter(torch.zeros(spec.count_buckets))
        self.slot = nn.Parameter(torch.zeros(spec.slots))
        self.sentinel = nn.Parameter(torch.zeros(width))
        odds = spec.slots * (1 - FIRST_GATE) / FIRST_GATE
        self.sentinel_bias = nn.Parameter(torch.full((1,), math.log(odds)))

    def forward(self, slots: Tensor, context: Tensor, m: Tensor) -> Tensor:
        """`Copies.logprob`.

        Args:
            slots: int [B, S, T + 3].
            context: X of the history slots, [B, S, d].
            m: [B, d], m_1 of the shared stage.
        """
        state = self.norm(m)
        query = (state[:, :, None] * self.query).sum(1) * context.shape[-1] ** -0.5  # [B, d]
        behavior, gap, count = slots[..., self.levels :].unbind(-1)
        scores = (context * query[:, None]).sum(-1) + self.slot
        for codes, table in ((behavior, self.behavior), (gap, self.gap), (count, self.count)):
            scores = scores + embedding(codes, table[:, None]).squeeze(-1)
        empty = behavior == 0
        scores = torch.where(empty, EMPTY_SLOT_BIAS, scores)
        sentinel = (state * self.sentinel).sum(-1, keepdim=True) + self.sentinel_bias
        logprob = torch.cat([sentinel, scores], dim=-1).float().log_softmax(-1)
        return torch.cat([logprob[:, :1], torch.where(empty, EMPTY_SLOT_BIAS, logprob[:, 1:])], dim=-1)
