"""Whether what is bought together lies together: recall at k of neighbours against held-out baskets.

A pair counts when held-out baskets hold it at least twice and at least ten times as often as chance:

    lift(i, j) = n_ij B / (n_i n_j) >= 10

Without the lift the question is answered by naming the best-seller, which is in half of all baskets. Where
held-out baskets seldom repeat a pair, what says when to stop learning are pairs of one basket: the recall of
a handful of contents says nothing (docs/decisions.md, "What says when to stop on a sparse log"). Contents are
compared, not ads: ads of one text have one vector, and to find a copy is no merit.

Letters: B baskets, N contents, A anchors, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.sparse import csr_matrix

MIN_BASKETS = 2
MIN_LIFT = 10.0
ENOUGH = 300  # contents with a partner; a share of so many is known to .03
_BLOCK = 1024  # anchors at a time


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Pairs that held-out baskets show.

    Attributes:
        partners: ones, [N, N], symmetric; row i holds the contents that belong to content i.
        popular: int64 [N], contents by held-out baskets, the best-seller first.
    """

    partners: csr_matrix
    popular: np.ndarray

    @classmethod
    def of(cls, baskets: csr_matrix, *, min_baskets: int = MIN_BASKETS, min_lift: float = MIN_LIFT) -> Self:
        """Pairs of the baskets, ones [B, N]."""
        held = baskets.astype(np.int32)
        count = np.asarray(held.sum(axis=0)).ravel()
        pairs = (held.T @ held).tocoo()
        lift = pairs.data * held.shape[0] / (count[pairs.row].astype(np.float64) * count[pairs.col])
        kept = (pairs.row != pairs.col) & (pairs.data >= min_baskets) & (lift >= min_lift)
        entries = (np.ones(int(kept.sum()), np.uint8), (pairs.row[kept], pairs.col[kept]))
        return cls(csr_matrix(entries, shape=pairs.shape), np.argsort(-count, kind="stable"))

    @classmethod
    def to_stop_by(cls, baskets: csr_matrix) -> Self:
        """Pairs of baskets, ones [B, N]; also those of one basket where fewer than `ENOUGH` have others."""
        found = cls.of(baskets)
        return found if len(found.anchors) >= ENOUGH else cls.of(baskets, min_baskets=1)

    @property
    def anchors(self) -> np.ndarray:
        """Contents with a partner, int64 [A]."""
        return np.flatnonzero(np.diff(self.partners.indptr))


def recall_at(
    vectors: np.ndarray,
    held_out: HeldOut,
    ks: Sequence[int] = (1, 5, 10),
    *,
    anchors: np.ndarray | None = None,
) -> dict[int, float]:
    """Share of anchors with a partner among the k nearest other contents, for each k; NaN of no anchors.

    Args:
        vectors: float32 [N, D] of length 1 or 0.
        held_out: the pairs.
        ks: how many neighbours.
        anchors: int64 [A], contents to ask for; None for all that have a partner.
    """
    anchors = held_out.anchors if anchors is None else anchors
    return _recall(lambda block: _nearest(vectors, block, most=max(ks)), held_out, ks, anchors=anchors)


def best_seller_recall_at(
    held_out: HeldOut, ks: Sequence[int] = (1, 5, 10), *, anchors: np.ndarray | None = None
) -> dict[int, float]:
    """The same of the k best-sellers as everybody's neighbours: the floor that a measure must show."""
    anchors = held_out.anchors if anchors is None else anchors
    best = held_out.popular[: max(ks) + 1]

    def named(block: np.ndarray) -> np.ndarray:
        others = best[None, :] != block[:, None]  # [A, k + 1]; nobody is a neighbour of its own
        order = np.argsort(~others, axis=1, kind="stable")[:, : max(ks)]
        return best[order]

    return _recall(named, held_out, ks, anchors=anchors)


def groups(
    held_out: HeldOut, train: csr_matrix, *, kept_out: np.ndarray | None = None, few: int = 5
) -> Mapping[str, np.ndarray]:
    """Anchors by what training knew of them: `warm`, `kept out`, `few`.

    Args:
        held_out: the pairs.
        train: ones, [B, N], baskets of the training part.
        kept_out: bool [N], contents that learning was not shown the baskets of.
        few: fewer training baskets than that are `few`, whether kept out or not.
    """
    anchors = held_out.anchors
    hidden = np.zeros(train.shape[1], bool) if kept_out is None else kept_out
    rare = np.asarray(train.sum(axis=0)).ravel() < few
    return {
        "warm": anchors[~hidden[anchors] & ~rare[anchors]],
        "kept out": anchors[hidden[anchors] & ~rare[anchors]],
        "few": anchors[rare[anchors]],
    }


def _nearest(vectors: np.ndarray, block: np.ndarray, *, most: int) -> np.ndarray:
    """The nearest other contents of each of a block, the nearest first: int64 [A, most].

    Those that are equally near come in their order, whatever `most` is.
    """
    similarity = vectors[block] @ vectors.T  # [A, D] @ [D, N]
    similarity[np.arange(len(block)), block] = -np.inf
    if most == 1:
        return similarity.argmax(axis=1)[:, None]
    most = min(most, similarity.shape[1])
    last = -np.partition(-similarity, most - 1, axis=1)[:, most - 1 : most]  # [A, 1], of the last one in
    row, near = np.nonzero(similarity >= last)  # `most` of each row, and those as near as the last one
    order = np.lexsort((near, -similarity[row, near], row))
    start = np.searchsorted(row, np.arange(len(block)))
    return near[order][start[:, None] + np.arange(most)]


def _recall(
    neighbours: Callable[[np.ndarray], np.ndarray],
    held_out: HeldOut,
    ks: Sequence[int],
    *,
    anchors: np.ndarray,
) -> dict[int, float]:
    hits = dict.fromkeys(ks, 0)
    for start in range(0, len(anchors), _BLOCK):
        block = anchors[start : start + _BLOCK]
        found = neighbours(block)
        row = np.repeat(np.arange(len(block))[:, None], found.shape[1], axis=1)
        right = held_out.partners[block][row, found].toarray().astype(bool)  # [A, k]
        for k in ks:
            hits[k] += int(right[:, :k].any(axis=1).sum())
    return {k: hit / len(anchors) if len(anchors) else float("nan") for k, hit in hits.items()}
