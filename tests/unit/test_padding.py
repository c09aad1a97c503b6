"""Padding to few shapes: the same beams, and nothing but the shapes that engines are prepared for."""

from dataclasses import replace

import numpy as np
import pytest

from serving.engines.ort import OrtExecutor
from serving.engines.padding import PaddedExecutor, ShapeBuckets
from serving.search import beam_search as module
from serving.search.beam_search import beam_search
from serving.search.executor import tail_parent_inputs
from serving.search.widths import WidthPlan
from tests.recording import Recorder
from tests.tiny import LEVEL_SIZES, VALUE_TABLE, random_requests, tiny_snapshot

RUNGS = (WidthPlan((4, 8, 16), 6), WidthPlan((5, 12, 20), 10))
PLANS = [
    *RUNGS,
    WidthPlan((1, 1, 1), 1),
    WidthPlan((6, 3, 12), 2),  # narrower than the level before
    WidthPlan((6, 30, 60), 40),  # past the last bucket at every tail
]
LIVE = [None, ("codebook", "codebook", "live"), ("codebook", "live", "live"), ("live", "live", "live")]
BUCKETS = ShapeBuckets.of(RUNGS, level_sizes=LEVEL_SIZES, value_buckets=len(VALUE_TABLE), max_batch=6)


@pytest.fixture(scope="module")
def engine(pipeline):
    return OrtExecutor(pipeline.bundles / "1", levels=3)


def search(executor, snapshot, count, *, plan, num=3, banned=None, normalise=None):
    slots, profile = random_requests(8)
    return beam_search(
        executor,
        snapshot.trie,
        slots[8 - count :],
        profile[8 - count :],
        plan=plan,
        num_results=np.arange(num, num - count, -1).clip(1),
        value_table=VALUE_TABLE,
        banned=banned,
        normalise=normalise,
    )


def bans(snapshot, count):
    """A few leaves of each request, none of the first's."""
    random = np.random.default_rng(count)
    return [np.sort(random.choice(snapshot.trie.leaves, 4 * i, replace=False)) for i in range(count)]


