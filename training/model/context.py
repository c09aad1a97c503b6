"""Context processor: profile and behavior sequences to context slots X (linear, in the style of OneRec-V2).

`SlotEmbeddings` is what is known of a slot besides what was in it; the item level has its own.

Letters: B requests, S history slots, T SID levels, P columns of the profile and of the request, d width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from serving.model.features import BEHAVIORS, FeatureSpec

EMPTY_SLOT_BIAS = -1e4  # finite, so that half precision and a softmax over it stay finite


class CodeEmbeddings(nn.Module):
    """One table a SID level; row 0 is padding, row c + 1 is code c. Shared by context, decoder and heads."""

    def __init__(self, level_sizes: tuple[int, ...], width: int) -> None:
        """Make a table of V_t + 1 rows for each level."""
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size + 1, width, padding_idx=0) for size in level_sizes)

    def table(self, level: int) -> nn.Embedding:
        """Table of SID level `level` = 1 .. T."""
        return cast(nn.Embedding, self.tables[level - 1])


class SlotEmbeddings(nn.Module):
    """Behavior + gap + count + slot of each event, a learned user slot, and the columns of the profile.

    Slot 0 is the user's and never empty, so a cold-start user has a context too.
    """

    def __init__(self, spec: FeatureSpec, *, width: int) -> None:
        """Tables of rows of `width` numbers."""
        super().__init__()
        self.spec = spec
        self.behavior = nn.Embedding(len(BEHAVIORS) + 1, width)
        self.gap = nn.Embedding(spec.gap_buckets, width)
        self.count = nn.Embedding(spec.count_buckets, width)
        self.slot = nn.Parameter(torch.zeros(spec.slots, width))
        self.profile = nn.ModuleList(nn.Embedding(size, width) for size in spec.column_sizes)
        self.user = nn.Parameter(torch.zeros(1, 1, width))

    @property
    def slots(self) -> int:
        """Context slots: one user slot, one a column, the history slots."""
        return 1 + len(self.profile) + self.spec.slots

    def with_contents(
        self, slots: Tensor, profile: Tensor, contents: Iterable[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What is known of each slot, and what is in it; and the bias.

        Args:
            slots: int [B, S, T + 3].
            profile: int [B, P].
            contents: [B, S, d] each, added to the history slots; of empty ones anything finite.

        Returns:
            [B, 1 + P + S, d] and bias [B, 1 + P + S] (0, or EMPTY_SLOT_BIAS on empty slots).
        """
        levels = self.spec.levels
        history = (
            self.slot
            + self.behavior(slots[..., levels])
            + self.gap(slots[..., levels + 1])
            + self.count(slots[..., levels + 2])
        )
        for content in contents:
            history = history + content  # [B, S, d]
        user = self.user.expand(slots.shape[0], 1, -1)
        columns = [table(profile[:, i])[:, None] for i, table in enumerate(self.profile)]
        context = torch.cat([user, *columns, history], dim=1)
        empty = (slots[..., levels] == 0).to(context.dtype) * EMPTY_SLOT_BIAS  # [B, S]
        bias = torch.cat([torch.zeros_like(context[:, : 1 + len(columns), 0]), empty], dim=1)
        return context, bias


class ContextProcessor(SlotEmbeddings):
    """Sums of embeddings, normalised; the linear part is the projection to keys and values that follows.

    X = LayerNorm(sum of the codes' embeddings + behavior + gap + count + slot) is used by cross-attention
    only.
    """

    def __init__(self, spec: FeatureSpec, *, width: int, dropout: float = 0.0) -> None:
        """The code embeddings come with each call: they belong to the generator."""
        super().__init__(spec, width=width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, slots: Tensor, profile: Tensor, codes: CodeEmbeddings) -> tuple[Tensor, Tensor]:
        """X and its bias.

        Args:
            slots: int [B, S, T + 3].
            profile: int [B, P].
            codes: embeddings of the SID codes.

        Returns:
            X [B, 1 + P + S, d] and bias [B, 1 + P + S] (0, or EMPTY_SLOT_BIAS on empty slots).
        """
        of_codes = (table(slots[..., t]) for t, table in enumerate(codes.tables))
        context, bias = self.with_contents(slots, profile, of_codes)
        return self.dropout(self.norm(context)), bias
