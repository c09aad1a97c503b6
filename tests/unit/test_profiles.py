"""Optimisation profiles hold every shape that a search within the serving limits asks for."""

import numpy as np
import pytest

from export.profiles import ProfileError, ShapeRange, profiles, sizes_of
from serving.backend.settings import ServingConfig
from serving.engines.ort import OrtExecutor
from serving.index.snapshot import IndexSnapshot
from serving.model.bundle import read_manifest
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.pipeline import serving_config
from tests.recording import Recorder, ShapeExecutor
from tests.tiny import LEVEL_SIZES, VALUE_TABLE, random_requests, tiny_snapshot

LIVE = [None, ("codebook", "codebook", "live"), ("codebook", "live", "live"), ("live", "live", "live")]


@pytest.fixture(scope="module")
def manifest(pipeline):
    return read_manifest(pipeline.bundles / "1")


def of(manifest, **settings):
    return profiles(manifest, serving_config().model_copy(update=settings))


def test_ranges_of_the_tiny_model(manifest):
    """By hand: widths 4-8-16:6, 40 ads and 50 excluded ones, batches of 8; codebooks of 6, 5 and 7 codes."""
    found = of(manifest)
    assert set(found) == {"prefix", "tail_2", "tail_3", "tail_4"}
    assert found["prefix"] == {
        "slots": ShapeRange((1, 8, 6), (8, 8, 6), (8, 8, 6)),
        "profile": ShapeRange((1, 2), (8, 2), (8, 2)),
    }
    carry = {
        "m": ShapeRange((1, 4, 16), (8, 4, 16), (8, 4, 16)),
        "context_kv": ShapeRange((1, 1, 2, 2, 11, 8), (8, 1, 2, 2, 11, 8), (8, 1, 2, 2, 11, 8)),
        "context_bias": ShapeRange((1, 11), (8, 11), (8, 11)),
        "past_kv_1": ShapeRange((1, 2, 1, 16), (8, 2, 1, 16), (8, 2, 1, 16)),
    }
    # A level keeps 40 + 50 beams where prefixes lead to too few ads; the value level sees the 40 ads only.
    assert found["tail_2"] == carry | {
        "token": ShapeRange((1, 1), (8, 4), (8, 90)),
        "allowed": ShapeRange((1, 1, 1), (8, 4, 5), (8, 90, 5)),
    }
    past_kv_2 = ShapeRange((1, 2, 1, 16), (8, 2, 4, 16), (8, 2, 90, 16))
    assert found["tail_3"] == carry | {
        "past_kv_2": past_kv_2,
        "parent_2": ShapeRange((1, 1), (8, 8), (8, 90)),
        "token": ShapeRange((1, 1), (8, 8), (8, 90)),
        "allowed": ShapeRange((1, 1, 1), (8, 8, 7), (8, 90, 7)),
    }
    assert found["tail_4"] == carry | {
        "past_kv_2": past_kv_2,
        "past_kv_3": ShapeRange((1, 2, 1, 16), (8, 2, 8, 16), (8, 2, 90, 16)),
        "parent_2": ShapeRange((1, 1), (8, 6), (8, 40)),
        "parent_3": ShapeRange((1, 1), (8, 6), (8, 40)),
        "token": ShapeRange((1, 1), (8, 6), (8, 40)),
        "allowed": ShapeRange((1, 1, 4), (8, 6, 4), (8, 40, 4)),
    }


def test_widths_above_the_limits_decide(manifest):
    found = of(manifest, widths="4-8-16:6", max_widths="300-200-100:70", max_num_ads=60, max_exclude=7)
    assert found["tail_2"]["token"] == ShapeRange((1, 1), (8, 4), (8, 300))
    assert found["tail_3"]["token"] == ShapeRange((1, 1), (8, 8), (8, 200))
    assert found["tail_3"]["past_kv_2"].most == (8, 2, 300, 16)
    assert found["tail_4"]["token"] == ShapeRange((1, 1), (8, 6), (8, 70))
    assert found["tail_4"]["past_kv_3"].most == (8, 2, 200, 16)
    narrow = of(manifest, widths="4-8-16:6", max_widths="300-200-100:50", max_num_ads=60, max_exclude=500)
    assert narrow["tail_4"]["token"].most == (8, 60)  # asked for; excluded ads are no beams of the last level
    assert narrow["tail_4"]["past_kv_3"].most == (8, 2, 560, 16)


