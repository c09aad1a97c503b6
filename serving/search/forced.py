"""Forced moves: beams whose score is final are not sent through the tails.

A beam with one live SID below it and only levels ahead that are normalised over live children has a single
child of probability 1 at each of them: no tail can change its score. What it lacks then are its keys and
values (past_kv) of the levels that it skipped, which the value level reads: the beams that end among those
with a value get them in one pass at the end.

Letters: B requests, n beams, C children of the beam that has most, T SID levels, t a level, counted from 0
(its tail is that of level t + 1).
"""

from __future__ import annotations

import numpy as np

from serving.index.rows import take_rows
from serving.index.trie import PrefixTree
from serving.search.executor import Carry, Executor

SKIPPED = -1  # as the row of past_kv that a beam descends from: it has none


class ForcedMoves:
    """The tails of one search whose last levels are normalised over live children."""

    def __init__(
        self, executor: Executor, trie: PrefixTree, *, live: tuple[bool, ...], num_values: int
    ) -> None:
        """Nothing is skipped yet.

        Args:
            executor: engine.
            trie: live SIDs.
            live: of each level, whether it is normalised over live children.
            num_values: most beams of a request that get a value.
        """
        self._executor, self._trie, self._num_values = executor, trie, num_values
        self._first = max((t + 1 for t, of_live in enumerate(live) if not of_live), default=0)
        self._before_skip: tuple[int, Carry] | None = None  # first level that beams skipped, and its carry

    def tail(
        self,
        t: int,
        carry: Carry,
        *,
        nodes: np.ndarray,
        parents: list[np.ndarray],
        token: np.ndarray,
        allowed: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, Carry]:
        """Score the children of all beams, asking the engine for as few of them as it takes.

        Args:
            t: level.
            carry: what the level before returned.
            nodes: int [B, n], of level t - 1.
            parents: for j = 2 .. t, int32 [B, n], row of past_kv_j that each beam descends from, or
                `SKIPPED`.
            token: int32 [B, n].
            allowed: int32 [B, n, C].

        Returns:
            log-probabilities float32 [B, n, C] (0 for a forced move), row of past_kv_{t + 1} of each beam
            int32 [B, n] or `SKIPPED`, and the carry.
        """
        sent = self._undecided(t, nodes)
        if sent is None:
            logprob, carry = self._executor.tail(t + 1, carry, parents=parents, token=token, allowed=allowed)
            return logprob, every_row(nodes), carry
        self._before_skip = self._before_skip or (t, carry)
        logprob, row = np.zeros(allowed.shape, np.float32), np.full(nodes.shape, SKIPPED, np.int32)
        if sent.shape[1]:
            scored, carry = self._executor.tail(
                t + 1,
                carry,
                # Beams that fill a row up may have skipped: any keys and values do, nobody reads the scores.
                parents=[np.maximum(take_rows(p, sent), 0) for p in parents],
                token=take_rows(token, sent),
                allowed=take_rows(allowed, sent),
            )
            np.put_along_axis(logprob, sent[:, :, None], scored, 1)
            np.put_along_axis(row, sent, every_row(sent), 1)
        return logprob, row, carry

    def catch_up(
        self, carry: Carry, *, sids: np.ndarray, parents: list[np.ndarray]
    ) -> tuple[Carry, list[np.ndarray]]:
        """Keys and values of every level for all of these beams, where some of them skipped any.

        Args:
            carry: what the last level returned.
            sids: int32 [B, n, T].
            parents: for j = 2 .. T, int32 [B, n], see `tail`.

        Returns:
            Carry and parents without `SKIPPED`.
        """
        if self._before_skip is None or all((p != SKIPPED).all() for p in parents):
            return carry, parents
        since, carry = self._before_skip
        parents, row = parents[: since - 1], every_row(sids[:, :, 0])
        for t in range(since, sids.shape[2]):
            _, carry = self._executor.tail(
                t + 1,
                carry,
                parents=parents,
                token=np.ascontiguousarray(sids[:, :, t - 1]),
                allowed=np.ascontiguousarray(sids[:, :, t : t + 1]),
            )
            parents = [*parents, row]
        return carry, parents

    def _undecided(self, t: int, nodes: np.ndarray) -> np.ndarray | None:
        """Beams int [B, n'] that the tail of level t must see, where it need not see all; None for all."""
        if t < self._first:
            return None
        wanted = self._trie.leaf_counts(t - 1, nodes) > 1  # [B, n]
        count = int(wanted.sum(axis=1).max())
        # The value level may want the keys and values of `num_values` beams back: fewer left out than that do
        # not pay. Once beams have skipped a level they skip the later ones too.
        least = self._num_values if self._before_skip is None else -1
        if nodes.shape[1] - count <= least:
            return None
        # Wanted beams first, in order; rows with fewer of them are filled up with others.
        return np.argsort(~wanted, axis=1, kind="stable")[:, :count]


def every_row(beams: np.ndarray) -> np.ndarray:
    """Rows of past_kv int32 [B, n] after a tail that saw all of the beams [B, n]: its own of each."""
    return np.ascontiguousarray(np.broadcast_to(np.arange(beams.shape[1], dtype=np.int32), beams.shape))
