"""Ad logs end to end: a model must not find the answer in the question, and loses nothing by that."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from serving.backend.request import request_features
from serving.index.snapshot import IndexSnapshot
from serving.model.features import BEHAVIORS, fill_slots
from tests.funnel_log import USERS, config, funnel, impressions
from tests.tiny_log import open_run, run_of
from training.data.lists import CandidateFlag
from training.data.prepare import main
from training.evaluation.ranking import evaluate
from training.loop.device import Device
from training.recipes.pretrain import prepare_training
from training.rollout.executor import TorchExecutor
from training.run import RunData


def run(folder, events, **data):
    return run_of(folder, events, users=USERS, config=config(**data))


def recall(made, folder):
    """Recall of a model after its training, and of the baselines, by cut-off."""
    torch.set_num_threads(1)
    preset, spec, dataset = open_run(made)
    trainer = prepare_training(preset, made[1], folder=folder, device=Device())
    trainer.run()
    report = evaluate(
        TorchExecutor(trainer.model.eval()),
        dataset,
        ads=pl.read_parquet(made[1] / "data" / "ads.parquet"),
        config=preset.evaluation,
        level_sizes=spec.level_sizes,
        target_behaviors=preset.logs.target_behaviors,
        min_history=1,
        value_table=spec.value_buckets.means,
    )
    return report["recall"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, no_curves):
    """The same exposures with all their rows, unjoined and joined, and with the conversions alone."""
    folder = tmp_path_factory.mktemp("funnel")
    return {
        "unjoined": run(folder / "unjoined", funnel(), attribution_window=0),
        "joined": run(folder / "joined", funnel()),
        "conversions": run(folder / "conversions", funnel(behaviors=("conversion",))),
    }


def test_the_recall_of_a_funnel_is_that_of_its_conversions(runs, tmp_path):
    found = {name: recall(made, tmp_path / name)["model"] for name, made in runs.items()}
    assert found["unjoined"]["3"] > 0.95  # copies the impression of 5 s before
    for k in ("3", "10"):
        assert found["joined"][k] == pytest.approx(found["conversions"][k], rel=0.05)
        assert found["unjoined"][k] > 1.5 * found["joined"][k]
    assert found["conversions"]["3"] > 0.2  # there is something to learn


def test_contexts_of_a_funnel_are_those_of_its_conversions(runs):
    slots = {}
    for name in ("joined", "conversions"):
        *_, dataset = open_run(runs[name])
        for part in ("train", "validation", "test"):
            groups = dataset.groups(part, target_behaviors=("conversion",), min_history=1)
            slots[name, part] = dataset.context(groups, np.arange(len(groups)))[0]
    for part in ("train", "validation", "test"):
        assert len(slots["joined", part]) > 50
        np.testing.assert_array_equal(slots["joined", part], slots["conversions", part])


def with_ids(events: pl.DataFrame) -> pl.DataFrame:
    """Ids for the rows of each exposure of `funnel`."""
    return events.with_columns(request_id=pl.Series([f"q{i // 3}" for i in range(events.height)]))


@pytest.mark.parametrize(
    ("events", "window", "warns"),
    [
        (funnel(), 0, True),
        (funnel(), 3, True),  # ends before the conversion
        (funnel(), 1800, False),
        (with_ids(funnel()), 0, False),
        (funnel(behaviors=("conversion",)), 0, False),
    ],
    ids=["unjoined", "too short", "joined", "ids", "conversions"],
)
def test_make_data_warns_of_the_leak(events, window, warns, tmp_path, capsys):
    made = run(tmp_path, events, attribution_window=window)
    capsys.readouterr()
    assert main(["--config", str(made[0]), "--out", str(made[1] / "data")]) == 0
    said = capsys.readouterr().err
    assert ("warning: the answer seems to be in the question: the ad of 100.0% of the" in said) == warns
    assert (f"data.attribution_window (now {window} s)" in said) == warns
    assert ("warning" in said) == warns


def test_a_live_server_builds_the_contexts_of_training(tmp_path):
    """A client sends raw events; to both, those of one ad within the window are one exposure."""
    made = run(tmp_path, impressions(clicks=True), target_behaviors=["click"], split={"by": "days"})
    _, spec, dataset = open_run(made)
    events = pl.read_parquet(made[1] / "data" / "events.parquet")
    snapshot = IndexSnapshot.build(
        dataset.ad_ids, dataset.ad_sids, active=np.ones(60, bool), level_sizes=spec.level_sizes
    )
    assert spec.features.attribution_window_s == 1800
    for part in ("train", "validation", "test"):
        groups = dataset.groups(part, target_behaviors=("click",), min_history=1)
        rows = np.arange(0, len(groups), 3)
        slots, profile = dataset.context(groups, rows)
        for i, row in enumerate(rows):
            user, now = int(dataset.log.user_ids[groups.user_row[row]]), int(groups.now[row])
            known = events.filter((pl.col("user_id") == user) & (pl.col("timestamp") < now))
            features = request_features(
                spec.features,
                snapshot,
                ad_ids=known["ad_id"].to_numpy(),
                behaviors=known["behavior"].replace_strict(dict(BEHAVIORS), return_dtype=pl.Int32).to_numpy(),
                timestamps=known["timestamp"].to_numpy(),
                profile=profile[i],
                now=now,
            )
            served = fill_slots(snapshot, features.slot_ads[None], features.slots[None])[0]
            np.testing.assert_array_equal(served, slots[i])


def test_impressions_alone_over_a_week(tmp_path, capsys):
    """What was shown can be learned too; every request has its id, its ads and their places."""
    events = impressions()
    made = run(tmp_path, events, target_behaviors=["impression"], split={"by": "days"})
    assert main(["--config", str(made[0]), "--out", str(made[1] / "data")]) == 0
    printed = capsys.readouterr()
    assert not printed.err
    assert f"{events.height:,} exposures of {events.height:,} events" in printed.out
    *_, dataset = open_run(made)
    by_request = events.group_by("user_id", "request_id").agg(pl.col("timestamp").min(), pl.col("ad_id"))
    asked = [(user, at, sorted(ads)) for user, _, at, ads in by_request.rows()]
    found = []
    for part in ("train", "validation", "test"):
        groups = dataset.groups(part, target_behaviors=("impression",), min_history=0)
        for row in range(len(groups)):
            targets = dataset.targets(groups, row)
            user = int(dataset.log.user_ids[groups.user_row[row]])
            found.append((user, int(groups.now[row]), sorted(dataset.log.ad_ids[targets].tolist())))
            assert sorted(dataset.log.position[targets].tolist()) == list(range(len(targets)))
    assert sorted(found) == sorted(asked)


def test_an_impression_without_a_click_is_a_candidate_of_reward_0(tmp_path):
    events = impressions(clicks=True)
    made = run(tmp_path, events, target_behaviors=["click"], split={"by": "days"})
    _, spec, dataset = open_run(made)
    shown = dataset.groups("train", target_behaviors=tuple(BEHAVIORS), min_history=1)
    clicked = dataset.groups("train", target_behaviors=("click",), min_history=1)
    assert len(shown) > len(clicked) > 100
    by_request = {key[0]: rows for key, rows in events.group_by("request_id")}
    end, rewarded, late = dataset.split.train_end, 0, 0
    times = {(r["user_id"], r["timestamp"], r["ad_id"]): r["request_id"] for r in events.to_dicts()}
    for row in range(len(shown)):
        found = dataset.candidates(shown, row, least="click")
        user, now = int(dataset.log.user_ids[shown.user_row[row]]), int(shown.now[row])
        rows = by_request[times[user, now, int(found.ads[0])]]
        clicks = rows.filter(pl.col("behavior") == "click")
        late += clicks.filter(pl.col("timestamp") >= end).height
        known = set(clicks.filter(pl.col("timestamp") < end)["ad_id"].to_list())
        assert found.ads.tolist() == sorted(rows["ad_id"].unique().to_list(), key=found.ads.tolist().index)
        assert found.reward.tolist() == [1.0 if ad in known else 0.0 for ad in found.ads.tolist()]
        assert (found.flags == CandidateFlag.LOGGED).all()
        sids = dict(zip(dataset.ad_ids.tolist(), dataset.ad_sids.tolist(), strict=True))
        assert found.sids.tolist() == [sids[ad] for ad in found.ads.tolist()]
        rewarded += len(known)
    assert rewarded > 100
    assert late  # a click after the training part is not known in it


def test_what_was_clicked_and_bought_was_clicked_too(runs):
    *_, dataset = open_run(runs["joined"])
    groups = dataset.groups("train", target_behaviors=tuple(BEHAVIORS), min_history=1)
    bought = funnel().filter(pl.col("behavior") == "conversion")["value"].to_list()
    for row in range(0, len(groups), 20):
        for least in ("impression", "click", "conversion"):
            [reward] = dataset.candidates(groups, row, least=least).reward.tolist()
            assert any(reward == pytest.approx(value) for value in bought)


def test_clicks_come_late_and_stay_with_their_request(tmp_path):
    """A click two hours later is its request's, by id, and not in the history of what lies between."""
    made = run(tmp_path, impressions(clicks=True), target_behaviors=["click"], split={"by": "days"})
    *_, dataset = open_run(made)
    log, late = dataset.log, 0
    groups = dataset.groups("train", target_behaviors=("click",), min_history=0)
    for row in range(len(groups)):
        for event in dataset.targets(groups, row):
            late += log.timestamp[event] - groups.now[row] > 1800
        past = dataset.history(groups, row)
        assert (log.timestamp[past] < groups.now[row]).all()
        assert not np.isin(past, np.flatnonzero(log.exposures.request == groups.request[row])).any()
    assert late > 50


