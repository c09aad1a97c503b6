"""What was served and fed back, as training reads it: as a sample of its own, and as rows of a log."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from feedback.commands.export import event_rows
from feedback.events.event import FeedbackEvent
from feedback.join.joiner import Joiner
from feedback.join.rules import JoinConfig
from feedback.store.samples import JoinedSample, Samples
from indexer.store.incoming import Incoming
from serving.backend.request import request_features
from serving.index.snapshot import IndexSnapshot
from serving.model.features import FeatureSpec
from tests.pipeline import LEVEL_SIZES as SIZES
from tests.served import served
from tests.tiny_log import CONFIG, DAY, open_run, run_of, write_run
from training.data.lists import CandidateFlag
from training.data.served import served_sample
from training.data.values import ValueBuckets

BEHAVIORS = {"impression": 1, "click": 2, "conversion": 3}
START = 49 * DAY  # behind the tiny log
TARGETS = ("click", "conversion")
FEATURES = FeatureSpec(short_slots=4, long_slots=4, max_history=32, profile_sizes=(3,))  # of the tiny log


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """A log, requests served behind it, what came of them, and the log with the rows of that added."""
    folder = tmp_path_factory.mktemp("served")
    before = write_run(folder / "before")
    _, spec, dataset = open_run(before)
    snapshot = IndexSnapshot.build(
        dataset.ad_ids,
        dataset.ad_sids,
        active=np.ones(len(dataset.ad_ids), bool),
        level_sizes=spec.level_sizes,
    )
    draw, base = random.Random(3), pl.read_parquet(before[1] / "data" / "events.parquet")
    now = START + 10 * DAY
    times = JoinConfig(window_s=600, correct_s=2 * DAY)
    joiner = Joiner(folder / "store", times, now=lambda: float(now), map_size=1 << 28)
    for n in range(30):
        user, at = n % 10, START + n * 4_000
        history = joiner.history(user)
        past = base.filter(pl.col("user_id") == user).sort("timestamp", "ad_id")
        features = request_features(
            dataset.spec,
            snapshot,
            ad_ids=np.concatenate([past["ad_id"].to_numpy(), history["ad_id"]]),
            behaviors=np.concatenate([[BEHAVIORS[b] for b in past["behavior"]], history["behavior"]]).astype(
                np.int32
            ),
            timestamps=np.concatenate([past["timestamp"].to_numpy(), history["timestamp"]]),
            profile=dataset.profile[np.flatnonzero(dataset.log.user_ids == user)[0]],
            now=at,
        )
        ads = draw.sample(range(60), 5)
        record = served(
            f"q{n}",
            user_id=user,
            timestamp=at,
            written=float(at),
            slot_ads=features.slot_ads.tolist(),
            slots=features.slots.tolist(),
            profile=features.profile.tolist(),
            ad_ids=ads,
            sids=snapshot.sids_of(np.array(ads))[0].tolist(),
            scores=[-1.0 - i for i in range(5)],
            expected_value=[1.0] * 5,
            num_ads=5,
        )
        events = []
        for ad in ads[: draw.randrange(1, 5)]:
            events.append((ad, "impression", at, None))
            if draw.random() < 0.7:
                events.append((ad, "click", at + 20, None))
            if draw.random() < 0.4:
                events.append((ad, "conversion", at + draw.choice([90, 5_000]), float(draw.randrange(1, 9))))
        draw.shuffle(events)
        fed = [
            FeedbackEvent(request_id=f"q{n}", ad_id=ad, behavior=b, timestamp=when, value=value)
            for ad, b, when, value in events
        ]
        items = [Incoming(record, record.encode(), "x"), *(Incoming(one, b"{}", "x") for one in fed)]
        joiner.apply(items, offsets={})
        while joiner.close_due():
            pass
    joiner.close()
    rows, last = event_rows(folder / "store", after=0)
    assert last > 30  # late conversions corrected some
    added = pl.DataFrame(rows).select(pl.all().exclude("provenance"), provenance=pl.lit("served"))
    base = base.with_columns(provenance=pl.lit("made up"))
    both = pl.concat([base, added], how="diagonal_relaxed")
    config = copy.deepcopy(CONFIG)
    config["data"]["target_behaviors"] = list(TARGETS)
    config["training"] |= {"targets_per_request": 9, "min_history": 1}
    config["training"]["behavior_weights"] = {"click": 0.5, "conversion": 2.0}
    after = run_of(folder / "after", both, users=12, config=config)
    with Samples(folder / "store") as samples:
        newest = {sample.record.request_id: sample for sample in samples.read(after=0)}
    return newest, after, snapshot, spec.value_buckets


def test_a_sample_is_what_the_log_gives(joined) -> None:
    newest, after, snapshot, buckets = joined
    preset, _, dataset = open_run(after)
    compared = 0
    for part in ("train", "validation", "test"):
        groups = dataset.groups(part, target_behaviors=TARGETS, min_history=1)
        shown = dataset.groups(part, target_behaviors=tuple(BEHAVIORS), min_history=1)
        rows = np.flatnonzero(groups.now >= START)
        cut = dataset.samples(groups, rows, config=preset.training, buckets=buckets, epoch=0)
        for row, expected in zip(rows, cut, strict=True):
            key = (int(dataset.log.user_ids[groups.user_row[row]]), int(groups.now[row]))
            (sample,) = (s for s in newest.values() if (s.record.user_id, s.record.timestamp) == key)
            found = made(sample, snapshot, buckets)
            np.testing.assert_array_equal(found.slots, expected.slots)
            np.testing.assert_array_equal(found.profile, expected.profile)
            assert targets(found) == targets(expected)
            at = int(np.flatnonzero(shown.request == groups.request[row])[0])
            listed = dataset.candidates(shown, at, least="click")
            assert found.candidates is not None
            assert pairs(found.candidates) == pairs(listed)
            compared += 1
    assert compared > 20


def targets(sample) -> list[tuple]:
    columns = zip(sample.tokens.tolist(), sample.value.tolist(), sample.weight.tolist(), strict=True)
    return sorted((tuple(t), v, w) for t, v, w in columns)


def pairs(listed) -> list[tuple]:
    columns = (listed.ads.tolist(), map(tuple, listed.sids.tolist()), listed.reward.tolist())
    return sorted(zip(*columns, strict=True))


def made(sample: JoinedSample, sids, buckets: ValueBuckets, features: FeatureSpec = FEATURES):
    return served_sample(
        sample,
        sids,
        features=features,
        buckets=buckets,
        behavior_weights={"click": 0.5, "conversion": 2.0},
        target_behaviors=TARGETS,
        least="click",
    )


def test_the_list_says_how_probable_the_ads_were_and_that_they_were_shown(joined) -> None:
    newest, _, snapshot, buckets = joined
    for sample in newest.values():
        listed = made(sample, snapshot, buckets).candidates
        assert listed is not None
        places = [sample.record.ad_ids.index(ad) for ad in listed.ads.tolist()]
        assert listed.log_p_ref.tolist() == [-1.0 - place for place in places]
        assert set(listed.flags.tolist()) == {CandidateFlag.OWN | CandidateFlag.LOGGED}


def test_nothing_reported_is_no_target_and_no_list(joined) -> None:
    _, _, snapshot, buckets = joined
    slots = [[2, 1, 1]] * 3
    none = JoinedSample(1, 0, served(slot_ads=[-1, 3, 9_999], slots=slots, profile=[1]), ())
    sample = made(none, snapshot, buckets, replace(FEATURES, short_slots=1, long_slots=2))
    assert sample.candidates is None
    assert sample.tokens.shape == (0, len(SIZES))
    assert not sample.slots[[0, 2]].any()  # empty, and an ad that the tokenizer does not know
    known = snapshot.sids_of(np.array([3]))[0][0]
    assert sample.slots[1].tolist() == [*(known + 1).tolist(), 2, 1, 1]


def test_ads_whose_sid_has_changed_are_no_candidates(joined) -> None:
    newest, _, snapshot, buckets = joined
    sample = next(s for s in newest.values() if len(s.outcomes) > 1)
    other = sample.record.model_copy(update={"sids": [[0] * len(SIZES)] * 5})
    changed = made(JoinedSample(1, 0, other, sample.facts), snapshot, buckets)
    assert changed.candidates is not None
    assert len(changed.candidates.ads) <= 1
    assert len(changed.tokens) == len(made(sample, snapshot, buckets).tokens)
