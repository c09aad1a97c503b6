"""Requests cut from a log: contexts of exactly what was before, targets of exactly what was then."""

import numpy as np
import polars as pl
import pytest

from serving.index.keys import unpack
from tests.slots import plain_slots
from tests.tiny_log import open_run, write_run
from training.data.parts import Parts
from training.data.prepared import load_prepared
from training.data.samples import RequestDataset, load_sids


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Preset and run folder of the tiny log."""
    return write_run(tmp_path_factory.mktemp("log"))


def test_context_holds_exactly_what_was_before(run):
    """No leakage: every context equals one built from the raw table filtered to times before the request."""
    preset, _, dataset = open_run(run)
    least = preset.training.min_history
    events = pl.read_parquet(run[1] / "data" / "events.parquet")
    sids = {r[0]: r[1:] for r in load_sids(run[1] / "tokenizer").rows()}
    codes = {"impression": 1, "click": 2, "conversion": 3}
    ends = {"train": 0, "validation": 0, "test": 0}
    for part in ends:
        groups = dataset.groups(part, target_behaviors=("conversion",), min_history=least)
        rows = np.arange(0, len(groups), 7)
        slots, profile = dataset.context(groups, rows)
        for i, row in enumerate(rows):
            user, now = int(dataset.log.user_ids[groups.user_row[row]]), int(groups.now[row])
            past = events.filter((pl.col("user_id") == user) & (pl.col("timestamp") < now)).sort(
                "timestamp", "ad_id"
            )
            history = [
                (ad, sids[ad], codes[behavior], time)
                for ad, behavior, time in past.select("ad_id", "behavior", "timestamp").rows()
            ]
            np.testing.assert_array_equal(slots[i], plain_slots(dataset.spec, history, now)[0])
            basket = events.filter(
                (pl.col("user_id") == user)
                & (pl.col("timestamp") == now)
                & (pl.col("behavior") == "conversion")
            )
            targets = dataset.targets(groups, row)
            assert sorted(dataset.log.ad_ids[targets].tolist()) == sorted(basket["ad_id"].to_list())
            assert profile[i].tolist() == [[1], [2]][user % 2]
        ends[part] = (int(groups.now.min()), int(groups.now.max()))
    assert ends["train"][1] < dataset.split.train_end <= ends["validation"][0]
    assert ends["validation"][1] < dataset.split.validation_end <= ends["test"][0]


def test_batch_holds_the_targets_of_its_rows(run):
    preset, spec, dataset = open_run(
        run, "training.behavior_weights={conversion: 2.5}", "data.target_behaviors=[conversion, impression]"
    )
    config = preset.training
    groups = dataset.groups("train", target_behaviors=preset.logs.target_behaviors, min_history=3)
    batch = dataset.batch(groups, np.arange(12), config=config, buckets=spec.value_buckets, epoch=0)
    assert batch.tokens.shape[1] <= config.targets_per_request
    for i in range(12):
        events = dataset.targets(groups, i)
        possible = {
            (tuple(dataset.ad_sids[dataset.event_ad[e]]), 2.5 if dataset.log.behavior[e] == 3 else 0.0)
            for e in events
        }
        for j in range(min(len(events), config.targets_per_request)):
            assert (tuple(batch.tokens[i, j]), float(batch.weight[i, j])) in possible
        assert (batch.weight[i, len(events) :] == 0).all()
        conversions = (dataset.log.behavior[events] == 3).sum()
        if len(events) <= config.targets_per_request:
            assert batch.weight[i].sum() == 2.5 * conversions
            values = spec.value_buckets.encode(dataset.log.value[events])
            assert batch.value[i, : len(events)].tolist() == values.tolist()


def test_drawn_targets_depend_on_epoch_and_request_only(run):
    preset, spec, dataset = open_run(run, "training.targets_per_request=1")
    config = preset.training
    groups = dataset.groups("train", target_behaviors=("conversion",), min_history=3)

    def tokens(rows, epoch):
        return dataset.batch(
            groups, np.array(rows), config=config, buckets=spec.value_buckets, epoch=epoch
        ).tokens[:, 0]

    rows = list(range(30))
    np.testing.assert_array_equal(tokens(rows, 0)[5:9], tokens([5, 6, 7, 8], 0))
    assert (tokens(rows, 0) != tokens(rows, 1)).any()


def test_recent_weeks_cut_targets_not_histories(run):
    *_, dataset = open_run(run)
    every = dataset.groups("train", target_behaviors=("conversion",), min_history=1)
    recent = dataset.groups("train", target_behaviors=("conversion",), min_history=1, recent_weeks=1)
    week = dataset.split.train_end - 7 * 86400
    assert recent.now.tolist() == every.now[every.now >= week].tolist()
    assert 0 < len(recent) < len(every)
    assert (recent.request == every.request[every.now >= week]).all()


def test_targets_are_counted(run):
    *_, dataset = open_run(run)
    groups = dataset.groups("train", target_behaviors=("conversion",), min_history=1)
    counted = [len(dataset.targets(groups, row)) for row in range(len(groups))]
    assert dataset.target_counts(groups).tolist() == counted


def test_seen_sids_are_those_of_the_training_weeks(run):
    _, spec, dataset = open_run(run)
    early = int(np.quantile(dataset.log.timestamp, 0.02))  # the whole tiny catalogue is in the training weeks
    dataset.split = dataset.split.model_copy(update={"train_end": early})
    dataset.parts = Parts.of(dataset.split, dataset.log)
    sids = dict(zip(dataset.ad_ids.tolist(), dataset.ad_sids.tolist(), strict=True))
    log = dataset.log
    events = list(zip(log.ad_ids.tolist(), log.timestamp.tolist(), strict=True))
    seen = {tuple(sids[ad]) for ad, at in events if at < dataset.split.train_end}
    found = dataset.seen_sids(spec.level_sizes)
    assert {tuple(s) for s in unpack(found, spec.level_sizes).tolist()} == seen
    assert (np.diff(found) > 0).all()
    assert seen != {tuple(sids[ad]) for ad, _ in events}


def test_event_of_an_ad_without_sid(run):
    _, spec, dataset = open_run(run)
    sids = load_sids(run[1] / "tokenizer")
    gone = int(dataset.log.ad_ids[0])
    prepared, kept = load_prepared(run[1] / "data"), sids.filter(pl.col("ad_id") != gone)
    with pytest.raises(ValueError, match=f"expected a SID for every ad of the events; .* first ad_id {gone}"):
        RequestDataset(prepared, kept, spec=spec.features, profile=prepared.profile)
