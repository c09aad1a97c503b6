"""The generator: p(s_1 .. s_T, v | X) with a LazyAR decoder (GR4AD, arXiv 2602.22732).

Letters: B requests, n targets or beams, S context slots, T SID levels, t = T + 1 levels with the value, V
codes.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from serving.model.features import FeatureSpec
from training.model.context import CodeEmbeddings, ContextProcessor
from training.model.copy_path import Copies, CopyPath
from training.model.layers import ContextKeysValues, ContextKv, DecoderLayer
from training.preset.model import ModelConfig


class TeacherForced(NamedTuple):
    """What a model says of given SIDs.

    Attributes:
        logits: for each level 1 .. T + 1, [B, n, V] given the tokens before it; p_model where there is a copy
            path.
        mtp_logits: for each level, [B, V] of the multi-token-prediction path, which skips Fuse (h^K := m^K)
            and so sees no token at all.
        copies: what the history adds to the SID levels; None of a model without a copy path.
    """

    logits: list[Tensor]
    mtp_logits: list[Tensor]
    copies: Copies | None = None


class Fuse(nn.Module):
    """Late injection of the previous token: Fuse(m, s) = W_f [ m * (W_g s) ; s ]."""

    def __init__(self, width: int) -> None:
        """W_g: d -> d, W_f: 2d -> d."""
        super().__init__()
        self.gate = nn.Linear(width, width)
        self.mix = nn.Linear(2 * width, width)

    def forward(self, m: Tensor, s: Tensor) -> Tensor:
        """[..., d] and [..., d] to [..., d]; m and s broadcast."""
        gated = m * self.gate(s)
        return self.mix(torch.cat([gated, s.expand_as(gated)], dim=-1))


class Generator(nn.Module):
    """Context processor, K shared layers, Fuse, L - K tail layers, one head a level.

    With K = 0 the levels' only input besides the token is their embedding p_t: plain autoregression.
    """

    def __init__(
        self, config: ModelConfig, spec: FeatureSpec, *, level_sizes: tuple[int, ...], value_buckets: int
    ) -> None:
        """Build; `initialise` sets the weights that training starts with.

        Args:
            config: sizes.
            spec: context.
            level_sizes: V_1 .. V_T.
            value_buckets: V of the value level, as found in the data.
        """
        super().__init__()
        if spec.levels != len(level_sizes):
            raise ValueError(f"expected {spec.levels} SID levels (features), got level sizes {level_sizes}")
        self.config, self.spec = config, spec
        self.level_sizes, self.value_buckets = tuple(level_sizes), value_buckets
        width = config.width
        self.codes = CodeEmbeddings(self.level_sizes, width)
        self.context = ContextProcessor(spec, width=width, dropout=config.context_dropout)
        self.level = nn.Parameter(torch.zeros(len(level_sizes) + 1, width))  # p_t
        self.bos = nn.Parameter(torch.zeros(1, 1, width))
        self.fuse = Fuse(width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.heads, ffn_multiple=config.ffn_multiple, dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.context_kv = nn.ModuleList(
            ContextKeysValues(width) for _ in range(1 if config.share_context_kv else config.layers)
        )
        self.norm = nn.LayerNorm(width)
        sizes = (value_buckets,) if config.tie_embeddings else (*level_sizes, value_buckets)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.copy_path = CopyPath(spec, width=width) if config.copy_path else None

    @property
    def levels(self) -> int:
        """SID levels T."""
        return len(self.level_sizes)

    @property
    def shared(self) -> int:
        """Shared layers K."""
        return self.config.shared_layers

    @property
    def tail_layers(self) -> list[DecoderLayer]:
        """Layers K + 1 .. L."""
        return cast("list[DecoderLayer]", list(self.layers)[self.shared :])

    @property
    def tail_kv_groups(self) -> int:
        """R: sets of context keys and values that the tail layers use, 1 where all layers share one."""
        return 1 if self.config.share_context_kv else self.config.layers - self.shared

    @property
    def past_rows(self) -> int:
        """Rows of past_kv, what a level hands on of each beam: keys and values of each tail layer."""
        return 2 * (self.config.layers - self.shared)

    def encode(self, slots: Tensor, profile: Tensor) -> tuple[Tensor, list[ContextKv], Tensor]:
        """X [B, S, d]; its keys and values for each of the L layers, [B, S, d] each; and the bias [B, S]."""
        context, bias = self.context(slots, profile, self.codes)
        kv = [project(context) for project in self.context_kv]
        return context, kv * self.config.layers if self.config.share_context_kv else kv, bias

    def shared_stage(self, context_kv: list[ContextKv], bias: Tensor) -> Tensor:
        """m_t^K of all levels at once, [B, 1, t, d]. No token goes in: it is computed once per request."""
        m = self.level.expand(bias.shape[0], 1, -1, -1)
        for layer, kv in zip(self.layers[: self.shared], context_kv, strict=False):
            m = layer(m, kv, bias)
        return m

    def copy_logprob(self, slots: Tensor, context: Tensor, m: Tensor) -> Tensor:
        """Mixture of model and history slots, see `Copies.logprob`; for a model with a copy path.

        Args:
            slots: int [B, S, T + 3], of the history.
            context: X [B, 1 + P + S, d].
            m: [B, t, d] of the shared stage.
        """
        assert self.copy_path is not None
        return self.copy_path(slots, context[:, -self.spec.slots :], m[:, 0])

    def tail_stage(self, h: Tensor, context_kv: list[ContextKv], bias: Tensor) -> Tensor:
        """Layers K + 1 .. L over all levels at once, [B, n, t, d]."""
        for layer, kv in zip(self.tail_layers, context_kv[self.shared :], strict=True):
            h = layer(h, kv, bias)
        return h

    def logits(self, h: Tensor, level: int) -> Tensor:
        """Head of `level` (1 .. T, T + 1 = value): [..., d] to [..., V]."""
        h = self.norm(h)
        if level > self.levels:
            return self.heads[-1](h)
        if self.config.tie_embeddings:
            return h @ self.codes.table(level).weight[1:].T
        return self.heads[level - 1](h)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """e(s_0 = BOS), e(s_1) .. e(s_T) of tokens int [B, n, T]: [B, n, T + 1, d]."""
        embedded = [table(tokens[..., t] + 1) for t, table in enumerate(self.codes.tables)]
        bos = self.bos.expand(*tokens.shape[:2], -1)
        return torch.stack([bos, *embedded], dim=2)

    def forward(self, slots: Tensor, profile: Tensor, tokens: Tensor) -> TeacherForced:
        """What the model says of the SIDs of n targets of each request.

        Args:
            slots: int [B, S, T + 3].
            profile: int [B, P].
            tokens: int [B, n, T].
        """
        context, context_kv, bias = self.encode(slots, profile)
        m = self.shared_stage(context_kv, bias)
        fused = self.fuse(m, self.embed_tokens(tokens))
        # The path without tokens is one more sequence beside the n targets.
        h = self.tail_stage(torch.cat([fused, m], dim=1), context_kv, bias)  # [B, n + 1, t, d]
        levels, copies = range(1, self.levels + 2), None
        if self.copy_path is not None:
            copies = Copies(self.copy_logprob(slots, context, m[:, 0]), slots[..., : self.levels] - 1)
        return TeacherForced(
            [self.logits(h[:, :-1, t - 1], t) for t in levels],
            [self.logits(h[:, -1, t - 1], t) for t in levels],
            copies,
        )
