"""A search of the tiny catalogue, and what holds whoever searches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.beams import Beams
from serving.search.executor import Executor
from serving.search.widths import WidthPlan
from tests.tiny import VALUE_TABLE, random_requests

WIDE = WidthPlan((6, 30, 210), 210)


def searched(
    executor: Executor,
    snapshot: IndexSnapshot,
    *,
    plan: WidthPlan = WIDE,
    num: int = 1,
    count: int = 4,
    requests: Callable[[int], tuple[np.ndarray, np.ndarray]] = random_requests,
    **options,
) -> Beams:
    """Beams of `count` requests, slots and profile as `requests` gives them; `num` results of each."""
    slots, profile = requests(count)
    return beam_search(
        executor,
        snapshot.trie,
        slots,
        profile,
        plan=plan,
        num_results=np.full(count, num),
        value_table=VALUE_TABLE,
        **options,
    )


def check_bans(search: Callable[..., Beams], snapshot: IndexSnapshot) -> None:
    """Banned leaves never come back, and do not shorten the answer."""
    free = search(snapshot, num=10)
    banned = [np.sort(free.leaves[row][:k]) for row, k in enumerate((0, 3, 10, snapshot.trie.leaves))]
    beams = search(snapshot, plan=WidthPlan((1, 2, 10), 1), num=10, banned=banned)
    for row, ban in enumerate(banned):
        leaves = beams.leaves[row][beams.leaves[row] >= 0]
        assert not np.isin(leaves, ban).any()
        assert len(leaves) >= min(10, snapshot.trie.leaves - len(ban))
