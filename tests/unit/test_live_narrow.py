"""Live levels with width plans that get narrower: a level of few beams after one that skipped some.

Beams that skipped a level have no keys and values there, and a tail must not be asked about such beams.
"""

import numpy as np
import pytest

from serving.beam_search import beam_search
from serving.index.trie import Trie
from serving.widths import WidthPlan
from tests.path_executor import PathExecutor, plain_search

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
    live = [tuple(s) for s in sids.tolist()]
    for row, request in enumerate(requests):
        expected = plain_search(executor, live, request, plan.sid, normalise=normalise, value_table=VALUES)
        found = [tuple(s) for s in beams.sids[row].tolist() if s[0] >= 0]
        assert found == [s for s, _, _ in expected]
        np.testing.assert_allclose(beams.scores[row][: len(found)], [x for _, x, _ in expected], atol=1e-4)
        with_value = min(len(found), plan.value)
        np.testing.assert_allclose(
            beams.expected_value[row][:with_value], [v for _, _, v in expected][:with_value], rtol=1e-4
        )


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
