"""A baseline beside LazyAR: an ordinary decoder for the first SID level, an extra shallow one for the others.

The extra decoder is the multi-token-prediction module of DeepSeek-V3 (arXiv 2412.19437, section 2.2):

    h_1 = Dec_K(.. Dec_1(e(BOS) + p_1, X) .., X)                    main decoder, the first position alone
    x_t = W_f [ norm(h_{t-1}) ; norm(e(s_{t-1})) ] + p_t            t = 2 .. T + 1
    h_t = Dec_L(.. Dec_{K+1}(x_t | x_2 .. x_{t-1}, X) .., X)        extra decoder, the same one at every t
    p(s_t | s_<t, X) = softmax over V_t of the head of level t at h_t

Unlike LazyAR, the state of the whole prefix goes on, h_{t-1} into x_t, not only its keys and values, and what
runs once a request knows of no later level than the first. DeepSeek's module has one Dec for each depth and
one depth in use; here one serves all depths, with causal self-attention over them. Its context is read by
cross-attention, as in every decoder here, norms are LayerNorm and heads and codes are shared.

Queries and keys of the main decoder's self-attention do nothing: one position attends to itself.

Letters: B requests, n targets or beams, C children, S context slots, T SID levels, t = T + 1 levels with the
value, V codes, d width, R = L - K layers of the extra decoder, G see `training.model.split`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from serving.model.features import FeatureSpec
from training.model.gr4ad import Generator, TeacherForced
from training.model.graph_parts import TailLayers, head_of, past_of, tail_context
from training.model.item_head import ItemSizes
from training.model.layers import ContextKv
from training.preset.model import ModelConfig


class MtpFuse(nn.Module):
    """A prefix's state and its next token: W_f [ norm(h) ; norm(s) ]."""

    def __init__(self, width: int) -> None:
        """Norms start with the scale of codes, whose rows have norm 1."""
        super().__init__()
        self.norm_state, self.norm_token = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(2 * width, width)
        for norm in (self.norm_state, self.norm_token):
            nn.init.constant_(norm.weight, width**-0.5)

    def forward(self, h: Tensor, s: Tensor) -> Tensor:
        """[..., d] and [..., d] to [..., d]; h is broadcast to s."""
        return self.mix(torch.cat([self.norm_state(h).expand_as(s), self.norm_token(s)], dim=-1))


class MtpGenerator(Generator):
    """Main decoder of K layers, extra decoder of L - K layers."""

    def __init__(
        self,
        config: ModelConfig,
        spec: FeatureSpec,
        *,
        level_sizes: tuple[int, ...],
        value_buckets: int,
        items: ItemSizes | None = None,
    ) -> None:
        """See `Generator`; it has no item level."""
        super().__init__(config, spec, level_sizes=level_sizes, value_buckets=value_buckets, items=items)
        self.fuse = MtpFuse(config.width)  # type: ignore[assignment]  # in the place of LazyAR's

    @property
    def past_rows(self) -> int:
        """Keys and values of each layer of the extra decoder, and behind them h_t."""
        return super().past_rows + 1

    def main(self, context_kv: list[ContextKv], bias: Tensor) -> Tensor:
        """h_1 of each request, [B, 1, 1, d]."""
        # A sum of two weights would be worked out when a graph is traced, and stay that of the traced model.
        h = self.bos[0].expand(bias.shape[0], 1, -1, -1) + self.level[:1]
        for layer, kv in zip(self.layers[: self.shared], context_kv, strict=False):
            h = layer(h, kv, bias)
        return h

    def forward(
        self,
        slots: Tensor,
        profile: Tensor,
        tokens: Tensor,
        slot_ads: Tensor | None = None,
        ads: Tensor | None = None,
        *,
        mtp: bool = True,
    ) -> TeacherForced:
        """Teacher-forced logits.

        Args:
            slots: int [B, S, T + 3].
            profile: int [B, P].
            tokens: int [B, n, T], the SIDs of n targets of each request.
            slot_ads: of no use here.
            ads: likewise.
            mtp: likewise.

        Returns:
            For each level 1 .. T + 1: logits [B, n, V] given the tokens before it; and no logits without
            tokens, since there is no such path.
        """
        _, context_kv, bias = self.encode(slots, profile)
        h = self.main(context_kv, bias)[:, :, 0]  # [B, 1, d]
        logits = [self.logits(h, 1).expand(-1, tokens.shape[1], -1)]
        embedded = self.embed_tokens(tokens)
        inputs: list[Tensor] = []
        for t in range(1, self.levels + 1):
            inputs.append(self.fuse(h, embedded[:, :, t]) + self.level[t])
            # The positions before come out as they did: attention is causal.
            h = self.tail_stage(torch.stack(inputs, dim=2), context_kv, bias)[:, :, -1]  # [B, n, d]
            logits.append(self.logits(h, t + 1))
        return TeacherForced(logits, [])


