"""What a training step works on: contexts, and for each its targets, a list of candidates, or both.

Letters: B contexts, n targets of a context, S slots, T SID levels, P profile columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from training.data.lists import CandidateList, Lists, pad, pad_lists

Other = TypeVar("Other")
Array = TypeVar("Array")  # np.ndarray as it is built, torch.Tensor as it is trained on


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One context with what was wanted in it.

    Attributes:
        slots: int32 [S, T + 3].
        profile: int32 [P].
        tokens: int64 [n, T], SIDs of the targets; there may be none, as for impressions without a click.
        value: int64 [n], value bucket of each.
        weight: float32 [n].
        candidates: None where there is no list.
        slot_ads: int64 [S], ad of each slot, -1 in an empty one; None where only SIDs are known.
        ads: int64 [n], of the targets; None likewise.
    """

    slots: np.ndarray
    profile: np.ndarray
    tokens: np.ndarray
    value: np.ndarray
    weight: np.ndarray
    candidates: CandidateList | None = None
    slot_ads: np.ndarray | None = None
    ads: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Batch(Generic[Array]):
    """Samples side by side; a target of weight 0 is padding.

    Attributes:
        slots: int32 [B, S, T + 3].
        profile: int32 [B, P].
        tokens: int64 [B, n, T].
        value: int64 [B, n].
        weight: float32 [B, n].
        lists: candidates of the same B contexts; None where no sample has a list.
        slot_ads: int64 [B, S], see `Sample`.
        ads: int64 [B, n], likewise; -1 in padding.
    """

    slots: Array
    profile: Array
    tokens: Array
    value: Array
    weight: Array
    lists: Lists[Array] | None = None
    slot_ads: Array | None = None
    ads: Array | None = None

    def map(self, convert: Callable[[Array], Other]) -> Batch[Other]:
        """The batch with every array converted, as to a tensor."""
        given = {n: array for n, array in vars(self).items() if n != "lists" and array is not None}
        arrays = {name: convert(array) for name, array in given.items()}
        return Batch(**arrays, lists=self.lists.map(convert) if self.lists else None)


def collate(samples: Sequence[Sample]) -> Batch[np.ndarray]:
    """One batch of samples from any sources, padded to the longest targets and the longest list.

    Raises:
        ValueError: no sample, or lists that do not fit together (see `pad_lists`).
    """
    if not samples:
        raise ValueError("expected at least one sample of a batch, got none")
    lists = [sample.candidates for sample in samples]
    has_lists = any(candidates is not None for candidates in lists)
    return Batch(
        slots=np.stack([sample.slots for sample in samples]),
        profile=np.stack([sample.profile for sample in samples]),
        tokens=pad([sample.tokens for sample in samples]),
        value=pad([sample.value for sample in samples]),
        weight=pad([sample.weight for sample in samples]),
        lists=pad_lists(lists, levels=samples[0].tokens.shape[1]) if has_lists else None,
        slot_ads=_together([sample.slot_ads for sample in samples]),
        ads=_together([sample.ads for sample in samples]),
    )


def _together(rows: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [row for row in rows if row is not None]
    return pad(known, fill=-1) if len(known) == len(rows) else None
