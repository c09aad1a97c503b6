"""Live levels with width plans that get narrower: a level of few beams after one that skipped some.

Beams that skipped a level have no keys and values there, and a tail must not be asked about such beams.
"""

import numpy as np
import pytest

from serving.index.trie import Trie
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.path_executor import PathExecutor
from tests.unit.test_live_levels import assert_plain

VALUES = np.array([1.0, 2.0, 5.0, 9.0], np.float32)


class Strict(PathExecutor):
    """Refuses parents that are no beams."""

    def tail(self, level, carry, *, parents, token, allowed):
        for j, rows in enumerate(parents, start=2):
            assert (rows >= 0).all(), (level, j, rows)
            assert (rows < carry[f"past_kv_{j}"].shape[1]).all(), (level, j, rows)
        return super().tail(level, carry, parents=parents, token=token, allowed=allowed)


def check(sids, plan, normalise, requests):
    executor, sizes = Strict(tuple((sids.max(axis=0) + 1).tolist())), len(requests)
    beams = beam_search(
        executor,
        Trie.from_sorted(sids),
        np.array(requests, np.int32)[:, None, None],
        np.zeros((sizes, 0), np.int32),
        plan=plan,
        num_results=np.ones(sizes, np.int64),
        value_table=VALUES,
        normalise=normalise,
    )
    assert_plain(beams, executor, sids, plan, normalise, requests)


def test_the_smallest_case():
    """Two forced beams skip level 2; the one beam of level 3 alone would not be worth a skip."""
    sids = np.array([[0, 0, 0, 1], [1, 0, 1, 0]], np.int32)
    check(sids, WidthPlan((2, 1, 1, 1), 1), ("codebook", "live", "live", "live"), (512,))


@pytest.mark.parametrize("live", [2, 3, 4])
def test_random_plans_and_sparse_catalogues(live):
    for seed in range(150):
        random = np.random.default_rng(seed)
        sids = np.unique(random.integers(0, (6, 4, 4, 5), (random.integers(2, 14), 4)), axis=0)
        plan = WidthPlan(tuple(random.integers(1, 9, 4).tolist()), int(random.integers(1, 5)))
        normalise = ("codebook",) * (4 - live) + ("live",) * live
        requests = random.integers(0, 1000, random.integers(1, 4)).tolist()
        check(sids.astype(np.int32), plan, normalise, tuple(requests))
