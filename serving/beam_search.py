"""Constrained beam search over live semantic IDs, batched over requests, a width for every level.

Letters: B requests, n beams, C children of the beam that has most, V codes of a level, T SID levels, M live
SIDs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.executor import Executor
from serving.index.trie import Trie
from serving.widths import WidthPlan

_FLOOR = -1e30  # a live child's score is never below it, so -inf always means "not a candidate"


@dataclass(frozen=True)
class Beams:
    """Result of a search, best first.

    Attributes:
        sids: int32 [B, n, T]; -1 where a request has fewer than n beams.
        leaves: int32 [B, n] leaf of the trie; -1 is padding.
        scores: float32 [B, n], log p(s_1 .. s_T | X); -inf is padding.
        expected_value: float32 [B, n], mean eCPM under p(v | y, X); NaN beyond the value width and in
            padding.
        widths: int32 [T + 1], beams that each level and the value level really held.
    """

    sids: np.ndarray
    leaves: np.ndarray
    scores: np.ndarray
    expected_value: np.ndarray
    widths: np.ndarray


def beam_search(
    executor: Executor,
    trie: Trie,
    slots: np.ndarray,
    profile: np.ndarray,
    *,
    plan: WidthPlan,
    num_results: np.ndarray,
    value_table: np.ndarray,
    banned: list[np.ndarray] | None = None,
) -> Beams:
    """Find the SIDs of highest probability for each request.

    Every request gets at least min(num_results, live SIDs that are not banned) beams: a level keeps more than
    its width where the kept prefixes would not lead to that many.

    Args:
        executor: engine.
        trie: live SIDs.
        slots: int32 [B, S, T + 3].
        profile: int32 [B, P].
        plan: widths.
        num_results: int [B], beams wanted of each request.
        value_table: float32 [V_value], mean eCPM of each value bucket.
        banned: for each request, sorted leaves that must not be returned.
    """
    batch, levels = len(slots), trie.levels
    if trie.leaves == 0:
        return _empty(batch, levels)
    bans = np.array([len(b) for b in banned]) if banned is not None else np.zeros(batch, np.int64)
    needed = np.maximum(num_results, 1) + bans  # [B] leaves that kept prefixes must lead to

    logprob, carry = executor.prefix(slots, profile)  # [B, V_1]
    # [B, root children]
    candidates = np.maximum(np.nan_to_num(logprob[:, trie.codes[0]], nan=_FLOOR), _FLOOR)
    if levels == 1 and banned is not None:
        _ban(candidates, np.broadcast_to(np.arange(candidates.shape[1]), candidates.shape), banned)
    nodes, scores = _keep(candidates, trie, 0, _width(plan, 0, levels, num_results), needed)
    chain: list[np.ndarray] = []  # node of each beam at every level so far, realigned as beams are reordered
    parents: list[np.ndarray] = []  # parents[j - 2]: beam of level j that each beam descends from
    widths = [nodes.shape[1]]

    for t in range(1, levels):
        allowed, first = trie.children(t, nodes)  # [B, n, C], [B, n]
        token = trie.codes[t - 1][np.maximum(nodes, 0)]  # [B, n]
        logprob, carry = executor.tail(t + 1, carry, parents=parents, token=token, allowed=allowed)
        logprob = np.maximum(np.nan_to_num(logprob, nan=_FLOOR), _FLOOR)
        candidates = np.where(allowed >= 0, scores[:, :, None] + logprob, -np.inf)  # [B, n, C]
        width = allowed.shape[2]
        flat = candidates.reshape(batch, -1)  # [B, n * C]
        child = first[:, :, None] + np.arange(width, dtype=np.int32)  # [B, n, C] node ids
        if t == levels - 1 and banned is not None:
            _ban(flat, child.reshape(batch, -1), banned)
        kept, scores = _keep(
            flat, trie, t, _width(plan, t, levels, num_results), needed, nodes=child.reshape(batch, -1)
        )
        parent = np.maximum(kept, 0) // width  # [B, n'] beam of the level before
        chain = [np.take_along_axis(c, parent, 1) for c in [*chain, nodes]]
        parents = [np.take_along_axis(p, parent, 1) for p in parents] + [parent.astype(np.int32)]
        nodes = np.where(kept >= 0, np.take_along_axis(child.reshape(batch, -1), np.maximum(kept, 0), 1), -1)
        widths.append(nodes.shape[1])

    sids = np.where(nodes[..., None] >= 0, trie.sids(levels - 1, nodes, parents=chain), -1)
    count = min(nodes.shape[1], max(plan.value, int(num_results.max(initial=1))))
    value = np.full(nodes.shape, np.nan, np.float32)
    allowed = np.broadcast_to(np.arange(len(value_table), dtype=np.int32), (batch, count, len(value_table)))
    logprob, _ = executor.tail(
        levels + 1,
        carry,
        parents=[np.ascontiguousarray(p[:, :count]) for p in parents],
        token=np.maximum(sids[:, :count, -1], 0),
        allowed=np.ascontiguousarray(allowed),
    )
    value[:, :count] = np.exp(logprob) @ value_table
    value[nodes < 0] = np.nan
    return Beams(sids, nodes.astype(np.int32), scores, value, np.array([*widths, count], np.int32))


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest of each row [B, m], largest first, equals by position; -1 for -inf."""
    k = min(k, scores.shape[1])
    if k < scores.shape[1]:
        picked = np.sort(np.argpartition(scores, -k, axis=1)[:, -k:], axis=1)
        bound = np.take_along_axis(scores, picked, 1).min(axis=1, keepdims=True)
        # argpartition picks any of several candidates equal to the k-th: let position decide.
        for row in np.flatnonzero(((scores >= bound).sum(axis=1) > k) & (bound[:, 0] > -np.inf)):
            picked[row] = np.sort(np.argsort(-scores[row], kind="stable")[:k])
    else:
        picked = np.broadcast_to(np.arange(k), (len(scores), k))
    values = np.take_along_axis(scores, picked, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    picked, values = np.take_along_axis(picked, order, 1), np.take_along_axis(values, order, 1)
    return np.where(values > -np.inf, picked, -1)


def _keep(
    scores: np.ndarray,
    trie: Trie,
    level: int,
    width: int,
    needed: np.ndarray,
    *,
    nodes: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Best `width` candidates [B, m] a request, more where they lead to too few leaves: positions, scores."""
    kept = top_k(scores, width)
    if level < trie.levels - 1:

        def leaves(positions: np.ndarray) -> np.ndarray:
            at = np.maximum(positions, 0)
            ids = at if nodes is None else np.take_along_axis(nodes, at, 1)
            return trie.leaf_counts(level, np.where(positions >= 0, ids, -1))

        if (leaves(kept).sum(axis=1) < needed).any():
            # Every prefix leads to a live SID, so `needed` prefixes are always enough.
            kept = top_k(scores, max(width, int(needed.max())))
            count = leaves(kept)
            before = np.cumsum(count, axis=1) - count
            kept = np.where((np.arange(kept.shape[1]) < width) | (before < needed[:, None]), kept, -1)
    kept = kept[:, : max(int((kept >= 0).sum(axis=1).max()), 1)]
    values = np.take_along_axis(scores, np.maximum(kept, 0), 1)
    return kept, np.where(kept >= 0, values, -np.inf).astype(np.float32)


def _width(plan: WidthPlan, level: int, levels: int, num_results: np.ndarray) -> int:
    width = plan.sid[level]
    return max(width, int(num_results.max(initial=1))) if level == levels - 1 else width


def _ban(scores: np.ndarray, leaves: np.ndarray, banned: list[np.ndarray]) -> None:
    for row, ban in enumerate(banned):
        if len(ban):
            scores[row, np.isin(leaves[row], ban)] = -np.inf


def _empty(batch: int, levels: int) -> Beams:
    return Beams(
        np.zeros((batch, 0, levels), np.int32),
        np.zeros((batch, 0), np.int32),
        np.zeros((batch, 0), np.float32),
        np.zeros((batch, 0), np.float32),
        np.zeros(levels + 1, np.int32),
    )
