"""At most so many ads of one account in an answer: which ads those are, and whom to search without.

The answer is the greedy one: ads in their order, each left out that would be one too many of its account. Ads
whose account is not known are no account's. Letters: k ads, U accounts.
"""

from __future__ import annotations

import numpy as np

from serving.index.eligible import NO_ACCOUNT
from serving.index.keys import run_starts


def within_cap(accounts: np.ndarray, most: int) -> np.ndarray:
    """Of ads best first, those that are among the `most` best of their account, bool [k].

    Args:
        accounts: int64 [k], of each ad.
        most: at least 1.
    """
    order = np.argsort(accounts, kind="stable")
    starts = run_starts(accounts[order])
    nth = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    kept = np.empty(len(order), bool)
    kept[order] = nth < most
    return kept | (accounts == NO_ACCOUNT)


def full(accounts: np.ndarray, most: int) -> tuple[int, ...]:
    """Accounts with `most` ads or more among those of ads [k], ascending."""
    found, count = np.unique(accounts[accounts != NO_ACCOUNT], return_counts=True)
    return tuple(found[count >= most].tolist())
