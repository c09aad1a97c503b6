"""Pruned searches against the same searches without it; the cases are random, the engine is a function.

All 20,000 of them: GR4AD_PRUNING_CASES=20000 pytest tests/unit/test_pruning.py -k random
"""

import os
import sys
from math import prod
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.backend.resolve import resolve
from serving.engines.metered import MeteredExecutor
from serving.engines.ort import OrtExecutor
from serving.index.keys import pack
from serving.index.overlay import Changes, with_changes
from serving.index.snapshot import IndexSnapshot
from serving.index.trie import Trie
from serving.search import beam_search as module
from serving.search.beam_search import beam_search
from serving.search.bound import SPARE, Bound, narrow_widths
from serving.search.cold_start import ColdStart
from serving.search.executor import COPY_LOGPROB
from serving.search.remembered import RememberedTails
from serving.search.widths import WidthPlan
from tests.audiences import some_audiences, some_terms
from tests.copying import requests as repeating
from tests.path_executor import PathExecutor
from tests.searching import searched
from tests.tiny import copying_model, tiny_model, tiny_snapshot
from tests.unit.test_index_overlay import rows_of
from training.rollout.executor import TorchExecutor

VALUES = np.array([0.5, 1.0, 2.0, 8.0], np.float32)
HISTORY = 4


class Peaky(PathExecutor):
    """Scores as unlike each other as a trained model's, or with many ties; with a history, maybe."""

    def __init__(self, level_sizes, *, scale, ties, copy_path):
        super().__init__(level_sizes)
        self.scale, self.ties, self.copy_path = scale, ties, copy_path

    def logprob(self, request, path):
        x = np.random.default_rng([request, *path]).normal(size=self.sizes[len(path)]) * self.scale
        x = np.round(x / 2) * 2 if self.ties else x
        return (x - np.log(np.exp(x).sum())).astype(np.float32)

    def prefix(self, slots, profile):
        logprob, carry = super().prefix(slots, profile)
        if self.copy_path:
            filled = slots[:, :, len(self.sizes) - 1] != 0
            mass = filled * np.random.default_rng(carry["ids"]).random(filled.shape)
            parts = np.concatenate([np.ones((len(slots), 1)), mass], axis=1)
            with np.errstate(divide="ignore"):
                shares = np.log(parts / parts.sum(axis=1, keepdims=True))
            carry[COPY_LOGPROB] = shares.astype(np.float32)
        return logprob, carry


def catalogue(random, sizes):
    """A snapshot, often of a base and changes since, in which ads share SIDs and some are paused.

    Often ads have audiences, too.
    """
    ads, audiences = int(random.integers(1, 80)), int(random.choice([0, 0, 4]))
    codes = np.stack([random.integers(0, v, ads) for v in sizes], axis=1).astype(np.int32)
    table = some_audiences(audiences) if audiences else None
    snapshot = IndexSnapshot.build(
        np.arange(ads),
        codes,
        active=random.random(ads) < 0.9,
        level_sizes=sizes,
        audiences=random.integers(0, audiences + 1, ads),
        accounts=random.integers(0, 5, ads),
        table=table,
    )
    if random.random() < 0.5:
        return snapshot
    changed = random.choice(ads + 9, size=int(random.integers(1, 10)), replace=False)
    step = [
        (ad, tuple(int(random.integers(0, v)) for v in sizes), True, bool(random.random() < 0.7))
        for ad in changed.tolist()
    ]
    rows = rows_of(step, len(sizes))
    rows["audience"] = random.integers(0, audiences + 1, len(rows))
    rows["account"] = random.integers(0, 5, len(rows))
    changes = Changes.none().with_rows(rows, sizes)
    return with_changes(snapshot, changes, version=1, audiences=table)