def test_usual_children_of_large_codebooks(manifest):
    large = manifest.model_copy(update={"level_sizes": (500, 64, 65)})
    found = of(large)
    assert found["tail_2"]["allowed"] == ShapeRange((1, 1, 1), (8, 4, 64), (8, 90, 64))
    assert found["tail_3"]["allowed"] == ShapeRange((1, 1, 1), (8, 8, 64), (8, 90, 65))


def test_sizes_of_a_rung():
    plan = WidthPlan((4, 8, 16), 6)
    assert [sizes_of(level, plan, levels=3) for level in (0, 2, 3, 4)] == [
        {},
        {"beams": 4},
        {"beams_2": 4, "beams": 8},
        {"beams_2": 4, "beams_3": 8, "beams": 6},
    ]


def test_holds():
    shape = ShapeRange((1, 3, 2), (4, 3, 5), (8, 3, 9))
    assert all(shape.holds(s) for s in [(1, 3, 2), (8, 3, 9), (4, 3, 2)])
    assert not any(
        shape.holds(s) for s in [(0, 3, 2), (9, 3, 9), (4, 2, 5), (4, 4, 5), (4, 3, 1), (4, 3, 10)]
    )
    assert not any(shape.holds(s) for s in [(), (1,), (1, 3), (1, 3, 2, 1)])


@pytest.mark.parametrize(
    ("stem", "dims", "known"),
    [
        ("prefix", ["batch", "time"], r"\['batch'\], got 'time'"),
        ("tail_2", ["batch", 2, "beams_2"], r"\['batch', 'beams', 'children'\], got 'beams_2'"),
        ("tail_3", ["batch", "s11"], r"\['batch', 'beams', 'beams_2', 'children'\], got 's11'"),
    ],
)
def test_a_dimension_that_nobody_knows(manifest, stem, dims, known):
    (name, dtype, _), *others = manifest.graphs[stem]["inputs"]
    tensors = manifest.graphs[stem] | {"inputs": ((name, dtype, tuple(dims)), *others)}
    with pytest.raises(
        ProfileError, match=f"{stem}: {name}: expected one of the dynamic dimensions {known}$"
    ):
        of(manifest.model_copy(update={"graphs": manifest.graphs | {stem: tensors}}))


@pytest.mark.parametrize("settings", [{"widths": "4-8"}, {"max_widths": "9-9-9-9"}, {"widths": "x"}])
def test_widths_of_another_model(manifest, settings):
    with pytest.raises(ValueError, match="width plan: expected"):
        of(manifest, **settings)


def check_inside(calls, ranges, *, note):
    for stem, shapes in calls:
        assert set(shapes) == set(ranges[stem])
        for name, shape in shapes.items():
            assert ranges[stem][name].holds(shape), (stem, name, shape, ranges[stem][name], note)


def search(executor, snapshot, count, *, plan, num, bans, seed, normalise):
    """One batch: `num` ads asked for by its last request and `bans` leaves excluded from it."""
    random = np.random.default_rng(seed)
    slots, profile = random_requests(count, seed=seed)
    leaves = snapshot.trie.leaves
    num_ads = random.integers(1, num + 1, count)
    excluded = random.integers(0, bans + 1, count)
    num_ads[-1], excluded[-1] = num, bans
    return beam_search(
        executor,
        snapshot.trie,
        slots,
        profile,
        plan=plan,
        num_results=num_ads,
        value_table=VALUE_TABLE,
        banned=[np.sort(random.choice(leaves, min(e, leaves), replace=False)) for e in excluded],
        normalise=normalise,
    )


