"""The copy path: what of the next SID the user's habits explain, by pointing at one of them.

    p(y | X) = (1 - g) p_model(y | X) + g sum_h w_h [sid_h = y]

A pointer-generator mixture (See et al., arXiv 1704.04368; Merity et al., arXiv 1609.07843). Habits are the
distinct ads of the whole history, far more than the context has slots: no layer of the decoder sees them.
With a state z = norm(m_1) of the request and small vectors e of codes,

    score_h = count_h + gap_h + behavior_h + (q + Q z) . sum_t e_t(s_t of h)      w = softmax_h(score)
    logit g = b + v . z + a log sum_h exp(score_h)

Without a history g is 0. Of a prefix of any length the same holds with the mass of the habits whose SID
begins with it,

    p(s_1 .. s_t | X) = (1 - g) p_model(s_1 .. s_t | X) + g sum_h w_h [sid_h begins with s_1 .. s_t]

so p of a level given those before it is the ratio of two such, and the levels' product is p(y | X).

Letters: B requests, n targets of a request, H habits, T SID levels, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, logsigmoid

from serving.model.features import BEHAVIORS, FeatureSpec
from training.model.context import EMPTY_SLOT_BIAS, CodeEmbeddings

_WIDTH = 16  # of the vectors of codes
_FIRST_POWER = 0.6  # of a count, before anything is learnt: what fits the demo's purchases best


class Copies(NamedTuple):
    """The mixture of a batch.

    Attributes:
        logprob: float32 [B, 1 + H]: log(1 - g), then log(g w_h) of each habit, `EMPTY_SLOT_BIAS` of an empty
            row.
        sids: int [B, H, T], codes of each habit; -1 in an empty row.
    """

    logprob: Tensor
    sids: Tensor

    def prefix_log_mass(self, tokens: Tensor) -> Tensor:
        """Log of g times the mass of the habits whose SID begins with s_1 .. s_t, [B, n, T].

        It is finite where there is none, so that a gradient stays a number: as low as what an empty row has.

        Args:
            tokens: int [B, n, T].
        """
        same = tokens[:, :, None] == self.sids[:, None]  # [B, n, H, T]
        begins = same.cumprod(-1).bool()
        habits = self.logprob[:, None, 1:, None]  # [B, 1, H, 1]
        return torch.where(begins, habits, EMPTY_SLOT_BIAS).logsumexp(2)


class CopyPath(nn.Module):
    """Weights of habits, and how much they get together.

    The request's state is m_1, the shared stage's of the first level, which has seen the whole context. Its
    matrix Q is multiplied and summed, not a product: it runs once a request, and what tells habits apart
    stays out of what INT8 and FP8 quantize.
    """

    def __init__(self, spec: FeatureSpec, *, level_sizes: tuple[int, ...], width: int) -> None:
        """Before anything is learnt w goes by counts alone, and g is a half; `initialise` leaves that so."""
        super().__init__()
        self.levels = spec.levels
        self.norm = nn.LayerNorm(width)
        self.codes = CodeEmbeddings(level_sizes, _WIDTH)
        self.query = nn.Parameter(torch.zeros(_WIDTH))
        self.query_state = nn.Parameter(torch.zeros(width, _WIDTH))
        counts = torch.tensor([*spec.count_edges, 1.5 * spec.count_edges[-1]])  # of each bucket the highest
        self.count = nn.Parameter(_FIRST_POWER * counts.log())
        self.behavior = nn.Parameter(torch.zeros(len(BEHAVIORS) + 1))
        self.gap = nn.Parameter(torch.zeros(spec.gap_buckets))
        self.gate = nn.Parameter(torch.zeros(1))
        self.gate_state = nn.Parameter(torch.zeros(width))
        self.gate_mass = nn.Parameter(torch.zeros(1))

    def forward(self, habits: Tensor, m: Tensor) -> Tensor:
        """`Copies.logprob`.

        Args:
            habits: int [B, H, T + 3].
            m: [B, d], m_1 of the shared stage.
        """
        state = self.norm(m)
        query = self.query + (state[:, :, None] * self.query_state).sum(1)  # [B, _WIDTH]
        entries = sum(table(habits[..., t]) for t, table in enumerate(self.codes.tables))  # [B, H, _WIDTH]
        scores = (entries * query[:, None]).sum(-1)
        columns = habits[..., self.levels :].unbind(-1)
        for codes, table in zip(columns, (self.behavior, self.gap, self.count), strict=True):
            scores = scores + embedding(codes, table[:, None]).squeeze(-1)
        empty = columns[0] == 0
        scores = torch.where(empty, EMPTY_SLOT_BIAS, scores).float()
        mass = scores.logsumexp(-1, keepdim=True)
        gate = self.gate + (state * self.gate_state).sum(-1, keepdim=True) + self.gate_mass * mass
        of_model = torch.where(empty.all(-1, keepdim=True), 0.0, logsigmoid(-gate))
        of_habits = torch.where(empty, EMPTY_SLOT_BIAS, logsigmoid(gate) + scores - mass)
        return torch.cat([of_model, of_habits], dim=-1)
