"""The tree of prefixes in words: which ads share a code, and what sets them apart from the others.

Letters: A ads, W words, K codes of a level.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

_WORD = re.compile(r"[^\W\d_]{3,}")  # numbers and units say little about a cluster


@dataclass(frozen=True)
class Node:
    """Ads that share their codes up to a level.

    Attributes:
        codes: up to the level.
        ads: how many.
        words: what sets their texts apart, the strongest first.
        texts: the most frequent texts, each with its number of ads.
        children: nodes one level below, the largest first.
    """

    codes: tuple[int, ...]
    ads: int
    words: tuple[str, ...]
    texts: tuple[tuple[str, int], ...]
    children: tuple[Node, ...] = ()


class Words:
    """Which words the texts of ads hold."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Of A texts."""
        self._texts = np.asarray(texts, dtype=object)
        distinct, self._of = np.unique(self._texts.astype(str), return_inverse=True)
        found = [sorted(set(_WORD.findall(text.lower()))) for text in distinct]
        self._names = sorted({word for words in found for word in words})
        column = {word: i for i, word in enumerate(self._names)}
        flat = np.array([column[word] for words in found for word in words], np.int64)
        row = np.repeat(np.arange(len(distinct)), [len(words) for words in found])
        shape = (len(distinct), len(self._names))
        self._has = csr_matrix((np.ones(len(flat)), (row, flat)), shape=shape)  # [texts, W]
        self._share = self._counts(np.arange(len(self._texts))) / max(len(self._texts), 1)

    def _counts(self, rows: np.ndarray) -> np.ndarray:
        copies = np.bincount(self._of[rows], minlength=self._has.shape[0])
        return self._has.T @ copies  # [W], ads with each word

    def typical(self, rows: np.ndarray, *, count: int = 3) -> tuple[str, ...]:
        """Words of these ads by p log(p / q), p their share of the ads that hold one, q that of all ads."""
        if not self._names or not len(rows):
            return ()
        share = self._counts(rows) / len(rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = np.where(share > 0, share * np.log(share / self._share), 0.0)
        best = np.argsort(-weight, kind="stable")[:count]
        return tuple(self._names[i] for i in best if weight[i] > 0)

    def frequent(self, rows: np.ndarray, *, count: int) -> tuple[tuple[str, int], ...]:
        """Their most frequent texts, with how many of the ads have each."""
        texts, copies = np.unique(self._texts[rows].astype(str), return_counts=True)
        best = np.argsort(-copies, kind="stable")[:count]
        return tuple((str(texts[i]), int(copies[i])) for i in best)


def grow(
    codes: np.ndarray, words: Words, *, first: Sequence[int], children: int = 6, texts: int = 4
) -> list[Node]:
    """Nodes of some codes of the first level, each with its largest children.

    Args:
        codes: int [A, L], hash level left out.
        words: of the A texts.
        first: codes of level 1; one that no ad has is left out.
        children: most of a node.
        texts: most of a node.
    """
    return [
        _node(np.flatnonzero(codes[:, 0] == code), codes, words, depth=1, children=children, texts=texts)
        for code in first
        if (codes[:, 0] == code).any()
    ]


def _node(
    rows: np.ndarray, codes: np.ndarray, words: Words, *, depth: int, children: int, texts: int
) -> Node:
    below: tuple[Node, ...] = ()
    if depth < codes.shape[1]:
        next_codes, counts = np.unique(codes[rows, depth], return_counts=True)
        largest = next_codes[np.argsort(-counts, kind="stable")[:children]]
        below = tuple(
            _node(
                rows[codes[rows, depth] == code],
                codes,
                words,
                depth=depth + 1,
                children=children,
                texts=texts,
            )
            for code in largest
        )
    return Node(
        codes=tuple(int(code) for code in codes[rows[0], :depth]),
        ads=len(rows),
        words=words.typical(rows),
        texts=words.frequent(rows, count=texts),
        children=below,
    )


def spread_codes(codes: np.ndarray, *, count: int) -> list[int]:
    """Codes of a column from the one with most ads to the one with fewest, evenly over the ranks."""
    found, ads = np.unique(codes, return_counts=True)
    ranked = found[np.argsort(-ads, kind="stable")]
    places = np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))
    return [int(ranked[place]) for place in places]