@pytest.mark.parametrize("normalise", LIVE)
def test_every_shape_of_real_searches(pipeline, manifest, normalise):
    """All limits reached and everything below them, with the widest plan and narrower ones."""
    config = serving_config().model_copy(update={"max_widths": "6-20-30:25"})
    ranges, snapshot = profiles(manifest, config), tiny_snapshot()
    recorder = Recorder(OrtExecutor(pipeline.bundles / "1", levels=3))
    plans = [WidthPlan.parse(p, levels=3) for p in (config.widths, config.max_widths, "1-1-1:1", "6-1-9:2")]
    seed = 0
    for plan in plans:
        for count in (1, 3, config.max_batch_size):
            for num in (1, 7, config.max_num_ads):
                for bans in (0, 5, config.max_exclude):
                    seed += 1
                    recorder.calls.clear()
                    search(
                        recorder,
                        snapshot,
                        count,
                        plan=plan,
                        num=num,
                        bans=bans,
                        seed=seed,
                        normalise=normalise,
                    )
                    check_inside(recorder.calls, ranges, note=(plan, count, num, bans))


def test_the_limits_are_reached(pipeline, manifest):
    """Ranges are not generous: searches get to the largest number of beams at the middle and last tails."""
    config = ServingConfig(widths="2-3-4:1", max_num_ads=8, max_exclude=9, max_batch_size=2)
    ranges, snapshot = profiles(manifest, config), tiny_snapshot()
    recorder = Recorder(OrtExecutor(pipeline.bundles / "1", levels=3))
    most = dict.fromkeys(("tail_3", "tail_4"), 0)
    for seed in range(60):
        recorder.calls.clear()
        search(recorder, snapshot, 2, plan=WidthPlan((2, 3, 4), 1), num=8, bans=9, seed=seed, normalise=None)
        check_inside(recorder.calls, ranges, note=seed)
        for stem, shapes in recorder.calls:
            if stem in most:
                most[stem] = max(most[stem], shapes["token"][1])
    assert most["tail_4"] == ranges["tail_4"]["token"].most[1] == 8
    assert ranges["tail_3"]["token"].most[1] == 17
    assert most["tail_3"] > 8  # more than the ads asked for


def snapshot_of(sids):
    ads = len(sids)
    return IndexSnapshot.build(
        np.arange(ads, dtype=np.int64), sids, active=np.ones(ads, bool), level_sizes=LEVEL_SIZES
    )


def random_snapshot(random, ads):
    return snapshot_of(np.stack([random.integers(0, v, ads) for v in LEVEL_SIZES], axis=1).astype(np.int32))


def test_beams_that_are_caught_up_may_be_more_than_a_level_keeps(manifest):
    """Level 2 keeps one beam a request, yet two ads get a value and one request skipped that level's tail."""
    config = ServingConfig(widths="6-1-2:2", max_num_ads=1, max_exclude=0, max_batch_size=2)
    ranges = profiles(manifest, config)
    sids = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [2, 0, 0], [3, 0, 0]], np.int32)
    seen = set()
    for seed in range(30):
        recorder = Recorder(ShapeExecutor(manifest, seed=seed))
        plan = WidthPlan.parse(config.widths, levels=3)
        search(recorder, snapshot_of(sids), 2, plan=plan, num=1, bans=0, seed=seed, normalise=LIVE[2])
        check_inside(recorder.calls, ranges, note=seed)
        seen |= {shapes["token"][1] for stem, shapes in recorder.calls if stem == "tail_3"}
    assert seen == {1, 2}


def test_every_shape_of_random_searches(manifest):
    """Small limits, widths in any order, sparse catalogues: where one size hides behind no other."""
    for seed in range(800):
        random = np.random.default_rng(seed)
        widest = random.integers(1, 12, 4).tolist()
        widths = [int(random.integers(1, w + 1)) for w in widest]
        form = "{}-{}-{}:{}"
        config = ServingConfig(
            widths=form.format(*widths),
            max_widths=form.format(*widest),
            max_num_ads=int(random.integers(1, 6)),
            max_exclude=int(random.integers(0, 4)),
            max_batch_size=3,
        )
        plan = WidthPlan.parse(config.max_widths if seed % 2 else config.widths, levels=3)
        normalise = LIVE[seed % 4]
        snapshot = random_snapshot(random, int(random.integers(1, 40)))
        recorder = Recorder(ShapeExecutor(manifest, seed=seed))
        count, num, bans = (int(random.integers(1, 4)), config.max_num_ads, config.max_exclude)
        search(recorder, snapshot, count, plan=plan, num=num, bans=bans, seed=seed, normalise=normalise)
        check_inside(recorder.calls, profiles(manifest, config), note=(seed, config, normalise))
