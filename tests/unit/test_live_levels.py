"""Levels normalised over live children: against a plain recursion, with and without skipped tails."""

import numpy as np
import pytest

from serving.index.trie import Trie
from serving.search.beam_search import beam_search
from serving.search.forced import ForcedMoves
from serving.search.widths import WidthPlan
from tests.path_executor import PathExecutor, plain_search

VALUES = np.array([1.0, 2.0, 5.0, 9.0], np.float32)
REQUESTS = (3, 8, 21)


def catalogue(sizes, count, *, seed=0):
    sids = np.random.default_rng(seed).integers(0, sizes, (count, len(sizes)))
    return np.unique(sids, axis=0).astype(np.int32)


def search(executor, trie, plan, normalise, *, num=1, requests=REQUESTS):
    slots = np.array(requests, np.int32)[:, None, None]
    return beam_search(
        executor,
        trie,
        slots,
        np.zeros((len(requests), 0), np.int32),
        plan=plan,
        num_results=np.full(len(requests), num),
        value_table=VALUES,
        normalise=normalise,
    )


def assert_plain(beams, executor, sids, plan, normalise, requests):
    """The beams of each request are those of a plain recursion over the same catalogue."""
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


@pytest.mark.parametrize("count", [3, 40, 300])
@pytest.mark.parametrize(
    ("sizes", "normalise"),
    [
        ((6, 7, 9), "codebook codebook codebook"),
        ((6, 7, 9), "codebook codebook live"),
        ((6, 7, 9), "codebook live live"),
        ((6, 7, 9), "live live live"),
        ((6, 7, 9), "live live codebook"),
        ((5, 6, 7, 8), "codebook live live live"),
        ((5, 6, 7, 8), "live codebook live live"),
        ((40, 9), "codebook live"),
        ((50,), "live"),
    ],
)
def test_equals_a_plain_recursion(sizes, normalise, count):
    normalise = tuple(normalise.split())
    sids, executor = catalogue(sizes, count), PathExecutor(sizes)
    plan = WidthPlan(tuple((4, 9, 20, 30)[: len(sizes)]), 6)
    beams = search(executor, Trie.from_sorted(sids), plan, normalise)
    assert_plain(beams, executor, sids, plan, normalise, REQUESTS)


@pytest.mark.parametrize("normalise", [("codebook", "codebook", "live"), ("codebook", "live", "live")])
def test_forced_moves_need_no_tail(normalise):
    """A sparse catalogue: most second-level prefixes lead to one ad."""
    sizes, plan = (8, 64, 16), WidthPlan((8, 64, 100), 4)
    sids, executor = catalogue(sizes, 160), PathExecutor(sizes)
    beams = search(executor, Trie.from_sorted(sids), plan, normalise)
    skipped = [n for level, n in executor.rows if level == 3]
    assert skipped[0] < 40  # of 64 beams
    assert skipped[1:] == [4]  # keys and values of the beams that get a value
    assert executor.rows[-1] == (4, 4)
    assert np.isfinite(beams.expected_value[:, :4]).all()


def test_skipping_changes_nothing(monkeypatch):
    sizes, plan = (8, 32, 16), WidthPlan((8, 60, 90), 4)
    trie, normalise = Trie.from_sorted(catalogue(sizes, 200)), ("codebook", "live", "live")
    skipping, plain = PathExecutor(sizes), PathExecutor(sizes)
    got = search(skipping, trie, plan, normalise)
    monkeypatch.setattr(ForcedMoves, "_undecided", lambda *a: None)
    expected = search(plain, trie, plan, normalise)
    assert sum(n for _, n in skipping.rows) < sum(n for _, n in plain.rows)
    np.testing.assert_array_equal(got.sids, expected.sids)
    np.testing.assert_array_equal(got.scores, expected.scores)
    np.testing.assert_array_equal(got.expected_value, expected.expected_value)


@pytest.mark.parametrize("normalise", ["codebook codebook codebook", "live live codebook"])
def test_nothing_is_forced_before_a_level_over_the_codebook(normalise):
    sizes, normalise = (6, 7, 9), tuple(normalise.split())
    sids, executor, plan = catalogue(sizes, 40), PathExecutor(sizes), WidthPlan((4, 9, 20), 6)
    beams = search(executor, Trie.from_sorted(sids), plan, normalise)
    assert_plain(beams, executor, sids, plan, normalise, REQUESTS)
    assert executor.rows == list(zip((2, 3, 4), beams.widths[[0, 1, 3]].tolist(), strict=True))


def test_rows_of_a_batch_do_not_influence_each_other():
    sizes, plan = (8, 32, 16), WidthPlan((8, 60, 90), 4)
    trie, normalise = Trie.from_sorted(catalogue(sizes, 200)), ("codebook", "codebook", "live")
    together = search(PathExecutor(sizes), trie, plan, normalise)
    for row, request in enumerate(REQUESTS):
        alone = search(PathExecutor(sizes), trie, plan, normalise, requests=(request,))
        count = int((alone.leaves[0] >= 0).sum())
        np.testing.assert_array_equal(together.sids[row, :count], alone.sids[0, :count])
        np.testing.assert_array_equal(together.scores[row, :count], alone.scores[0, :count])


def test_a_catalogue_of_forced_moves_runs_only_the_values():
    sizes = (64, 8, 8)
    sids = np.array([[c, c % 8, c % 5] for c in range(64)], np.int32)
    executor = PathExecutor(sizes)
    beams = search(executor, Trie.from_sorted(sids), WidthPlan((64, 64, 64), 2), ("live",) * 3)
    assert executor.rows == [(2, 2), (3, 2), (4, 2)]
    np.testing.assert_allclose(np.exp(beams.scores).sum(axis=1), 1.0, rtol=1e-4)
