"""The generator: p(s_1 .. s_T, v | X) with a LazyAR decoder (GR4AD, arXiv 2602.22732).

Letters: B requests, n targets or beams, S context slots, H habits, T SID levels, t = T + 1 levels with the
value, V codes.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from serving.model.features import FeatureSpec
from training.model.context import CodeEmbeddings, ContextProcessor
from training.model.copy_path import Copies, CopyPath
from training.model.item_head import ItemHead, ItemSizes
from training.model.layers import ContextKeysValues, ContextKv, DecoderLayer
from training.preset.model import ModelConfig


class TeacherForced(NamedTuple):
    """What a model says of given SIDs.

    Attributes:
        logits: for each level 1 .. T + 1, [B, n, V] given the tokens before it; p_model where there is a copy
            path.
        mtp_logits: for each level, [B, V] of the multi-token-prediction path, which skips Fuse (h^K := m^K)
            and so sees no token at all; none where not asked.
        copies: what the history adds to the SID levels; None of a model without a copy path.
        item_log_p: log p(a | X) of the ads of the targets by the item level, [B, n]; None where not asked.
    """

    logits: list[Tensor]
    mtp_logits: list[Tensor]
    copies: Copies | None = None
    item_log_p: Tensor | None = None


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
        self,
        config: ModelConfig,
        spec: FeatureSpec,
        *,
        level_sizes: tuple[int, ...],
        value_buckets: int,
        items: ItemSizes | None = None,
    ) -> None:
        """Build; `initialise` sets the weights that training starts with.

        Args:
            config: sizes.
            spec: context.
            level_sizes: V_1 .. V_T.
            value_buckets: V of the value level, as found in the data.
            items: of the item level; None for a model without one.
        """
        super().__init__()
        if spec.levels != len(level_sizes):
            raise ValueError(f"expected {spec.levels} SID levels (features), got level sizes {level_sizes}")
        if config.copy_path != (spec.habits > 0):
            raise ValueError(
                f"expected features.habits >= 1 with model.copy_path, and 0 without, got {spec.habits} with "
                f"copy_path {config.copy_path}"
            )
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
        self.copy_path = (
            CopyPath(spec, level_sizes=self.level_sizes, width=width) if config.copy_path else None
        )
        if (items is None) != (config.item is None):
            raise ValueError(f"expected sizes of the item level with model.item alone, got {items}")
        self.item = None
        if config.item is not None and items is not None:
            self.item = ItemHead(config.item, items, spec=spec, level_sizes=self.level_sizes)

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
        context, bias = self.context(slots[:, : self.spec.slots], profile, self.codes)
        kv = [project(context) for project in self.context_kv]
        return context, kv * self.config.layers if self.config.share_context_kv else kv, bias

    def shared_stage(self, context_kv: list[ContextKv], bias: Tensor) -> Tensor:
        """m_t^K of all levels at once, [B, 1, t, d]. No token goes in: it is computed once per request."""
        m = self.level.expand(bias.shape[0], 1, -1, -1)
        for layer, kv in zip(self.layers[: self.shared], context_kv, strict=False):
            m = layer(m, kv, bias)
        return m

    def habits(self, slots: Tensor) -> Tensor:
        """Rows of a context that only the copy path sees, int [B, H, T + 3], of all of them."""
        return slots[:, self.spec.slots :]

    def copy_logprob(self, slots: Tensor, m: Tensor) -> Tensor:
        """Mixture of model and habits, see `Copies.logprob`; for a model with a copy path.

        Args:
            slots: int [B, S + H, T + 3], slots of the history and habits.
            m: [B, t, d] of the shared stage.
        """
        assert self.copy_path is not None
        return self.copy_path(self.habits(slots), m[:, 0])

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
        """What the model says of the SIDs of n targets of each request.

        Args:
            slots: int [B, S + H, T + 3], slots of the history, then habits (H is 0 without a copy path).
            profile: int [B, P].
            tokens: int [B, n, T].
            slot_ads: int64 [B, S], ads of the slots, for the item level.
            ads: int64 [B, n], ads of the targets, for the item level.
            mtp: whether to give the logits without tokens, for which the tail runs once more.
        """
        _, context_kv, bias = self.encode(slots, profile)
        m = self.shared_stage(context_kv, bias)
        fused = self.fuse(m, self.embed_tokens(tokens))
        # The path without tokens is one more sequence beside the n targets.
        h = self.tail_stage(torch.cat([fused, m], dim=1) if mtp else fused, context_kv, bias)
        count = tokens.shape[1]  # h is [B, n + 1, t, d], or [B, n, t, d]
        levels, copies = range(1, self.levels + 2), None
        if self.copy_path is not None:
            sids = self.habits(slots)[..., : self.levels] - 1
            copies = Copies(self.copy_logprob(slots, m[:, 0]), sids)
        item_log_p = None
        if self.item is not None and slot_ads is not None and ads is not None:
            item_log_p = self.item.log_p(slots[:, : self.spec.slots], profile, slot_ads=slot_ads, ads=ads)
        return TeacherForced(
            [self.logits(h[:, :count, t - 1], t) for t in levels],
            [self.logits(h[:, -1, t - 1], t) for t in levels] if mtp else [],
            copies,
            item_log_p,
        )
