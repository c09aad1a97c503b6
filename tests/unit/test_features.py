"""Context slots against a plain loop over the events."""

import bisect

import numpy as np
import pytest

from serving.model.features import BEHAVIORS, FeatureSpec, build_slots


def plain_slots(spec, events, now):
    """`build_slots` as one would say it: events are (ad, sid, behavior, time)."""
    past = sorted((e for e in events if e[3] <= now), key=lambda e: e[3])[-spec.max_history :]
    newest_first = past[::-1]
    count = {ad: sum(e[0] == ad for e in past) for ad in {e[0] for e in past}}

    def row(event):
        ad, sid, behavior, time = event
        gap = bisect.bisect_left(spec.gap_edges_s, now - time)
        return [*(c + 1 for c in sid), behavior, gap, bisect.bisect_left(spec.count_edges, count[ad])]

    latest = {}
    for rank, event in enumerate(newest_first):
        latest.setdefault(event[0], (rank, event))
    long = sorted(latest.values(), key=lambda x: (-count[x[1][0]], x[0]))[: spec.long_slots]
    short = newest_first[: spec.short_slots]
    empty = [0] * (spec.levels + 3)
    rows = [row(e) for e in short] + [empty] * (spec.short_slots - len(short))
    rows += [row(e) for _, e in long] + [empty] * (spec.long_slots - len(long))
    return np.array(rows), len(events) - len(past)


def arrays(events):
    return (
        np.array([e[0] for e in events], np.int64),
        {
            "sids": np.array([e[1] for e in events], np.int32).reshape(len(events), -1),
            "behaviors": np.array([e[2] for e in events], np.int32),
            "timestamps": np.array([e[3] for e in events], np.int64),
        },
    )


@pytest.mark.parametrize("seed", range(40))
def test_equals_a_plain_loop(seed):
    random = np.random.default_rng(seed)
    spec = FeatureSpec(
        levels=3,
        short_slots=int(random.integers(0, 6)),
        long_slots=int(random.integers(1, 6)),
        max_history=int(random.integers(1, 25)),
        gap_edges_s=(0, 5, 20, 60),
        count_edges=(1, 2, 4),
    )
    catalogue = random.integers(0, 9, (8, 3)).tolist()
    now = 100
    # Few ads and few seconds: repeats, equal times, events of the same second as the request, and later ones.
    events = [
        (ad, catalogue[ad], int(random.integers(1, 4)), int(random.integers(0, 120)))
        for ad in random.integers(0, 8, int(random.integers(0, 40))).tolist()
    ]
    ad_ids, rest = arrays(events)
    if not events:
        rest["sids"] = np.zeros((0, 3), np.int32)
    got = build_slots(spec, ad_ids, now=now, **rest)
    expected, ignored = plain_slots(spec, events, now)
    np.testing.assert_array_equal(got.slots, expected)
    assert got.ignored == ignored
    assert got.slots.dtype == np.int32


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
    ad_ids, rest = arrays(events)
    got = build_slots(spec, ad_ids, now=1000, **rest)
    assert got.slots.tolist() == [
        [2, 3, 3, 0, 1],  # ad 5, now
        [4, 5, 3, 1, 1],  # ad 9, 50 s ago
        [2, 3, 3, 0, 1],  # both ads occur twice: the more recently seen comes first
        [4, 5, 3, 1, 1],
    ]
    assert got.ignored == 2


def test_order_of_the_request_does_not_matter_when_times_differ():
    spec = FeatureSpec(levels=1, short_slots=5, long_slots=5)
    random = np.random.default_rng(0)
    events = [(int(ad), (int(ad),), 3, t) for t, ad in enumerate(random.integers(0, 6, 20))]
    shuffled = [events[i] for i in random.permutation(20)]
    (a, rest_a), (b, rest_b) = arrays(events), arrays(shuffled)
    np.testing.assert_array_equal(
        build_slots(spec, a, now=50, **rest_a).slots, build_slots(spec, b, now=50, **rest_b).slots
    )


def test_columns_stay_within_the_embedding_tables():
    spec = FeatureSpec(levels=1, short_slots=3, long_slots=3)
    events = [(1, (4,), BEHAVIORS["click"], 0)] * 500 + [(2, (0,), BEHAVIORS["conversion"], 1 << 40)]
    ad_ids, rest = arrays(events)
    slots = build_slots(spec, ad_ids, now=1 << 40, **rest).slots
    assert slots[:, 2].max() == spec.gap_buckets - 1
    assert slots[:, 3].max() == spec.count_buckets - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_history": 0}, "max_history: expected a positive number, got 0"),
        ({"short_slots": 0, "long_slots": 0}, r"short_slots \+ long_slots >= 1, got 0"),
        ({"gap_edges_s": (5, 5)}, r"gap_edges_s: expected strictly increasing edges, got \(5, 5\)"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        FeatureSpec(**settings)


def test_json_round_trip():
    spec = FeatureSpec(levels=2, profile_sizes=(3, 9))
    assert FeatureSpec.from_json(spec.to_json()) == spec
