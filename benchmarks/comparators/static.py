"""A constraint in the style of STATIC (Su et al., arXiv 2602.22647), in PyTorch, and how ours compares.

STATIC keeps the trie in tables that an accelerator reads without branching: dense masks for the first levels,
and a CSR transition matrix for the later ones, where most codes are not live. Every step masks
log-probabilities over the whole vocabulary of its level and takes the top k. Written from that idea, not from
their code.

Letters: n beams, V codes of a level, C children of the node that has most, M live SIDs, T SID levels.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from serving.index.trie import Trie
from serving.search.selection import top_k

MAX_DENSE_CELLS = 2**26  # of one level's table: 64 MB of mask and 256 MB of states
_NONE = -float("inf")

Kept = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of the kept beams, [k] each: score, beam of the level before, token, state."""


class StaticConstraint:
    """Tables of the live SIDs; a state is a prefix's position among all prefixes of its length."""

    def __init__(self, sids: np.ndarray, level_sizes: tuple[int, ...], *, dense_levels: int = 2) -> None:
        """Build the tables.

        Args:
            sids: int32 [M, T], distinct and in lexicographic order.
            level_sizes: V_1 .. V_T.
            dense_levels: levels with a dense table; fewer where prefixes x codes exceed MAX_DENSE_CELLS.
        """
        self._sizes = tuple(level_sizes)
        self._masks: list[Tensor] = []  # a dense level: bool [prefixes, V]
        self._next: list[Tensor] = []  # a dense level: int32 [prefixes, V], state after each code
        self._rows: list[tuple[Tensor, Tensor, int]] = []  # a later level: codes, row pointers, C
        begins = np.arange(len(sids)) == 0  # [M] rows at which a prefix begins
        state = np.zeros(len(sids), np.int64)  # [M] position of each row's prefix
        for level, size in enumerate(level_sizes):
            begins[1:] |= sids[1:, level] != sids[:-1, level]
            above, codes = state[begins], sids[begins, level]  # [prefixes that are one code longer]
            state = np.cumsum(begins) - 1
            prefixes = int(above[-1]) + 1
            if level == len(self._masks) < dense_levels and prefixes * size <= MAX_DENSE_CELLS:
                table = np.full((prefixes, size), -1, np.int32)
                table[above, codes] = np.arange(len(codes))
                self._next.append(torch.from_numpy(table))
                self._masks.append(torch.from_numpy(table >= 0))
            else:
                ptr = np.searchsorted(above, np.arange(prefixes + 1))
                # The longest row reads past no end.
                padded = np.append(codes, np.zeros(np.diff(ptr).max(), codes.dtype))
                self._rows.append((torch.from_numpy(padded), torch.from_numpy(ptr), int(np.diff(ptr).max())))

    @property
    def dense_levels(self) -> int:
        """Levels that have a dense table."""
        return len(self._masks)

    def step(self, level: int, logprob: Tensor, *, states: Tensor, scores: Tensor, k: int) -> Kept:
        """Extend n beams by the code of `level` and keep the best k.

        Shapes do not depend on the catalogue: where fewer than k continuations are live, the rest of the
        result has score -inf and is to be ignored.

        Args:
            level: 0 .. T - 1.
            logprob: float32 [n, V] over all codes of the level; the first level has n = 1 beam.
            states: int64 [n]; the first level has state 0.
            scores: float32 [n], log-probability of each beam so far.
            k: beams to keep, at most n * V.
        """
        size = self._sizes[level]
        if level < self.dense_levels:
            masked = logprob.masked_fill(~self._masks[level][states], _NONE)
        else:
            codes, ptr, widest = self._rows[level - self.dense_levels]
            start = ptr[states]
            offset = torch.arange(widest)
            children = codes[start[:, None] + offset].long()  # [n, C]
            # What is not a child goes to a column that is cut off.
            children = torch.where(offset < (ptr[states + 1] - start)[:, None], children, size)
            picked = logprob.gather(1, children.clamp(max=size - 1))
            masked = logprob.new_full((len(logprob), size + 1), _NONE).scatter_(1, children, picked)[:, :size]
        total, flat = (scores[:, None] + masked).flatten().topk(k)  # [n * V] to [k]
        parent, token = flat // size, flat % size
        if level < self.dense_levels:
            after = self._next[level][states[parent], token].long().clamp(min=0)
        else:
            after = start[parent] + (children[parent] == token[:, None]).int().argmax(1)
        return total, parent, token, after