def test_a_model_that_goes_on_with_another_window_serves_with_it(runs):
    preset, spec, _ = open_run(runs["joined"])
    now = RunData.load(runs["unjoined"][1]).go_on(spec, preset)
    assert (spec.features.attribution_window_s, now.features.attribution_window_s) == (1800, 0)
    assert replace(now.features, attribution_window_s=1800) == spec.features


def test_value_buckets_are_fitted_on_one_value_an_exposure(runs):
    _, spec, dataset = open_run(runs["joined"], "data.target_behaviors=[click, conversion]")
    values = funnel().filter(
        pl.col("behavior") == "conversion", pl.col("timestamp") < dataset.split.train_end
    )
    highest = values.filter(pl.col("value") > float(spec.value_buckets.edges[-1]))["value"]
    assert spec.value_buckets.means[-1] == pytest.approx(highest.mean())
    assert spec.value_buckets.means[0] > 0  # clicks of the same exposures are worth 0


@pytest.mark.parametrize(
    "split", [{"by": "days"}, {"by": "fractions"}, {"by": "last_events", "test": 2}], ids=str
)
def test_impressions_and_clicks_go_through_training_and_evaluation(split, tmp_path):
    made = run(tmp_path, impressions(clicks=True), target_behaviors=["click"], split=split)
    found = recall(made, tmp_path / "model")
    # Users click their own six ads, and a clicked one often again: that is in their histories.
    assert found["personal_frequency"]["10"] > 1.3 * found["popularity"]["10"]
    assert 0 < found["model"]["10"] < 1
