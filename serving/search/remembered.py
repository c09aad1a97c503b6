"""Two searches of the same requests, of which the second asks an engine only for what the first did not.

Letters: B requests, n beams, k beams of the first search, C children of the beam that has most, t a level,
counted from 0 (its tail is that of level t + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.index.rows import take_rows
from serving.search.executor import Carry, Executor, keys_and_values
from serving.search.forced import every_row


@dataclass(frozen=True)
class _Scored:
    """What a level's first call was about.

    Attributes:
        nodes: int [B, k], of level t - 1; -1 is padding.
        logprob: float32 [B, k, C], of their children.
        carry: what the call returned.
    """

    nodes: np.ndarray
    logprob: np.ndarray
    carry: Carry


class RememberedTails:
    """The tails of two searches: the first call of a level is remembered for the second."""

    def __init__(self, executor: Executor) -> None:
        """Nothing is known yet."""
        self._executor = executor
        self._known: dict[int, _Scored] = {}

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
        """Score the children of all beams, those of remembered beams without the engine.

        Args:
            t: level.
            carry: what the level before returned.
            nodes: int [B, n], of level t - 1; -1 is padding.
            parents: for j = 2 .. t, int32 [B, n], row of past_kv_j that each beam descends from.
            token: int32 [B, n].
            allowed: int32 [B, n, C].

        Returns:
            log-probabilities float32 [B, n, C], row of past_kv_{t + 1} of each beam int32 [B, n], and the
            carry.
        """
        known = self._known.get(t)
        if known is None:
            logprob, carry = self._executor.tail(t + 1, carry, parents=parents, token=token, allowed=allowed)
            self._known[t] = _Scored(nodes, logprob, carry)
            return logprob, every_row(nodes), carry
        at = _positions(known.nodes, nodes)
        row = np.maximum(at, 0).astype(np.int32)
        # A node's children stand in the same columns in every call; what is cut off or missing is padding.
        columns = min(known.logprob.shape[2], allowed.shape[2])
        logprob = np.zeros(allowed.shape, np.float32)
        logprob[:, :, :columns] = take_rows(known.logprob[:, :, :columns], row)
        new = (at < 0) & (nodes >= 0)
        count = int(new.sum(axis=1).max())
        if not count:
            name = keys_and_values(t + 1)
            return logprob, row, {**carry, name: known.carry[name]}
        # New beams first, in order; rows with fewer of them are filled up with others.
        sent = np.argsort(~new, axis=1, kind="stable")[:, :count]
        asked = take_rows(allowed, sent)
        columns = int((asked >= 0).any(axis=(0, 1)).nonzero()[0].max(initial=0)) + 1
        scored, carry = self._executor.tail(
            t + 1,
            carry,
            parents=[take_rows(p, sent) for p in parents],
            token=take_rows(token, sent),
            allowed=np.ascontiguousarray(asked[:, :, :columns]),
        )
        carry, before = self._executor.join(t + 1, known.carry, carry)
        batch = np.arange(len(sent))[:, None]
        logprob[batch, sent, :columns] = scored
        row[batch, sent] = before + every_row(sent)
        return logprob, row, carry

    def catch_up(
        self, carry: Carry, *, sids: np.ndarray, parents: list[np.ndarray]
    ) -> tuple[Carry, list[np.ndarray]]:
        """As `ForcedMoves.catch_up`: every beam has been through every tail, so nothing is missing."""
        return carry, parents


def _positions(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where nodes int [B, n] stand among `known` [B, k], int [B, n]; -1 where they do not."""
    same = wanted[:, :, None] == known[:, None, :]  # [B, n, k]
    return np.where(same.any(axis=2) & (wanted >= 0), same.argmax(axis=2), -1)