@settings(max_examples=int(os.environ.get("GR4AD_PRUNING_CASES", "250")), deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_answers_are_those_of_a_search_without_pruning(seed):
    random = np.random.default_rng(seed)
    levels = int(random.integers(1, 5))
    sizes = tuple(int(v) for v in random.integers(2, 9, levels))
    snapshot, batch = catalogue(random, sizes), int(random.integers(1, 4))
    plan = WidthPlan(tuple(int(w) for w in random.integers(1, 24, levels)), int(random.integers(1, 12)))
    num = random.integers(1, 14, batch)
    rank_by = "value" if random.random() < 0.3 else "probability"
    among = sys.maxsize if rank_by == "value" else int(random.choice([0, 0, 5]))
    exclude = [random.choice(90, int(random.integers(0, 20)), replace=False) for _ in range(batch)]
    exclude = exclude if random.random() < 0.5 else [np.zeros(0, np.int64)] * batch
    slots = np.zeros((batch, 1 + HISTORY, levels + 3), np.int32)
    slots[:, 0, 0] = random.integers(0, 1000, batch)
    slots[:, 1:, :levels] = 1 + np.stack([random.integers(0, v, (batch, HISTORY)) for v in sizes], axis=-1)
    slots[:, 1:, levels] = random.random((batch, HISTORY)) < 0.7
    options = dict(
        scale=float(random.choice([1, 3, 6])), ties=random.random() < 0.3 and rank_by == "probability"
    )
    options["copy_path"] = bool(random.random() < 0.4)
    cold_start = None
    if random.random() < 0.4:
        every = pack(snapshot.sids_of(snapshot.leaf_ad_ids)[0], sizes)
        seen = np.unique(every[random.random(len(every)) < 0.5])
        cold_start = ColdStart(seen, sizes, float(random.choice([0.3, 1.0, 50.0])))
    narrow = [int(w) for w in random.integers(1, 8, levels)]
    terms = some_terms(random, batch)

    def answers(pool):
        executor = Peaky(sizes, **options)
        beams = beam_search(
            executor,
            snapshot.trie,
            slots,
            np.zeros((batch, 0), np.int32),
            plan=plan,
            num_results=num,
            value_table=VALUES,
            pool=pool,
            by_value=rank_by == "value",
            banned=[snapshot.banned_leaves(e, t) for e, t in zip(exclude, terms, strict=True)],
            eligible=[snapshot.eligible(t) for t in terms],
            normalise=tuple("live" if x < 0.4 else "codebook" for x in normalise),
            cold_start=cold_start,
        )
        return beams, [
            resolve(
                snapshot,
                beams.sids[i],
                scores=beams.scores[i],
                expected_value=beams.expected_value[i],
                num_ads=int(num[i]),
                exclude=exclude[i],
                rank_by=rank_by,
                terms=terms[i],
            )
            for i in range(batch)
        ]

    normalise = random.random(levels)
    pool = np.array([plan.pool(int(n), ranked_among=among) for n in num])
    _, expected = answers(None)

    def few(widths, *, pool):
        return (*(min(w, k) for w, k in zip(widths[:-1], narrow, strict=False)), pool)

    by_worth = bool(random.random() < 0.7)
    with (
        patch.object(module, "narrow_widths", few),
        patch.object(module, "settled_by_worth", lambda pool, count: by_worth),
    ):
        beams, found = answers(pool)
    for got, wanted in zip(found, expected, strict=True):
        assert_same(got, wanted)
    if levels > 1 and not (options["copy_path"] and (normalise[1:] < 0.4).any()):  # nothing is left out then
        for i in range(batch):
            leaves = beams.leaves[i][beams.leaves[i] >= 0]
            assert len(np.unique(leaves)) == len(leaves) <= pool[i] + SPARE
            assert np.isnan(beams.expected_value[i, pool[i] :]).all()


def assert_same(got, wanted):
    np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-5)
    np.testing.assert_allclose(got.expected_value, wanted.expected_value, rtol=1e-5)
    np.testing.assert_array_equal(got.ad_ids, wanted.ad_ids)
    np.testing.assert_array_equal(got.sids, wanted.sids)


class Told(PathExecutor):
    """Probabilities of children by their prefix."""

    def __init__(self, level_sizes, told):
        super().__init__(level_sizes)
        self.told = told

    def logprob(self, request, path):
        even = np.full(self.sizes[len(path)], 1 / self.sizes[len(path)])
        with np.errstate(divide="ignore"):
            return np.log(np.array(self.told.get(path, even), np.float32)).astype(np.float32)


def test_a_bound_below_a_prefix_that_the_search_does_not_keep_is_none(monkeypatch):
    """The narrow search finds .22 below (0, 0), which two better prefixes drive out of the wide one."""
    monkeypatch.setattr(module, "narrow_widths", lambda widths, *, pool: (1, 1, 1, 1))
    sizes = (2, 2, 4, 2)
    told = {(): [0.4, 0.35], (0,): [0.6, 0.4], (1,): [0.85, 0.72], (0, 0): [0.99, 0, 0, 0]}
    sids = np.array([(a, b, c, 0) for a in (0, 1) for b in (0, 1) for c in range(4)], np.int32)
    options = dict(plan=WidthPlan((2, 2, 4, 8), 1), num_results=np.array([1]), value_table=VALUES)
    slots, profile = np.zeros((1, 1, 7), np.int32), np.zeros((1, 0), np.int32)
    trie = Trie.from_sorted(sids)
    plain = beam_search(Told(sizes, told), trie, slots, profile, **options)
    pruned = beam_search(Told(sizes, told), trie, slots, profile, pool=np.array([1]), **options)
    assert tuple(plain.sids[0, 0]) == (1, 0, 0, 0)
    np.testing.assert_array_equal(pruned.sids[0, 0], plain.sids[0, 0])
    assert pruned.scores[0, 0] == plain.scores[0, 0]