class MtpPrefixGraph(nn.Module):
    """The main decoder; the same inputs and outputs as `training.model.split.PrefixGraph`."""

    has_copy_path = False

    def __init__(self, model: MtpGenerator) -> None:
        """Wrap a model, whose weights are shared."""
        super().__init__()
        self.model, self.head = model, head_of(model, 1)

    def forward(self, slots: Tensor, profile: Tensor) -> tuple[Tensor, ...]:
        """Level 1.

        Returns:
            logprob [B, V_1], p_1 .. p_{T + 1} as m [B, t, d], context_kv [B, G, 2, H, S, e], context_bias
            [B, S], past_kv_1 [B, 2 R + 1, 1, d]: h_1, and 0 for keys and values, which no level reads.
        """
        model = self.model
        _, context_kv, bias = model.encode(slots, profile)
        h = model.main(context_kv, bias)  # [B, 1, 1, d]
        logprob = self.head(model.norm(h[:, 0, 0])).log_softmax(-1)
        past = torch.cat([torch.zeros_like(h).expand(-1, model.past_rows - 1, -1, -1), h], dim=1)
        m = model.level.expand(bias.shape[0], -1, -1)
        return logprob, m, tail_context(model, context_kv), bias, past


class MtpTailGraph(TailLayers):
    """The extra decoder at one level; the same inputs and outputs as `training.model.split.TailGraph`."""

    def __init__(self, model: MtpGenerator, level: int) -> None:
        """Wrap a model for `level` = 2 .. T + 1 (T + 1 is the value level)."""
        super().__init__(model, level)
        fuse, width = cast(MtpFuse, model.fuse), model.config.width
        self.norm_state = fuse.norm_state
        with torch.no_grad():  # what the token adds, one row a code
            codes = fuse.norm_token(model.codes.table(level - 1).weight[1:])  # [V, d]
            added = codes @ fuse.mix.weight[:, width:].T + fuse.mix.bias
            self.token = nn.Parameter(added, requires_grad=False)
            self.mix = nn.Linear(width, width, bias=False)
            self.mix.weight.copy_(fuse.mix.weight[:, :width])

    def forward(
        self,
        m: Tensor,
        context_kv: Tensor,
        context_bias: Tensor,
        past_kv: list[Tensor],
        parents: list[Tensor],
        token: Tensor,
        allowed: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Score the children of n beams; past_kv of each level is [B, 2 R + 1, n, d]."""
        width = m.shape[-1]
        past = past_of(past_kv, parents)
        state = self.mix(self.norm_state(past[-1][:, -1]))  # [B, n, d], at level 2 [B, 1, d]
        h = (state + embedding(token, self.token) + m[:, self.level - 1 : self.level]).reshape(-1, width)
        # The first level leaves no keys and values.
        h, logprob, new = self.score(h, context_kv, context_bias, past=past[1:], allowed=allowed)
        return logprob, torch.stack([*new, h.reshape(*token.shape, width)], dim=1)