def check_same(found, expected):
    for name in ("sids", "leaves", "widths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for name in ("scores", "expected_value"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)


def test_pruned_searches_are_the_same_padded(engine, monkeypatch):
    """Rows of padding stay between those of two calls."""
    monkeypatch.setattr(module, "narrow_widths", lambda widths, *, pool: (2, 3, pool))
    options = {
        "plan": WidthPlan((6, 11, 20), 6),
        "num_results": np.array([3, 3, 2]),
        "value_table": VALUE_TABLE,
    }
    slots, profile = random_requests(3)
    snapshot, pool = tiny_snapshot(), np.array([3, 5, 2])
    padded, plain = (
        beam_search(executor, snapshot.trie, slots, profile, pool=pool, **options)
        for executor in (PaddedExecutor(engine, BUCKETS), engine)
    )
    check_same(padded, plain)


def check_shapes(calls, buckets):
    """Every size of every input is a bucket's, or above its last one."""

    def fits(size, allowed):
        return size in allowed or size > allowed[-1]

    for stem, shapes in calls:
        batches = {shape[0] for shape in shapes.values()}
        assert len(batches) == 1, (stem, shapes)  # the carry has the rows of padding too
        assert fits(batches.pop(), buckets.batch), (stem, shapes)
        if stem == "prefix":
            continue
        level = int(stem.removeprefix("tail_"))
        assert fits(shapes["allowed"][1], buckets.beams[level - 2]), (stem, shapes)
        assert fits(shapes["allowed"][2], buckets.children[level - 2]), (stem, shapes)
        for name in ("token", *tail_parent_inputs(level)):
            assert shapes[name] == shapes["allowed"][:2], (stem, shapes)
        for j in range(2, level):
            assert fits(shapes[f"past_kv_{j}"][2], buckets.beams[j - 2]), (stem, shapes)


@pytest.mark.parametrize("normalise", LIVE)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_beams_are_those_without_padding(engine, plan, normalise):
    snapshot = tiny_snapshot()
    for count in (1, 2, 3, 4, 5, 7):  # 7: past the last bucket
        for banned in (None, bans(snapshot, count)):
            settings = {"plan": plan, "banned": banned, "normalise": normalise}
            plain, padded = Recorder(engine), Recorder(engine)
            expected = search(plain, snapshot, count, **settings)
            check_same(search(PaddedExecutor(padded, BUCKETS), snapshot, count, **settings), expected)
            assert [s for s, _ in padded.calls] == [s for s, _ in plain.calls]
            check_shapes(padded.calls, BUCKETS)
            if count == 3 or (count == 5 and plan in RUNGS):
                assert padded.calls != plain.calls  # something was padded


def test_beams_that_skip_tails_and_are_caught_up(engine):
    """A sparse catalogue: forced moves are not scored, and the value level wants their keys and values."""
    snapshot, plan = tiny_snapshot(ads=25), WidthPlan((6, 14, 20), 2)
    for normalise in LIVE[1:]:
        padded = Recorder(engine)
        expected = search(engine, snapshot, 3, plan=plan, num=1, normalise=normalise)
        found = search(PaddedExecutor(padded, BUCKETS), snapshot, 3, plan=plan, num=1, normalise=normalise)
        check_same(found, expected)
        check_shapes(padded.calls, BUCKETS)
        stems = [s for s, _ in padded.calls]
        assert len(stems) > len(set(stems)), stems  # a tail ran a second time


def test_rows_of_padding_are_legal_and_come_last():
    """Codes and parents that exist, no child allowed; what was asked for stays where it was."""
    seen = {}

    class Inner:
        def prefix(self, slots, profile):
            seen.update(slots=slots, profile=profile)
            return np.arange(len(slots), dtype=np.float32)[:, None].repeat(6, 1), {"m": len(slots)}

        def tail(self, level, carry, *, parents, token, allowed):
            seen.update(parents=parents, token=token, allowed=allowed, carry=carry)
            return np.arange(allowed.size, dtype=np.float32).reshape(allowed.shape), {"past": carry}

    executor = PaddedExecutor(Inner(), replace(BUCKETS, children=((8, 32), (7,), (4,))))
    slots, profile = random_requests(3)
    logprob, carry = executor.prefix(slots, profile)
    assert logprob[:, 0].tolist() == [0, 1, 2]
    assert carry == {"m": 4}
    assert seen["slots"].shape == (4, *slots.shape[1:])
    np.testing.assert_array_equal(seen["slots"][:3], slots)
    np.testing.assert_array_equal(seen["profile"][:3], profile)
    assert not seen["slots"][3:].any()
    assert not seen["profile"][3:].any()

    token = np.full((3, 9), 4, np.int32)
    parents = [np.full((3, 9), 3, np.int32)]
    allowed = np.full((3, 9, 6), 2, np.int32)
    logprob, again = executor.tail(3, carry, parents=parents, token=token, allowed=allowed)
    assert again == {"past": carry}
    assert seen["carry"] is carry
    # 12 beams, since 9 is above 8; 7 children
    np.testing.assert_array_equal(logprob, np.arange(4 * 12 * 7).reshape(4, 12, 7)[:3, :9, :6])
    for name, value, fill in (("token", 4, 0), ("allowed", 2, -1)):
        array = seen[name]
        assert array.dtype == np.int32
        assert (array[:3, :9] == value).all() if name == "token" else (array[:3, :9, :6] == value).all()
        assert (array != fill).sum() == (27 if name == "token" else 27 * 6)
    assert seen["parents"][0].dtype == np.int32
    assert (seen["parents"][0][:3, :9] == 3).all()
    assert (seen["parents"][0] != 0).sum() == 27


def test_a_call_of_a_bucket_is_not_copied():
    seen = []

    class Inner:
        def prefix(self, slots, profile):
            seen.append((slots, profile))
            return np.zeros((4, 6), np.float32), {}

    slots, profile = random_requests(4)
    PaddedExecutor(Inner(), BUCKETS).prefix(slots, profile)
    assert seen[0][0] is slots
    assert seen[0][1] is profile


@pytest.mark.parametrize(
    ("plans", "sizes", "values", "batch", "expected"),
    [
        # one rung; codebooks below the smallest number of children; batches that end between powers of two
        (
            ["4-8-16:6"],
            (6, 5, 7),
            4,
            6,
            ((1, 2, 4, 6), ((4,), (8,), (6,)), ((5,), (7,), (4,))),
        ),
        # two rungs: one shared width, one in the other order
        (
            ["64-128-256:64", "128-128-512:32"],
            (256, 256, 100),
            10,
            8,
            ((1, 2, 4, 8), ((64, 128), (128,), (32, 64)), ((8, 32, 128, 256), (8, 32, 100), (10,))),
        ),
        # sizes at the edge of a step; one level
        (["7-9-3"], (1000, 8, 9), 2, 1, ((1,), ((7,), (9,), (3,)), ((8,), (8, 9), (2,)))),
        (["7:5"], (30,), 2, 3, ((1, 2, 3), ((5,),), ((2,),))),
    ],
)
def test_buckets(plans, sizes, values, batch, expected):
    parsed = tuple(WidthPlan.parse(p, levels=len(sizes)) for p in plans)
    found = ShapeBuckets.of(parsed, level_sizes=sizes, value_buckets=values, max_batch=batch)
    assert (found.batch, found.beams, found.children) == expected
