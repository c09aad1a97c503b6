"""What beam search asks of an engine: run the prefix graph once, then one tail graph a level.

Letters: B requests, n beams, C children, V codes of a level, S history slots, H habits (0 without a copy
path), d width, T SID levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

Carry = Mapping[str, Any]
"""Named tensors that go from one call to the next untouched, in whatever form the engine keeps them.

Only `COPY_LOGPROB`, which a model with a copy path has, is for the search: a NumPy array, float32 [B, 1 + H]
with H habits, see `serving.search.copy_path`.
"""

COPY_LOGPROB = "copy_logprob"


class Executor(Protocol):
    """An engine for one model version. The same request gives the same beams on every executor."""

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """Run the shared layers of all levels, and level 1 through all layers.

        Args:
            slots: int32 [B, S + H, T + 3], slots of the history, then habits (see `serving.model.features`).
            profile: int32 [B, P], codes of the context's columns; P may be 0.

        Returns:
            log p(s_1 | X) of the model alone, float32 [B, V_1], and the carry for the tails.
        """
        ...

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """Score the children of every beam at `level` (2 .. T are SID levels, T + 1 is the value level).

        Args:
            level: level to score.
            carry: what the level before returned.
            parents: for j = 2 .. level - 1, int32 [B, n]: which beam of level j each beam descends from.
            token: int32 [B, n], code chosen at level - 1.
            allowed: int32 [B, n, C] codes to score, -1 = padding.

        Returns:
            log-probabilities float32 [B, n, C], normalised over all V codes of the level (padding is
            undefined), and the carry for the next level.
        """
        ...

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """Make one of two calls of the tail of `level`, for other beams of the same requests.

        Args:
            level: 2 .. T.
            first: what the earlier call returned.
            second: what the later one returned.

        Returns:
            The carry `second`, in whose keys and values of `level` those of `first` come before its own, and
            how many rows they are.
        """
        ...


def keys_and_values(level: int) -> str:
    """Name of what the graph of a level (1 is the prefix) hands on: float32 [B, 2 R, n, d], a row a beam."""
    return f"past_kv_{level}"


def join_arrays(level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
    """`Executor.join` where the carry holds NumPy arrays."""
    name = keys_and_values(level)
    joined = np.concatenate([first[name], second[name]], axis=2)
    return {**second, name: joined}, first[name].shape[2]


def prefix_inputs(slots: np.ndarray, profile: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of the prefix graph by name; a model without columns has no input for them.

    A tensor of no width is none: graphs, engines and servers disagree about what a dimension of 0 is.
    """
    return {"slots": slots, "profile": profile} if profile.shape[1] else {"slots": slots}


def prefix_outputs(*, copy_path: bool = False) -> list[str]:
    """Output names of the prefix graph; all but the first are the carry.

    Args:
        copy_path: of a model with one.
    """
    names = ["logprob", "m", "context_kv", "context_bias", "past_kv_1"]
    return [*names, COPY_LOGPROB] if copy_path else names


def tail_carry_inputs(level: int) -> list[str]:
    """Inputs of tail graph `level` that come from the carry."""
    return ["m", "context_kv", "context_bias", *map(keys_and_values, range(1, level))]


def tail_parent_inputs(level: int) -> list[str]:
    """Inputs of tail graph `level` that say from which beam of an earlier level each beam descends."""
    return [f"parent_{j}" for j in range(2, level)]


def tail_outputs(level: int, *, last: bool) -> list[str]:
    """Output names of tail graph `level`; the last one hands nothing on."""
    return ["logprob"] if last else ["logprob", keys_and_values(level)]
