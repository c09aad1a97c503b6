"""Does an embedder lay together what is bought together? R@k by what it was shown, and the best-seller's.

Two fits: one as it would be used, which `warm` and `few` are asked of, and one that was not shown the baskets
of some contents, which `kept out` is asked of. See `cooccurrence.held_out` for what counts as a pair.

Letters: B baskets, N contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, diags

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.cooccurrence.held_out import HeldOut, best_seller_recall_at, groups, recall_at
from training.tokenizer.cooccurrence.positives import find_positives
from training.tokenizer.embedders import embedder_of
from training.tokenizer.embedders.base import Embedder

KEPT_OUT = 0.1  # share of the contents
KS = (1, 5, 10)


@dataclass(frozen=True)
class GroupRecall:
    """Recall of one group of anchors.

    Attributes:
        anchors: how many.
        recall: R@k by k.
        best_seller: R@k of naming the best-sellers, by k.
    """

    anchors: int
    recall: dict[int, float]
    best_seller: dict[int, float]


def group_recall(
    content: Any,
    config: TokenizerConfig,
    *,
    train: csr_matrix,
    later: csr_matrix,
    kept_out: float = KEPT_OUT,
    ks: Sequence[int] = KS,
) -> dict[str, GroupRecall]:
    """R@k of the embedder of `config` for the groups `warm`, `kept out` and `few`.

    Args:
        content: of N ads, as the embedder takes it.
        config: of the tokenizer; its seed also draws who is kept out.
        train: ones, [B, N], baskets to learn from, in the order of time.
        later: ones, [B', N], baskets to judge by.
        kept_out: share of the contents whose baskets the second fit is not shown.
        ks: how many neighbours.
    """
    held_out = HeldOut.of(later)
    hidden = np.random.default_rng(config.seed).random(train.shape[1]) < kept_out
    asked = groups(held_out, train)
    found = {}
    for baskets, names in ((train, ("warm", "few")), (without(train, hidden), ("kept out",))):
        vectors = fit_embedder(content, config, baskets).embed(content)
        if names == ("kept out",):
            asked = groups(held_out, train, kept_out=hidden)
        for name in names:
            anchors = asked[name]
            found[name] = GroupRecall(
                len(anchors),
                recall_at(vectors, held_out, ks, anchors=anchors),
                best_seller_recall_at(held_out, ks, anchors=anchors),
            )
    return found


def fit_embedder(content: Any, config: TokenizerConfig, baskets: csr_matrix) -> Embedder:
    """The embedder of `config` on N contents and their baskets, ones [B, N], in the order of time."""
    positives = find_positives(baskets, settings=config.cooccurrence) if config.learns_from_baskets else None
    return embedder_of(config).fit(content, config, positives=positives)


def without(baskets: csr_matrix, hidden: np.ndarray) -> csr_matrix:
    """The baskets without some contents, bool [N]."""
    left = (baskets @ diags((~hidden).astype(np.uint8), dtype=np.uint8)).tocsr()
    left.eliminate_zeros()
    return left
