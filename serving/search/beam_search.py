"""Constrained beam search over live semantic IDs, batched over requests, a width for every level.

begin -> expand, once a level -> value. Letters: B requests, n beams, C children of the beam that has most, V
codes of a level, T SID levels, t a level, counted from 0 here and from 1 by the graphs and their tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from serving.index.eligible import Eligible
from serving.index.rows import take_rows
from serving.index.trie import PrefixTree
from serving.model.value_correction import UNCORRECTED, ValueCorrection
from serving.search.beams import Beams
from serving.search.bound import SPARE, Bound, narrow_widths, settled_by_worth, valued_first
from serving.search.cold_start import ColdStart
from serving.search.copy_path import CopyBeams
from serving.search.executor import COPY_LOGPROB, Carry, Executor
from serving.search.forced import ForcedMoves
from serving.search.normalise import Normalise, over_live
from serving.search.remembered import RememberedTails
from serving.search.selection import ban, keep, leaves_below, only
from serving.search.state import Frontier, Search, Start
from serving.search.widths import WidthPlan

_FLOOR = np.float32(-1e30)  # a live child's score is never below it, so -inf always means "not a candidate"


def beam_search(
    executor: Executor,
    trie: PrefixTree,
    slots: np.ndarray,
    profile: np.ndarray,
    *,
    plan: WidthPlan,
    num_results: np.ndarray,
    value_table: np.ndarray,
    pool: np.ndarray | None = None,
    by_value: bool = False,
    banned: list[np.ndarray] | None = None,
    eligible: list[Eligible | None] | None = None,
    normalise: tuple[Normalise, ...] | None = None,
    cold_start: ColdStart | None = None,
    value_correction: ValueCorrection = UNCORRECTED,
) -> Beams:
    """Find the SIDs of highest probability for each request.

    Every request gets at least min(num_results, SIDs that are eligible and not banned) beams: a level keeps
    more than its width where the kept prefixes would not lead to that many. Its beams, and which of them have
    a value, are those of a search of its own, so that no ranking depends on who shares a batch.

    Args:
        executor: engine.
        trie: live SIDs.
        slots: int32 [B, S, T + 3].
        profile: int32 [B, P].
        plan: widths.
        num_results: int [B], beams wanted of each request.
        value_table: float32 [V_value], mean eCPM of each value bucket.
        pool: int [B], at least `num_results`: how many of the best beams an answer is made of. Given, beams
            that cannot be among them are left out (`serving.search.bound`): so many come back as they would
            without, with values, and a few behind them. Not used with one level, which has nothing to leave
            out, nor with a copy path where levels behind the first are live.
        by_value: an answer is made of the `num_results` of the pool that are worth most (p x value).
        banned: for each request, sorted leaves that must not be returned.
        eligible: for each request, what may be returned (None: all that is live). No score changes by it.
        normalise: a level each, "codebook" for all where left out; see also `serving.search.forced`.
        cold_start: what SIDs get that the model was not trained on. Not used with one level, without prefix.
        value_correction: of expected values.
    """
    if trie.leaves == 0:
        return Beams.none(len(slots), levels=trie.levels)
    prefix = executor.prefix(slots, profile)
    live = tuple(n == "live" for n in normalise or ("codebook",) * trie.levels)
    pruned = pool is not None and trie.levels > 1 and not (COPY_LOGPROB in prefix[1] and any(live[1:]))
    own = np.maximum(num_results if pool is None or not pruned else pool, 1)
    most = int(own.max(initial=1))
    num_values = most if pruned else max(plan.value, most)
    bans = np.array([len(b) for b in banned]) if banned is not None else np.zeros(len(slots), np.int64)
    search = Search(
        executor=executor,
        trie=trie,
        widths=(*plan.sid[:-1], most + SPARE if pruned else max(plan.sid[-1], most)),
        num_values=num_values,
        own_beams=own + SPARE if pruned else np.maximum(own, plan.sid[-1]),
        own_values=own if pruned else np.maximum(own, plan.value),
        needed=np.maximum(num_results, 1) + bans,
        banned=banned if banned is not None and bans.any() else None,
        eligible=eligible,
        most_banned=int(bans.max(initial=0)),
        live=live,
        tails=ForcedMoves(executor, trie, live=live, num_values=num_values),
        cold_start=cold_start,
    )
    values = partial(_value, value_table=value_table, correction=value_correction)
    start = _begin(search, *prefix, slots=slots)
    if not pruned:
        return values(search, _search(search, start))
    search = replace(search, tails=RememberedTails(executor))
    if by_value and settled_by_worth(own, num_results):
        top_value = float(value_correction.of(value_table).max())
        bound = _bound_of_worth(search, start, count=num_results, values=values, top_value=top_value)
    else:
        bound = _bound_of_scores(search, start, pool=own)
    beams = values(search, _search(replace(search, bound=bound), start))
    return replace(beams, widths=np.array([*plan.sid, plan.value], np.int32))


def _bound_of_scores(search: Search, start: Start, *, pool: np.ndarray) -> Bound:
    """By a narrow search, down to `pool` SIDs of each request."""
    widths = narrow_widths(search.widths, pool=int(pool.max()))
    found = _search(replace(search, widths=widths, needed=pool), start)
    return Bound.of(found.scores, paths=found.ancestors, pool=pool)


def _bound_of_worth(
    search: Search,
    start: Start,
    *,
    count: np.ndarray,
    values: Callable[[Search, Frontier], Beams],
    top_value: float,
) -> Bound:
    """By a narrow search, down to the values of a few more than `count` SIDs of each request."""
    most = valued_first(int(count.max()))
    every = np.full(len(count), most)
    widths = narrow_widths(search.widths, pool=most)
    narrow = replace(search, widths=widths, needed=count, num_values=most, own_values=every, own_beams=every)
    found = _search(narrow, start)
    return Bound.of_worth(values(narrow, found), paths=found.ancestors, count=count, top_value=top_value)


def _search(search: Search, start: Start) -> Frontier:
    """All SID levels, from what the prefix graph returned."""
    beams = _first(search, start)
    for t in range(1, search.trie.levels):
        beams = _expand(search, t, beams)
    return beams


def _begin(search: Search, logprob: np.ndarray, carry: Carry, *, slots: np.ndarray) -> Start:
    """Level 0, scored: the codes that a SID can begin with, from float32 [B, V] of all codes."""
    codes, roots = search.trie.roots
    candidates, mixed = np.fmax(logprob[:, codes], _FLOOR), None  # [B, R]
    batch = len(candidates)
    if COPY_LOGPROB in carry:
        copies = CopyBeams.start(carry[COPY_LOGPROB], slots, trie=search.trie)
        allowed = np.broadcast_to(codes, (batch, 1, len(codes)))
        mixed = copies.mix(0, candidates[:, None], allowed=allowed)
        candidates = mixed.logprob[:, 0]
    if search.live[0]:
        candidates = over_live(candidates)
    candidates = only(candidates, 0, eligible=search.eligible, nodes=lambda: [roots] * batch)
    order, left = None, search.trie.levels - 1
    if mixed is not None and left:
        order = mixed.favour(candidates[:, None], levels=left)[:, 0]
    return Start(candidates, order, mixed, carry)


def _first(search: Search, start: Start) -> Frontier:
    """Level 0: keep the best."""
    _, roots = search.trie.roots
    at, nodes, scores = _survivors(
        search, 0, start.candidates, order=start.order, bound=search.bound, nodes_at=roots.take
    )
    return Frontier(
        nodes,
        scores,
        start.carry,
        ancestors=[],
        parents=[],
        widths=[nodes.shape[1]],
        copies=None if start.mixed is None else start.mixed.follow(at, kept=nodes >= 0),
        bound=search.bound and search.bound.after(0, nodes),
    )


def _expand(search: Search, t: int, beams: Frontier) -> Frontier:
    """Level t: score the live children of every beam, keep the best of them all."""
    children = search.trie.children(t, beams.nodes)
    logprob, row, carry = search.tails.tail(  # [B, n, C], [B, n]
        t,
        beams.carry,
        nodes=beams.nodes,
        parents=beams.parents,
        token=search.trie.code(t - 1, beams.nodes),  # [B, n]
        allowed=children.allowed,
    )
    logprob = np.where(children.allowed >= 0, np.fmax(logprob, _FLOOR), -np.inf)
    mixed = None
    if beams.copies is not None:
        mixed = beams.copies.mix(t, logprob, allowed=children.allowed)
        logprob = mixed.logprob
    if search.live[t]:
        logprob = over_live(logprob)
    candidates = beams.scores[:, :, None] + logprob
    candidates = only(candidates, t, eligible=search.eligible, nodes=children.every)
    if search.cold_start and t == search.trie.levels - 1:
        candidates = search.cold_start.lift(
            candidates,
            scores=beams.scores,
            prefixes=search.trie.sids(t - 1, beams.nodes, parents=beams.ancestors),
            codes=children.allowed,
            within=search.widths[t] + search.most_banned,
        )
    order, left = None, search.trie.levels - 1 - t
    if mixed is not None and left:
        order = mixed.favour(candidates, levels=left).reshape(len(candidates), -1)
    candidates = candidates.reshape(len(candidates), -1)  # [B, n * C]
    last = t == search.trie.levels - 1
    bound = beams.bound if beams.bound is not None and (not last or beams.bound.at_leaves) else None
    at, nodes, scores = _survivors(search, t, candidates, order=order, bound=bound, nodes_at=children.nodes)
    parent = at // children.allowed.shape[2]  # [B, n'] beam of the level before

    def of_parents(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [take_rows(a, parent) for a in arrays]

    return Frontier(
        nodes,
        scores,
        carry,
        ancestors=of_parents([*beams.ancestors, beams.nodes]),
        parents=of_parents([*beams.parents, row]),
        widths=[*beams.widths, nodes.shape[1]],
        copies=None if mixed is None else mixed.follow(at, kept=nodes >= 0),
        bound=None if bound is None or last else bound.after(t, nodes),
    )


def _value(search: Search, beams: Frontier, *, value_table: np.ndarray, correction: ValueCorrection) -> Beams:
    """The value level: expected value of the best beams."""
    last, at = search.trie.levels - 1, np.arange(beams.nodes.shape[1])
    own = at < search.own_beams[:, None]  # the last level is as wide as the batch's largest request
    nodes, scores = np.where(own, beams.nodes, -1), np.where(own, beams.scores, np.float32(-np.inf))
    sids = np.where(nodes[..., None] >= 0, search.trie.sids(last, nodes, parents=beams.ancestors), -1)
    count = min(nodes.shape[1], search.num_values)
    top, carry = np.maximum(sids[:, :count], 0), beams.carry
    parents = [np.ascontiguousarray(p[:, :count]) for p in beams.parents]
    carry, parents = search.tails.catch_up(carry, sids=top, parents=parents)
    buckets = np.arange(len(value_table), dtype=np.int32)
    logprob, _ = search.executor.tail(
        search.trie.levels + 1,
        carry,
        parents=parents,
        token=np.ascontiguousarray(top[:, :, -1]),
        allowed=np.ascontiguousarray(np.broadcast_to(buckets, (len(nodes), count, len(buckets)))),
    )
    value = np.full(nodes.shape, np.nan, np.float32)
    value[:, :count] = correction.of(np.exp(logprob) @ value_table)
    value[(nodes < 0) | (at >= search.own_values[:, None])] = np.nan
    return Beams(
        sids=sids,
        leaves=nodes.astype(np.int32),
        scores=scores,
        expected_value=value,
        widths=np.array([*beams.widths, count], np.int32),
    )


def _survivors(
    search: Search,
    t: int,
    candidates: np.ndarray,
    *,
    order: np.ndarray | None,
    bound: Bound | None,
    nodes_at: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What level t keeps of candidates [B, m]: positions (0 in padding), nodes and scores, [B, n] each.

    The best by `order` [B, m] where there is one, and by the candidates themselves at the last level.
    `nodes_at` gives the nodes of positions [B, k].
    """
    ranked = candidates if order is None else order
    if bound is not None:
        ranked = bound.cut(ranked)

    def nodes_of(kept: np.ndarray) -> np.ndarray:
        return np.where(kept >= 0, nodes_at(np.maximum(kept, 0)), -1)

    def leaves(kept: np.ndarray) -> np.ndarray:
        return leaves_below(search.trie, t, nodes_of(kept), eligible=search.eligible)

    last = t == search.trie.levels - 1
    ban(ranked, search.banned if last else None, nodes_at=nodes_at)
    kept = keep(ranked, search.widths[t], needed=search.needed, leaves=None if last else leaves)

    def scores_of(kept: np.ndarray) -> np.ndarray:
        found = take_rows(candidates, np.maximum(kept, 0))
        return np.where(kept >= 0, found, -np.inf).astype(np.float32)

    if bound is not None and order is not None and t == search.trie.levels - 2:
        kept = bound.after(t, nodes_of(kept)).above(kept, scores=scores_of(kept))
    return np.maximum(kept, 0), nodes_of(kept), scores_of(kept)
