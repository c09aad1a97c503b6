"""What stored lists hold, in figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data.list_store import StoredLists
from training.data.lists import CandidateFlag


@dataclass(frozen=True, kw_only=True)
class ListFigures:
    """Means over the lists of a folder.

    Attributes:
        lists: how many.
        candidates: of a list.
        own: of them, those that the search found.
        with_purchase: share of the lists where the search found an ad that the request led to.
        found: share of the ads of the lists that the requests led to, that the search found.
        log_p: mean log p of a candidate that the search found.
        mass: probability of all that the search found for a request, together.
    """

    lists: int
    candidates: float
    own: float
    with_purchase: float
    found: float
    log_p: float
    mass: float

    @classmethod
    def of(cls, stored: StoredLists) -> ListFigures:
        """Of stored lists."""
        lists, count = stored.lists, len(stored)
        own, row = (lists.flags & CandidateFlag.OWN) > 0, np.repeat(np.arange(count), np.diff(lists.ptr))
        bought = np.bincount(row[own & lists.bought], minlength=count)
        log_p = lists.log_p_ref[own].astype(np.float64)
        return cls(
            lists=count,
            candidates=len(own) / count,
            own=int(own.sum()) / count,
            with_purchase=float((bought > 0).mean()),
            found=int(bought.sum()) / max(int(lists.bought.sum()), 1),
            log_p=float(log_p.mean()) if len(log_p) else 0.0,
            mass=float(np.exp(log_p).sum() / count),
        )

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.lists:,} lists of {self.candidates:.1f} candidates, {self.own:.1f} of them by search, "
            f"among these something bought in {self.with_purchase:.1%} of the lists, {self.found:.1%} of "
            f"all that was bought; mean log p {self.log_p:.3f}, together {self.mass:.1%} of the probability"
        )