def test_what_habits_favour_keeps_others_out_though_it_is_below_the_bound():
    """p of the prefixes is .48, .2 and .32; of two beams the second is one, which habits favour to .67."""

    class ThreePrefixes(Peaky):
        def logprob(self, request, path):
            shares = {(): [0.6, 0.001, 0.399], (0,): [0.5, 0.5], (1,): [0.5, 0.5], (2,): [0.9, 0.1]}
            return np.log(np.array(shares.get(path, np.full(4, 0.25)), np.float32))

        def prefix(self, slots, profile):
            logprob, carry = super().prefix(slots, profile)
            return logprob, carry | {COPY_LOGPROB: np.log(np.array([[0.8, 0.2]], np.float32))}

    codes = np.array([(i, j) for i in range(3) for j in range(2)], np.int32)
    snapshot = IndexSnapshot.build(np.arange(6), codes, active=np.ones(6, bool), level_sizes=(3, 2))
    slots = np.array([[[2, 1, 1, 1, 1]]], np.int32)  # the habit (1, 0)
    found = [
        beam_search(
            ThreePrefixes((3, 2), scale=1.0, ties=False, copy_path=False),
            snapshot.trie,
            slots,
            np.zeros((1, 0), np.int32),
            plan=WidthPlan((2, 4), 1),
            num_results=np.ones(1, np.int64),
            value_table=VALUES,
            pool=pool,
        )
        for pool in (None, np.ones(1, np.int64))
    ]
    for beams in found:  # without the habit's prefix it would be 20, p = .29
        assert beams.sids[0, 0].tolist() == [0, 0]
        np.testing.assert_allclose(np.exp(beams.scores[0, 0]), 0.24, rtol=1e-5)


def test_a_favoured_beam_below_a_bound_that_is_not_found_is_not_left_out(monkeypatch):
    """The narrow search finds .22 below (0, 0). The wide one keeps (1, 0), p = .51, and (1, 1), p = .13.

    A habit favours that to .39, above the .38 of (0, 0), and is itself, with .13, the best that is left.
    """
    monkeypatch.setattr(module, "narrow_widths", lambda widths, *, pool: (1, 1, 1))
    sure = [0.9, *[0.1 / 7] * 7]
    told = {(): [0.2 / 0.73, 0.53 / 0.73], (0,): [0.9, 0.1], (1,): [0.51 / 0.53, 0.02 / 0.53]}
    told |= {(0, 0): sure, (0, 1): sure, (1, 1): sure}  # and even below (1, 0)
    habits = np.log(np.array([[0.73, 0.06, 0.10, 0.11]], np.float32))
    slots = np.array([[[1, 1, 1, 1, 1, 1], [1, 2, 1, 1, 1, 1], [2, 2, 1, 1, 1, 1]]], np.int32)

    class Favoured(Told):
        def prefix(self, slots, profile):
            logprob, carry = super().prefix(slots, profile)
            return logprob, carry | {COPY_LOGPROB: habits}

    trie = Trie.from_sorted(np.array([(a, b, c) for a in (0, 1) for b in (0, 1) for c in range(8)], np.int32))
    for pool in (None, np.ones(1, np.int64)):
        beams = beam_search(
            Favoured((2, 2, 8), told),
            trie,
            slots,
            np.zeros((1, 0), np.int32),
            plan=WidthPlan((2, 2, 8), 1),
            num_results=np.ones(1, np.int64),
            value_table=VALUES,
            pool=pool,
        )
        assert beams.sids[0, 0].tolist() == [1, 1, 0]
        np.testing.assert_allclose(np.exp(beams.scores[0, 0]), 0.128, rtol=1e-4)


def test_what_cannot_be_in_the_answer_is_not_scored():
    """Nor is a beam scored twice, but to fill up the rows of a request that needs fewer than another."""
    sizes = (64, 64, 8)
    random = np.random.default_rng(0)
    sids = np.unique(np.stack([random.integers(0, v, 4000) for v in sizes], axis=1), axis=0).astype(np.int32)
    trie, rows, seen = Trie.from_sorted(sids), {}, []
    slots = np.zeros((1, 1, 6), np.int32)
    for pool in (None, np.array([4])):
        executor = MeteredExecutor(Peaky(sizes, scale=3.0, ties=False, copy_path=False))
        beams = beam_search(
            executor,
            trie,
            slots,
            np.zeros((1, 0), np.int32),
            plan=WidthPlan((64, 128, 256), 32),
            num_results=np.array([4]),
            value_table=VALUES,
            pool=pool,
        )
        calls = executor.take()
        rows[pool is None] = sum(call.rows for call in calls)
        seen.append(beams.leaves[0, :4])
        assert {call.requests for call in calls} == {1}
    np.testing.assert_array_equal(*seen)
    assert rows[True] == 64 + 128 + 32
    assert rows[False] < 0.5 * rows[True]


