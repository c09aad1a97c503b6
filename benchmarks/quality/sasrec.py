"""The control: SASRec (Kang and McAuley, arXiv 1808.09781), self-attention over items, trained by a softmax.

    h_i = LayerNorm(block(dropout(d^.5 e(x_1) + p_1, .., d^.5 e(x_i) + p_i)))_i,   score(i, y) = h_i . e(y)

The paper trains with one negative of an item and binary cross-entropy, which is where weak figures of SASRec
come from. Here the loss is a softmax over the item that follows and items that are drawn for a whole batch;
with as many of them as there are items it is the full softmax. Items are 1 .. N, 0 is padding.

Letters: B users, L items of the longest history, N items, C candidates, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.preset.loop import TrainingPrecision


@dataclass(frozen=True, kw_only=True)
class SasRecConfig:
    """Sizes, and how it is trained.

    Attributes:
        width: d.
        blocks: of self-attention and feed-forward.
        heads: of attention; divides `width`.
        length: newest items of a history that count.
        dropout: of embeddings, attention and both branches of a block.
        learning_rate: of Adam.
        batch_size: users a step; each gives a target for every item but its first.
        negatives: items drawn for each step; all N, a full softmax, where there are no more.
        epochs: at most.
        patience: epochs in a row without a better NDCG@10 of the validation items after which it ends.
        precision: fp32, or bf16: products in bfloat16 (autocast) where that is faster.
    """

    width: int = 128
    blocks: int = 1
    heads: int = 2
    length: int = 50
    dropout: float = 0.4
    learning_rate: float = 1e-3
    batch_size: int = 128
    negatives: int = 2048
    epochs: int = 40
    patience: int = 4
    precision: TrainingPrecision = "fp32"


class SasRec(nn.Module):
    """Item and position embeddings, causal transformer blocks; scores are products with the same items."""

    def __init__(self, config: SasRecConfig, *, items: int) -> None:
        """For items 1 .. `items`; weights come from torch's global generator."""
        super().__init__()
        self.item = nn.Embedding(items + 1, config.width, padding_idx=0)
        self.position = nn.Parameter(torch.zeros(config.length, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.heads,
                dim_feedforward=config.width,
                dropout=config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.width)
        for weight in (self.item.weight, self.position):
            nn.init.normal_(weight, std=0.02)
        with torch.no_grad():
            self.item.weight[0] = 0

    def forward(self, history: Tensor) -> Tensor:
        """State after each item, [B, L, d]; a padded place has any.

        Args:
            history: int [B, L], oldest first, 0 behind a shorter one, where no item before it looks.
        """
        length = history.shape[1]
        # Counted from the newest item of each history, as in the paper, whose padding is in front.
        back = (history > 0).flip(1).cumsum(1).flip(1).clamp(min=1) - 1  # [B, L]
        # As in the paper, where items outweigh positions at first.
        x = self.dropout(self.item(history) * self.item.embedding_dim**0.5 + self.position[back])
        mask = torch.full((length, length), -torch.inf).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.norm(x)


def softmax_loss(states: Tensor, target: Tensor, *, items: Tensor, candidates: Tensor) -> Tensor:
    """Mean over M targets of -log p(target); the sum over all other items is estimated from the candidates.

    Drawn evenly, C of N - 1 items stand for (N - 1) / C each; without that factor a target is likely far too
    soon, and what it should be told apart from gets no gradient.

    Args:
        states: [M, d].
        target: int [M], items.
        items: embeddings [N + 1, d].
        candidates: int [C], distinct items; the target itself, where it is one of them, is left out.
    """
    positive = (states * items[target]).sum(-1).float()
    negative = (states @ items[candidates].T).float()
    place = torch.full((len(items),), -1).index_put((candidates,), torch.arange(len(candidates)))[target]
    rows = (place >= 0).nonzero()[:, 0]
    negative[rows, place[rows]] = -torch.inf
    drawn = len(candidates) - (place >= 0).float()
    others = negative.logsumexp(1) + ((len(items) - 2) / drawn).log()
    return (torch.logaddexp(others, positive) - positive).mean()
