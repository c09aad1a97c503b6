"""Context slots and habits against a plain loop over the events."""

import numpy as np
import pytest

from serving.model.features import BEHAVIORS, FeatureSpec, join_codes, select_events
from tests.slots import plain_slots


def built_slots(spec, events, now):
    """Slots as training joins them from `select_events`, and the number of events that were left out."""
    history = select_events(
        spec,
        np.array([e[0] for e in events], np.int64),
        behaviors=np.array([e[2] for e in events], np.int32),
        timestamps=np.array([e[3] for e in events], np.int64),
        now=now,
    )
    sids = np.array([e[1] for e in events], np.int32).reshape(-1, spec.levels)
    codes = np.concatenate([sids, np.zeros((1, spec.levels), np.int32)])[history.events]
    return join_codes(codes, history.columns, shown=history.events >= 0), history.ignored


@pytest.mark.parametrize("window", [0, 1, 30])
@pytest.mark.parametrize("ids", [range(8), range(0, 1 << 63, 1 << 60), range(-4, 4)], ids=str)
def test_equals_a_plain_loop(ids, window):
    random = np.random.default_rng(0)
    for _ in range(40):
        spec = FeatureSpec(
            levels=3,
            short_slots=int(random.integers(0, 6)),
            long_slots=int(random.integers(1, 6)),
            max_history=int(random.integers(1, 25)),
            gap_edges_s=(0, 5, 20, 60),
            count_edges=(1, 2, 4),
            attribution_window_s=window,
            habits=int(random.integers(0, 10)),
        )
        catalogue, now = random.integers(0, 9, (8, 3)).tolist(), 100
        # Few ads and few seconds: repeats, equal times, events of the second of the request, and later ones.
        events = [
            (ids[ad], catalogue[ad], int(random.integers(1, 4)), int(random.integers(0, 120)))
            for ad in random.integers(0, 8, int(random.integers(0, 40))).tolist()
        ]
        got, ignored = built_slots(spec, events, now)
        expected, left_out = plain_slots(spec, events, now)
        np.testing.assert_array_equal(got, expected)
        assert (ignored, got.dtype) == (left_out, np.int32)


def test_an_example_by_hand():
    spec = FeatureSpec(
        levels=2, short_slots=2, long_slots=2, max_history=4, gap_edges_s=(10, 100), count_edges=(1, 2)
    )
    # ad, sid, behavior, time: out of order; 7 is the oldest and is trimmed; the last is in the future
    events = [
        (5, (1, 2), 3, 1000),
        (9, (3, 4), 1, 890),
        (5, (1, 2), 2, 900),
        (7, (0, 0), 3, 1),
        (9, (3, 4), 3, 950),
        (8, (6, 6), 3, 1001),
    ]
    got, ignored = built_slots(spec, events, 1000)
    assert got.tolist() == [
        [2, 3, 3, 0, 1],  # ad 5, now
        [4, 5, 3, 1, 1],  # ad 9, 50 s ago
        [2, 3, 3, 0, 1],  # both ads occur twice: the more recently seen comes first
        [4, 5, 3, 1, 1],
    ]
    assert ignored == 2


def test_a_funnel_takes_one_slot_with_the_outcome_known_by_then():
    spec = FeatureSpec(levels=1, short_slots=3, long_slots=0, gap_edges_s=(10, 100), attribution_window_s=60)
    shown = [(5, (1,), 1, 880), (5, (1,), 2, 882), (5, (1,), 3, 940), (5, (1,), 1, 941), (9, (2,), 1, 930)]
    got, ignored = built_slots(spec, shown, 1000)
    # 941 is more than a minute after 880. A conversion 60 s later is still the first one's, at its time.
    assert got.tolist() == [[2, 1, 1, 1], [3, 1, 1, 0], [2, 3, 2, 1]]
    assert ignored == 0
    assert built_slots(spec, shown, 881)[0].tolist() == [[2, 1, 0, 0], [0] * 4, [0] * 4]


@pytest.mark.parametrize("gap", [1, 7, 30, 31, 60, 61])
def test_exposures_that_follow_each_other_for_long(gap):
    spec = FeatureSpec(levels=1, short_slots=500, long_slots=2, max_history=500, attribution_window_s=60)
    events = [(ad, (ad,), 1 + i % 3, gap * i + 5 * ad) for i in range(150) for ad in (1, 2)]
    got, _ = built_slots(spec, events, 20_000)
    np.testing.assert_array_equal(got, plain_slots(spec, events, 20_000)[0])


def test_times_of_a_client_may_lie_as_far_apart_as_int64_allows():
    spec = FeatureSpec(levels=1, short_slots=4, long_slots=0, attribution_window_s=60)
    events = [(5, (1,), 1, -(1 << 63)), (5, (1,), 2, -5), (5, (1,), 3, 50), (5, (1,), 1, (1 << 63) - 1)]
    got, _ = built_slots(spec, events, (1 << 63) - 1)
    assert got[:, 1].tolist() == [1, 3, 1, 0]


def test_order_of_the_request_does_not_matter_when_times_differ():
    spec = FeatureSpec(levels=1, short_slots=5, long_slots=5)
    random = np.random.default_rng(0)
    events = [(int(ad), (int(ad),), 3, t) for t, ad in enumerate(random.integers(0, 6, 20))]
    shuffled = [events[i] for i in random.permutation(20)]
    np.testing.assert_array_equal(built_slots(spec, events, 50)[0], built_slots(spec, shuffled, 50)[0])


def test_columns_stay_within_the_embedding_tables():
    spec = FeatureSpec(levels=1, short_slots=3, long_slots=3)
    events = [(1, (4,), BEHAVIORS["click"], 0)] * 500 + [(2, (0,), BEHAVIORS["conversion"], 1 << 40)]
    slots, _ = built_slots(spec, events, 1 << 40)
    assert slots[:, 2].max() == spec.gap_buckets - 1
    assert slots[:, 3].max() == spec.count_buckets - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_history": 0}, "max_history: expected a positive number, got 0"),
        ({"short_slots": 0, "long_slots": 0}, r"short_slots \+ long_slots >= 1, got 0"),
        ({"habits": -1}, "habits: expected a number >= 0, got -1"),
        ({"attribution_window_s": -1}, "attribution_window_s: expected seconds >= 0, got -1"),
        ({"gap_edges_s": (5, 5)}, r"gap_edges_s: expected strictly increasing edges, got \(5, 5\)"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        FeatureSpec(**settings)


def test_json_round_trip():
    spec = FeatureSpec(levels=2, profile_sizes=(3, 9))
    assert FeatureSpec.from_json(spec.to_json()) == spec
