"""Every refusal of a request says what was expected and what came; what may be trimmed is counted."""

import math

import numpy as np
import pytest

from serving.backend.request import (
    RequestError,
    RequestLimits,
    check_exclude,
    check_num_ads,
    request_features,
)
from serving.backend.resolve import resolve
from serving.model.features import fill_slots
from tests.slots import events_of, plain_slots
from tests.tiny import SPEC, random_slot_ads, tiny_snapshot

NOW = 1_000_000


def ask(ad_ids=(), behaviors=None, timestamps=None, *, profile=(0, 0), now=NOW):
    ad_ids = np.array(ad_ids, np.int64)
    return request_features(
        SPEC,
        tiny_snapshot(),
        ad_ids=ad_ids,
        behaviors=np.array([3] * len(ad_ids) if behaviors is None else behaviors, np.int32),
        timestamps=np.array([NOW - 60] * len(ad_ids) if timestamps is None else timestamps, np.int64),
        profile=np.array(profile, np.int32),
        now=now,
    )


def known(count):
    return tiny_snapshot().ad_ids[:count].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ad_ids": (1, 2), "behaviors": (1,)}, r"history_behaviors: expected 2 values .*got 1"),
        ({"ad_ids": (1, 2), "timestamps": (1, 2, 3)}, r"history_timestamps: expected 2 values .*got 3"),
        ({"ad_ids": (1, -2)}, r"history_ad_ids\[1\]: expected an ad id >= 0 \(or -1 for padding\), got -2"),
        (
            {"ad_ids": (1,), "behaviors": (0,)},
            "history_behaviors: expected 1..3 .*conversion.*got 0 at position 0",
        ),
        ({"ad_ids": (1, 1), "behaviors": (1, 4)}, "history_behaviors: expected 1..3 .*got 4 at position 1"),
        ({"ad_ids": (1,), "timestamps": (-5,)}, "history_timestamps: expected 0..1099511627776 .*got -5"),
        (
            {"ad_ids": (1,), "timestamps": (1 << 41,)},
            "history_timestamps: expected .*unix seconds.*got 2199023255552",
        ),
        ({"now": -1}, "timestamp: expected 0..1099511627776 .*got -1"),
        ({"profile": (0,)}, "profile: expected 2 codes, got 1"),
        ({"profile": (0, 0, 0)}, "profile: expected 2 codes, got 3"),
        ({"profile": (0, 4)}, r"profile\[1\]: expected 0..3 \(0 = unknown\), got 4"),
        ({"profile": (-1, 0)}, r"profile\[0\]: expected 0..2 \(0 = unknown\), got -1"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(RequestError, match=message):
        ask(**arguments)


@pytest.mark.parametrize("num", [0, -1, 41, 100_000])
def test_number_of_ads(num):
    limits = RequestLimits(max_num_ads=40)
    with pytest.raises(RequestError, match=rf"num_ads: expected 1..40 \(ads to return\), got {num}"):
        check_num_ads(np.array([5, num]), limits)
    check_num_ads(np.array([1, 40]), limits)


def test_excluded_ads():
    limits = RequestLimits(max_exclude=3)
    assert check_exclude(np.array([5, -1, 2, 5, 2, 9]), limits).tolist() == [2, 5, 9]
    assert check_exclude(np.array([], np.int64), limits).tolist() == []
    with pytest.raises(RequestError, match="exclude_ad_ids: expected at most 3 ads, got 4"):
        check_exclude(np.arange(4), limits)
    with pytest.raises(RequestError, match=r"exclude_ad_ids\[2\]: expected an ad id >= 0 .*got -7"):
        check_exclude(np.array([1, 2, -7]), limits)


def test_limits_that_allow_nothing():
    with pytest.raises(ValueError, match="expected max_num_ads >= 1 and max_exclude >= 0, got"):
        RequestLimits(max_num_ads=0)


def test_cold_start_user():
    found = ask()
    assert found.slots.shape == (SPEC.slots, 3)
    assert not found.slots.any()
    assert found.slot_ads.tolist() == [-1] * SPEC.slots
    assert found.ignored == 0


def test_what_is_left_out_is_counted():
    a, b = known(2)
    unknown = 3  # not in the tiny catalogue
    assert unknown not in tiny_snapshot().ad_ids
    found = ask((a, -1, unknown, b, a), timestamps=(5, -9, 6, NOW + 1, NOW), behaviors=(1, 99, 2, 3, 3))
    assert found.ignored == 2  # the unknown ad and the future event; padding is nothing at all
    assert found.slots[:2, 0].tolist() == [3, 1]
    assert found.slot_ads[:3].tolist() == [a, a, -1]


def test_history_of_ten_thousand_keeps_the_newest():
    ads = known(20)
    history = [ads[i % 20] for i in range(10_000)]
    times = np.arange(10_000) + 10
    found = ask(history, timestamps=times)
    assert found.ignored == 10_000 - SPEC.max_history
    same = ask(history[-SPEC.max_history :], timestamps=times[-SPEC.max_history :])
    np.testing.assert_array_equal(found.slots, same.slots)
    np.testing.assert_array_equal(found.slot_ads, same.slot_ads)


def test_unknown_ads_do_not_push_known_ones_out():
    ad = known(1)[0]
    found = ask([ad] + [3] * 500, timestamps=range(501))
    assert found.slot_ads[0] == ad
    assert found.slot_ads[SPEC.short_slots] == ad
    assert (found.slot_ads >= 0).sum() == 2


def test_a_paused_ad_still_counts_as_history():
    snapshot = tiny_snapshot()
    paused = int(np.setdiff1d(snapshot.ad_ids, snapshot.leaf_ad_ids)[0])
    found = ask((paused,))
    assert found.ignored == 0
    assert found.slots[0, 0] == 3
    assert found.slot_ads[0] == paused


def test_slots_are_what_training_builds():
    """Through `request_features` and `fill_slots`, as the known ads alone give."""
    random, snapshot = np.random.default_rng(0), tiny_snapshot()
    for count in (0, 1, 5, 40):
        ads = random.choice(np.append(snapshot.ad_ids, [3, 10_001]), count)
        behaviors, times = random.integers(1, 4, count), NOW - random.integers(-5, 900_000, count)
        found = ask(ads, behaviors=behaviors, timestamps=times)
        sids, known = snapshot.sids_of(ads)
        events = events_of(ads[known], sids[known], behaviors=behaviors[known], timestamps=times[known])
        expected, left_out = plain_slots(SPEC, events, NOW)
        got = fill_slots(snapshot, found.slot_ads[None], found.slots[None])
        np.testing.assert_array_equal(got[0], expected)
        assert got.dtype == np.int32
        assert found.ignored == left_out + int((~known).sum())


def test_an_ad_that_a_generation_does_not_know_leaves_its_slot_empty():
    slot_ads, columns, _, slots = random_slot_ads(6)
    assert ((slot_ads == 10_001) & (columns[..., 0] > 0)).any()
    np.testing.assert_array_equal(fill_slots(tiny_snapshot(), slot_ads, columns), slots)


def test_resolve_keeps_the_order_of_beams_and_skips_what_is_not_live():
    snapshot = tiny_snapshot()
    live = np.array(sorted({tuple(s) for s in snapshot.sids_of(snapshot.leaf_ad_ids)[0].tolist()}), np.int32)
    beams = np.array([live[4], [-1, -1, -1], live[0], live[9]], np.int32)
    ads_of = {i: snapshot.ads_of_leaves(np.array([i]))[1].tolist() for i in (4, 0, 9)}
    exclude = np.array(ads_of[4][:1])
    everything = [a for i in (4, 0, 9) for a in ads_of[i] if a not in exclude]
    scores, values = np.array([-1, -np.inf, -2, -3], np.float32), np.array([7, np.nan, 5, np.nan], np.float32)
    found = resolve(snapshot, beams, scores=scores, expected_value=values, num_ads=20, exclude=exclude)
    count = len(everything)
    assert found.ad_ids.tolist() == everything + [-1] * (20 - count)
    expected = [{4: -1, 0: -2, 9: -3}[i] for i in (4, 0, 9) for a in ads_of[i] if a not in exclude]
    assert found.scores.tolist() == expected + [0] * (20 - count)
    assert np.isfinite(found.expected_value).all()  # an answer as JSON knows no NaN
    assert (found.sids[:count] == snapshot.sids_of(np.array(everything))[0]).all()
    assert (found.sids[count:] == -1).all()
    short = resolve(snapshot, beams, scores=scores, expected_value=values, num_ads=1, exclude=exclude)
    assert short.ad_ids.tolist() == everything[:1]


def test_resolve_ranks_by_probability_or_by_what_an_ad_is_worth():
    snapshot = tiny_snapshot()
    live = np.array(sorted({tuple(s) for s in snapshot.sids_of(snapshot.leaf_ad_ids)[0].tolist()}), np.int32)
    random = np.random.default_rng(4)
    scores = np.sort(-random.exponential(2, 20).astype(np.float32))[::-1].copy()
    values = random.exponential(3, 20).astype(np.float32)
    values[12:] = np.nan  # beyond the value width
    beams = {"scores": scores, "expected_value": values, "exclude": np.zeros(0, np.int64)}
    ads_of = [snapshot.ads_of_leaves(np.array([i]))[1].tolist() for i in range(20)]
    worth = [math.exp(s) * v for s, v in zip(scores.tolist(), values.tolist(), strict=True)]
    best = sorted(range(12), key=lambda i: -worth[i]) + list(range(12, 20))
    assert best != list(range(20))
    for rank_by, order in (("probability", range(20)), ("value", best)):
        found = resolve(snapshot, live[:20], num_ads=15, rank_by=rank_by, **beams)
        assert found.ad_ids.tolist() == [ad for i in order for ad in ads_of[i]][:15]
        of_ads = [i for i in order for _ in ads_of[i]][:15]
        np.testing.assert_array_equal(found.scores, scores[of_ads])
        np.testing.assert_array_equal(found.expected_value, np.nan_to_num(values[of_ads]))