def search_static(
    constraint: StaticConstraint, logprobs: list[Tensor], widths: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Whole search over given log-probs, [n, V] a level: sids int64 [k, T] and scores float32 [k]."""
    scores, states = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    sids = torch.zeros(1, 0, dtype=torch.int64)
    for level, (logprob, width) in enumerate(zip(logprobs, widths, strict=True)):
        n = len(scores)
        scores, parent, token, states = constraint.step(
            level, logprob[:n], states=states, scores=scores, k=min(width, n * logprob.shape[1])
        )
        sids = torch.cat([sids[parent], token[:, None]], dim=1)
    live = scores > _NONE
    return sids[live].numpy(), scores[live].numpy()


def search_ours(
    trie: Trie, logprobs: list[np.ndarray], widths: tuple[int, ...], *, ties: list[bool] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The same search with the parts that serve; `ties` gets, a level, whether equal scores competed."""
    nodes, scores = np.full((1, 1), -1), np.zeros((1, 1), np.float32)
    sids = np.zeros((1, 0), np.int64)
    for level, (logprob, width) in enumerate(zip(logprobs, widths, strict=True)):
        if level == 0:
            allowed, first = trie.codes[0][None, None], np.zeros((1, 1), np.int32)
        else:
            allowed, first = trie.children(level, nodes)  # [1, n, C], [1, n]
        picked = np.take_along_axis(logprob[None, : allowed.shape[1]], np.maximum(allowed, 0), 2)
        flat = np.where(allowed >= 0, scores[:, :, None] + picked, np.float32(_NONE)).reshape(1, -1)
        kept = top_k(flat, width)
        kept = kept[kept >= 0][None]  # [1, k]
        parent, child = np.divmod(kept, allowed.shape[2])
        scores = np.take_along_axis(flat, kept, 1)
        nodes = np.take_along_axis(first, parent, 1) + child
        sids = np.concatenate([sids[parent[0]], allowed[0, parent[0], child[0]][:, None]], axis=1)
        if ties is not None:
            ties.append(bool((flat >= scores.min()).sum() > len(np.unique(scores))))
    return sids, scores[0]


def compare(
    trie: Trie,
    constraint: StaticConstraint,
    *,
    level_sizes: tuple[int, ...],
    widths: tuple[int, ...],
    repeats: int,
    seed: int,
) -> dict[str, list[float]]:
    """Seconds of the constraint's part of a request: {"ours": [repeats], "static": [repeats]}, interleaved.

    Both get the same log-probabilities over whole vocabularies; random ones, new for each repeat. Ours is
    NumPy in one thread, STATIC has the threads of PyTorch.

    Raises:
        AssertionError: they do not find the same SIDs with the same scores.
    """
    random = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {"ours": [], "static": []}
    warm_up = 2
    while len(seconds["ours"]) < repeats:
        beams = (1, *widths[:-1])
        logits = [random.standard_normal((n, v), np.float32) for n, v in zip(beams, level_sizes, strict=True)]
        tensors = [torch.from_numpy(x).log_softmax(-1) for x in logits]
        arrays = [x.numpy() for x in tensors]
        ties: list[bool] = []
        expected_sids, expected = search_ours(trie, arrays, widths, ties=ties)
        if any(ties):
            continue  # with equal scores either answer is right
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in random.permutation(["ours", "static"]):
            began = time.perf_counter()
            if name == "ours":
                found[name] = search_ours(trie, arrays, widths)
            else:
                found[name] = search_static(constraint, tensors, widths)
            seconds[name].append(time.perf_counter() - began)
        for name, (sids, scores) in found.items():
            if not (np.array_equal(sids, expected_sids) and np.array_equal(scores, expected)):
                raise AssertionError(f"{name}: expected the same SIDs and scores, got {len(sids)} others")
        if warm_up:
            warm_up -= 1
            seconds = {name: [] for name in seconds}
    return seconds