def test_only_new_beams_are_sent():
    class Recorded(PathExecutor):
        sent = []

        def tail(self, level, carry, *, parents, token, allowed):
            self.sent.append((level, token.tolist()))
            return super().tail(level, carry, parents=parents, token=token, allowed=allowed)

    executor = Recorded((4, 3))
    tails = RememberedTails(executor)
    _, carry = executor.prefix(np.zeros((2, 1, 5), np.int32), np.zeros((2, 0), np.int32))
    allowed = np.broadcast_to(np.arange(3, dtype=np.int32), (2, 3, 3))

    def ask(nodes):
        nodes = np.array(nodes)
        token, asked = nodes.astype(np.int32), allowed[:, : nodes.shape[1]]
        return tails.tail(1, carry, nodes=nodes, parents=[], token=token, allowed=asked)

    first, row, _ = ask([[0, 2], [1, 3]])
    assert row.tolist() == [[0, 1], [0, 1]]
    again, row, after = ask([[2, 0, 1], [1, 3, -1]])
    assert executor.sent == [(2, [[0, 2], [1, 3]]), (2, [[1], [1]])]  # of the second, one that fills up
    assert row[0].tolist() == [1, 0, 2]
    np.testing.assert_array_equal(again[0, :2], first[0, ::-1])
    np.testing.assert_array_equal(after["past_kv_2"][0], [0, 2, 1])
    np.testing.assert_array_equal(again[0, 2], executor.logprob(0, (1,)))
    _, row, after = ask([[2, 0], [3, 1]])
    assert len(executor.sent) == 2, "nothing was new"
    assert row.tolist() == [[1, 0], [1, 0]]
    np.testing.assert_array_equal(after["past_kv_2"], [[0, 2], [1, 3]])


@pytest.mark.parametrize("copying", [False, True])
@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_graphs_find_the_same_pruned(engine, copying, pipeline, request, monkeypatch):
    """Keys and values of two calls are joined in the order that the rows of beams point into."""
    monkeypatch.setattr(module, "narrow_widths", lambda widths, *, pool: (2, 3, pool))
    snapshot = tiny_snapshot()
    options = {"requests": repeating} if copying else {}
    if engine == "torch":
        executor = TorchExecutor(copying_model() if copying else tiny_model())
    elif copying:
        executor = OrtExecutor(request.getfixturevalue("copying_graphs"), levels=3)
    else:
        executor = OrtExecutor(pipeline.bundles / "1", levels=3)
    options |= {"plan": WidthPlan((5, 12, 30), 9), "num": 4}
    plain = searched(executor, snapshot, **options)
    pruned = searched(executor, snapshot, pool=np.array([4, 4, 7, 9]), **options)
    for row, pool in enumerate((4, 4, 7, 9)):
        np.testing.assert_array_equal(pruned.leaves[row, :pool], plain.leaves[row, :pool])
        np.testing.assert_allclose(pruned.scores[row, :pool], plain.scores[row, :pool], atol=1e-5)
        value = plain.expected_value[row, :pool]
        np.testing.assert_allclose(pruned.expected_value[row, :pool], value, rtol=1e-4)


def test_too_few_sids_set_no_bound():
    scores = np.array([[-1.0, -2.0, -np.inf], [-1.0, -2.0, -3.0]], np.float32)
    bound = Bound.of(scores, paths=[np.array([[0, 1, -1], [0, 1, 2]])], pool=np.array([3, 2]))
    assert bound.least[0] == -np.inf
    assert bound.least[1] == pytest.approx(-2.0, abs=1e-3)
    assert bound.paths[0].tolist() == [[0, 1, -1], [0, 1, -1]]
    assert Bound.of(scores, paths=[], pool=np.array([4, 4])).least.tolist() == [-np.inf] * 2


def test_the_narrow_search_is_no_wider_than_the_plan():
    assert narrow_widths((128, 256, 18), pool=10) == (64, 24, 10)
    assert narrow_widths((16, 20, 18), pool=10) == (16, 20, 10)
    assert narrow_widths((128, 18), pool=10) == (24, 10)
    assert prod(narrow_widths((1, 1, 1), pool=1)) == 1
