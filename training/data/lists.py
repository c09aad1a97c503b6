"""Lists of candidates: what could have been shown in a context, and what it was worth.

The candidates of a context come from several places: the model's own search, the log (an impression without
a click is a candidate of reward 0), the catalogue. The log or a reward model gives each its reward; the model
that found a candidate knows how probable it was.

Letters: B contexts, n candidates of a context, T SID levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Generic, TypeVar

import numpy as np

Other = TypeVar("Other")
Array = TypeVar("Array")  # np.ndarray as it is built, torch.Tensor as it is trained on


class CandidateFlag(IntFlag):
    """Where a candidate comes from; several may be set."""

    OWN = 1  # found by the beam search of a model at most a few versions old
    LOGGED = 2  # shown to the user, or another ad of its SID was
    SAMPLED = 4  # drawn from the catalogue
    EXPLORED = 8  # drawn by probability from what the search found beyond its best beams


@dataclass(frozen=True, kw_only=True)
class CandidateList:
    """The candidates of one context; there may be none.

    Attributes:
        sids: int32 [n, T].
        reward: float32 [n], v.
        flags: uint8 [n], one or more `CandidateFlag` each.
        ads: int64 [n], -1 where only the SID is known.
        log_p_ref: float32 [n], log-probability under the model that made the list; None where no model did.

    Raises:
        ValueError: shapes do not agree, or a value cannot be; says which.
    """

    sids: np.ndarray
    reward: np.ndarray
    flags: np.ndarray
    ads: np.ndarray
    log_p_ref: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> CandidateList:
        """The candidates `rows`, in that order."""
        arrays = {name: array[rows] for name, array in vars(self).items() if array is not None}
        return CandidateList(**arrays)

    def __post_init__(self) -> None:
        """Check shapes and values."""
        if self.sids.ndim != 2:
            raise ValueError(f"candidates: expected sids [n, T], got {list(self.sids.shape)}")
        every = sum(CandidateFlag)
        legal = {
            "sids": ("codes >= 0", (self.sids >= 0).all(axis=1)),
            "reward": ("a finite number", np.isfinite(self.reward)),
            "flags": (f"flags 1..{every}", (self.flags >= 1) & (self.flags <= every)),
            "ads": ("an ad or -1", self.ads >= -1),
        }
        if self.log_p_ref is not None:
            legal["log_p_ref"] = ("a log-probability", np.isfinite(self.log_p_ref) & (self.log_p_ref <= 0))
        for name, (expected, rows) in legal.items():
            if rows.shape != (len(self.sids),):
                raise ValueError(f"candidates: expected {name} [{len(self.sids)}], got {list(rows.shape)}")
            if not rows.all():
                row = int(np.flatnonzero(~rows)[0])
                raise ValueError(
                    f"candidate {row}, {name}: expected {expected}, got {getattr(self, name)[row]}"
                )


@dataclass(frozen=True, kw_only=True)
class Lists(Generic[Array]):
    """The candidates of B contexts; where flags are 0 there is none.

    Attributes:
        sids: int64 [B, n, T].
        reward: float32 [B, n].
        flags: uint8 [B, n].
        ads: int64 [B, n], -1 where unknown.
        log_p_ref: float32 [B, n], NaN in a list that no model made; None where none made any.
    """

    sids: Array
    reward: Array
    flags: Array
    ads: Array
    log_p_ref: Array | None = None

    def map(self, convert: Callable[[Array], Other]) -> Lists[Other]:
        """The lists with every array converted, as to a tensor."""
        arrays = {name: convert(array) for name, array in vars(self).items() if array is not None}
        return Lists(**arrays)


def pad_lists(contexts: Sequence[CandidateList | None], *, levels: int) -> Lists[np.ndarray]:
    """Lists of contexts side by side.

    Args:
        contexts: B of them; None is a list without candidates.
        levels: T.

    Raises:
        ValueError: SIDs of another number of levels.
    """
    known = [(i, c) for i, c in enumerate(contexts) if c is not None and len(c.sids)]
    for i, candidates in known:
        if candidates.sids.shape[1] != levels:
            raise ValueError(f"context {i}: expected SIDs of {levels} levels, got {candidates.sids.shape[1]}")
    has_reference = any(candidates.log_p_ref is not None for _, candidates in known)

    def column(name: str, empty: np.ndarray) -> np.ndarray:
        rows = [empty] * len(contexts)
        for i, candidates in known:
            values = getattr(candidates, name)
            if values is None:
                values = np.full(len(candidates.sids), np.nan)
            rows[i] = values.astype(empty.dtype)
        return pad(rows, fill=-1 if name == "ads" else 0)

    return Lists(
        sids=column("sids", np.zeros((0, levels), np.int64)),
        reward=column("reward", np.zeros(0, np.float32)),
        flags=column("flags", np.zeros(0, np.uint8)),
        ads=column("ads", np.zeros(0, np.int64)),
        log_p_ref=column("log_p_ref", np.zeros(0, np.float32)) if has_reference else None,
    )


def pad(rows: Sequence[np.ndarray], *, fill: float = 0) -> np.ndarray:
    """Rows [n_i, ..] as one array [B, max n_i, ..], filled up with `fill`."""
    width = max((len(row) for row in rows), default=0)
    padded = np.full((len(rows), width, *rows[0].shape[1:]), fill, rows[0].dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
