"""A small simulation from end to end: the response model, what an order is worth, the table and its gaps."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks.simulation import answers as answers_module
from benchmarks.simulation import drift as drift_module
from benchmarks.simulation import train as train_module
from benchmarks.simulation.answers import Answers, Trained, answers_of
from benchmarks.simulation.baselines import retrieved
from benchmarks.simulation.bids import PriceShape
from benchmarks.simulation.curves import Curve, Point, at_equal_drift
from benchmarks.simulation.draws import judged
from benchmarks.simulation.drift import drifts, mean_drift
from benchmarks.simulation.history import KERNELS_DAYS, TASTE_DAYS, Past
from benchmarks.simulation.measures import compared, measures, ordered
from benchmarks.simulation.response_check import auc, tenths
from benchmarks.simulation.scored import NO_AD, Scored
from benchmarks.simulation.settings import Settings
from benchmarks.simulation.speed import requests_a_second
from benchmarks.simulation.table import build, equal_drift
from benchmarks.simulation.world import World
from serving.backend.resolve import resolve
from tests.once import made_once
from tests.tiny_log import DAY, open_run, write_run
from training.data.parts import TRAIN
from training.loop.checkpoint import Checkpoint, CheckpointError
from training.loop.retention import save_checkpoint
from training.preset.preset import Preset
from training.reward.reward_model import Scores
from training.rollout.__main__ import roll_out

SEEDS = (0, 1)
AUCTIONS = {
    "alone": {"candidates": 4, "estimate": "own"},
    "ranked": {"candidates": 8, "estimate": "ranker"},
}


class PriceyRanker:
    """A platform that knows its own mind: probabilities and values by the ad's id."""

    def score(self, dataset, groups, row, ads):
        return Scores(1 / (2.0 + ads % 7), 1.0 + ads % 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 24 users with an untrained model for each seed."""

    def make(folder: Path) -> None:
        preset_file, run = write_run(folder, users=24)
        _, spec, dataset = open_run((preset_file, run))
        for seed in SEEDS:
            torch.manual_seed(seed)
            seen = dataset.seen_sids(spec.level_sizes)
            checkpoint = Checkpoint(model=spec.build().eval(), spec=spec, settings={}, seen_sids=seen)
            save_checkpoint(run / f"model-{seed}", checkpoint, keep=1)
        (run / "one-1").symlink_to("model-1")

    return made_once(tmp_path_factory, "simulation", make)


def settings_of(folder, **changes):
    generator = {"run": str(folder / "run"), "model": "model-{seed}", "widths": "4-8-16:16"}
    content = {
        "config": str(folder / "preset.yaml"),
        "run": str(folder / "run"),
        "seeds": list(SEEDS),
        "requests": 40,
        "min_history": 3,
        "depth": 16,
        "rerank": 8,
        "cutoffs": [1, 5],
        "rounds": 3,
        "auctions": AUCTIONS,
        "fit": {"factors": 4, "steps": 150, "batch": 16, "sample": 32, "table_learning_rate": 0.02},
        "baseline": "vsl",
        "arms": {
            "popularity": {"name": "popularity", "kind": "popularity", "order": "probability"},
            "pointwise": {"name": "pointwise", "kind": "retrieved", "order": "reward"},
            "vsl_by_probability": generator | {"name": "by probability", "order": "probability"},
            "vsl": generator | {"name": "VSL", "paper": {"revenue": 2.8}},
            "vsl_reward": generator | {"name": "re-ranked", "order": "reward"},
            "rspo": generator | {"name": "RSPO", "model": "none-{seed}"},
        },
    }
    return content | changes


@pytest.fixture(scope="module")
def world(folder, tmp_path_factory):
    settings = Settings.model_validate(settings_of(folder))
    return World.open(settings, tmp_path_factory.mktemp("out") / "cache")


def test_the_response_model_is_fitted_on_other_users_and_other_weeks(folder, tmp_path, monkeypatch):
    asked = {}

    def fitted(dataset, ads, groups, rows, *, behaviors, settings):
        asked.update(dataset=dataset, groups=groups, rows=rows)
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.simulation.world.fit", fitted)
    with pytest.raises(KeyboardInterrupt):
        World.open(Settings.model_validate(settings_of(folder)), tmp_path)
    dataset, groups, rows = asked["dataset"], asked["groups"], asked["rows"]
    users = dataset.log.user_ids[groups.user_row[rows]]
    assert len(set(users.tolist())) > 5
    assert not judged(users, folds=2, seed=0).any()
    assert (dataset.parts.request[groups.request[rows]] == TRAIN).all()


def test_judged_requests_are_of_the_other_users_and_of_the_test_weeks(world):
    assert judged(world.dataset.log.user_ids[world.users], folds=2, seed=0).all()
    assert (world.requests.now >= world.dataset.split.validation_end).all()
    assert 10 < len(world.requests.rows) <= 40


def test_a_past_is_what_its_formula_says(world):
    dataset, groups = world.dataset, world.requests.groups
    row = int(world.requests.rows[-1])
    now, user = groups.now[row], groups.user_row[row]
    log = dataset.log
    mine = range(log.user_ptr[user], log.user_ptr[user + 1])
    events = [e for e in mine if log.timestamp[e] < now and log.behavior[e] == 3]
    past = Past.of(dataset, groups, row, behaviors=np.array([3]))
    times = {int(log.timestamp[e]) for e in events}
    decayed = {days: {ad: 0.0 for ad in past.ads} for days in (*KERNELS_DAYS, *TASTE_DAYS)}
    for event in events:
        for days, counts in decayed.items():
            counts[dataset.event_ad[event]] += np.exp(-(now - log.timestamp[event]) / DAY / days)
    assert sorted({int(dataset.event_ad[e]) for e in events}) == past.ads.tolist()
    for i, days in enumerate(KERNELS_DAYS):
        requests = sum(np.exp(-(now - t) / DAY / days) for t in times)
        shares = [(count + 0.1) / (requests + 1) for count in decayed[days].values()]
        assert past.own[:, i] == pytest.approx(np.log(shares))
    for i, days in enumerate(TASTE_DAYS):
        values = np.array(list(decayed[days].values()))
        assert past.taste[:, i] == pytest.approx(values / values.sum())
    assert past.size == pytest.approx(np.log(len(events) / len(times)))


def test_scores_are_what_the_formula_says(world):
    model, row = world.response, int(world.requests.rows[0])
    ads = world.dataset.ad_ids[::7]
    found = model.score(world.dataset, world.requests.groups, row, ads)
    past = Past.of(world.dataset, world.requests.groups, row, behaviors=model.behaviors)
    for i, ad in enumerate(np.searchsorted(world.dataset.ad_ids, ads)):
        taste = sum(
            past.taste[h, d] * model.gates[d] * model.past[past.ads[h]]
            for h in range(len(past.ads))
            for d in range(2)
        )
        liking = taste @ model.candidate[ad]
        log_rate = model.bias[ad] + liking + model.size[0] * past.size
        if ad in past.ads:
            offset, of_bias, of_liking = model.own_gates
            own = past.own[past.ads.tolist().index(ad)] @ model.own
            log_rate = (
                offset + of_bias * model.bias[ad] + of_liking * liking + own + model.size[0] * past.size
            )
        assert found.p[i] == pytest.approx(1 - np.exp(-np.exp(log_rate)), rel=1e-4)
        assert found.value[i] == pytest.approx(model.value[ad])
    with pytest.raises(ValueError, match="expected the 59 ads it was fitted on"):
        replace(model, ad_ids=model.ad_ids[1:]).score(world.dataset, world.requests.groups, row, ads)


def test_the_response_model_knows_users_it_never_saw(world):
    """In this log a user repeats four ads out of sixty: far from what is popular with others."""
    labels, scores = [], []
    for row, targets in zip(world.requests.rows, world.requests.targets, strict=True):
        labels.append(np.isin(world.dataset.ad_ids, targets))
        ads = world.dataset.ad_ids
        scores.append(world.response.score(world.dataset, world.requests.groups, int(row), ads).p)
    label, p = np.concatenate(labels), np.concatenate(scores)
    popularity = np.tile(world.popularity, len(labels))
    assert auc(label, p) > 0.9 > 0.75 > auc(label, popularity)
    assert 0.6 < label.sum() / p.sum() < 1.6  # and on the scale of probabilities


def test_auc_is_the_share_of_pairs_in_order():
    random = np.random.default_rng(0)
    label, score = random.random(80) < 0.3, random.integers(0, 6, 80)
    pairs = [(x > y) + 0.5 * (x == y) for x in score[label] for y in score[~label]]
    assert auc(label, score) == pytest.approx(np.mean(pairs))
    assert auc(np.ones(3, bool), np.arange(3)) is None


def test_tenths_hold_equal_parts_of_what_is_expected():
    random = np.random.default_rng(1)
    p = random.random(50_000) ** 3
    rows = tenths(random.random(50_000) < p, p)
    assert len(rows) == 10
    for row in rows:
        assert row["bought"] == pytest.approx(row["expected"], abs=0.04)
    assert [r["expected"] for r in rows] == sorted(r["expected"] for r in rows)


def searched(world, arm, seed=0):
    return answers_of(world, world.settings.arms[arm], Trained.find(world.settings.arms[arm], seed=seed))


def test_orders_are_those_of_serving(world, monkeypatch):
    """By value: what `resolve` makes of the same beams. Re-ranked: the first of these by the ranker."""
    beams = []

    def kept(snapshot, sids, **options):
        beams.append((snapshot, sids, options))
        return resolve(snapshot, sids, **options)

    monkeypatch.setattr("benchmarks.trained_demo.resolve", kept)
    arm = world.settings.arms["vsl"]
    answers = answers_module._search(world, Trained.find(arm, seed=0), widths=arm.widths)
    by_value = ordered(answers, "value", ranker=None, rerank=8)
    assert ordered(answers, "probability", ranker=None, rerank=8) is answers
    changed = 0
    for i, (snapshot, sids, options) in enumerate(beams):
        served = resolve(snapshot, sids, **options | {"rank_by": "value", "num_ads": 8}).ad_ids
        # Ads of one SID are cut where the answer ends, which is by probability here and by value in serving.
        there = np.isin(served, answers.ads[i])
        assert by_value.ads[i, : there.sum()].tolist() == served[there].tolist()
        changed += by_value.ads[i].tolist() != answers.ads[i].tolist()
    assert changed
    ranker = Scored.of(PriceyRanker(), world.dataset, world.requests, answers=[answers.ads])
    again = ordered(answers, "reward", ranker=ranker, rerank=8)
    for i in range(len(answers.ads)):
        first = by_value.ads[i, :8]
        worth = (1.0 + first % 5) / (2.0 + first % 7)
        assert again.ads[i, :8].tolist() == first[np.argsort(-worth, kind="stable")].tolist()
        assert again.ads[i, 8:].tolist() == by_value.ads[i, 8:].tolist()


def test_answers_are_searched_once_for_weights_and_settings(world, monkeypatch):
    first = searched(world, "vsl")
    monkeypatch.setattr(answers_module, "_search", lambda *a, **k: pytest.fail("searched again"))
    again = searched(world, "vsl_by_probability")  # another order of the same answers
    np.testing.assert_array_equal(again.ads, first.ads)
    np.testing.assert_array_equal(again.p, first.p)
    arm = world.settings.arms["vsl"].model_copy(update={"widths": "2-4-8:8"})
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        answers_of(world, arm, Trained.find(arm, seed=0))


def test_an_arm_with_other_logs_is_refused(folder, world, tmp_path):
    write_run(tmp_path, users=24, seed=9)
    (tmp_path / "run" / "model-0").symlink_to(folder / "run" / "model-0")
    arm = world.settings.arms["vsl"].model_copy(update={"run": str(tmp_path / "run")})
    with pytest.raises(ValueError, match="expected the tables of"):
        answers_of(world, arm, Trained.find(arm, seed=0))


def test_retrieved_ads_of_a_request_are_those_it_gets_alone(world):
    """The world's requests are in order of users, those of the log's baselines in order of time."""
    requests = world.requests
    assert (np.diff(requests.now) < 0).any()
    together = retrieved(world).ads
    assert len(np.unique(together, axis=0)) > 5
    for i, row in enumerate(requests.rows):
        one = replace(
            requests, rows=np.array([row]), targets=[requests.targets[i]], values=[requests.values[i]]
        )
        alone = retrieved(replace(world, requests=one)).ads[0]
        assert together[i][together[i] != NO_AD].tolist() == alone.tolist()


def test_measures_are_what_loops_count(world):
    answers = ordered(searched(world, "vsl"), "value", ranker=None, rerank=8)
    truth = Scored.of(world.response, world.dataset, world.requests, answers=[answers.ads])
    found = measures(world, answers, truth=truth, ranker=None, shape=PriceShape.load())
    assert set(found) == {f"{m}@{k}" for m in ("recall", "value", "response") for k in (1, 5)} | {
        "revenue alone"
    }
    requests = world.requests
    for i, row in enumerate(requests.rows):
        bought = dict(zip(requests.targets[i].tolist(), requests.values[i].tolist(), strict=True))
        for k in (1, 5):
            ads = answers.ads[i, :k]
            hits = [int(ad) for ad in ads if int(ad) in bought]
            scores = world.response.score(world.dataset, requests.groups, int(row), ads)
            assert found[f"recall@{k}"][i] == pytest.approx(len(hits) / len(bought))
            assert found[f"value@{k}"][i] == pytest.approx(sum(bought[ad] for ad in hits))
            assert found[f"response@{k}"][i] == pytest.approx((scores.p * scores.value).sum())


def test_an_interval_is_over_users_not_requests():
    """Requests of one user stand and fall together: with ten copies of each the interval stays as wide."""
    random = np.random.default_rng(0)
    theirs = random.gamma(2, 1, 200)
    mine = theirs * (1.1 + random.normal(0, 0.3, 200))
    once = compared(mine, theirs, users=np.arange(200), seed=0)
    copied = compared(np.repeat(mine, 10), np.repeat(theirs, 10), users=np.repeat(np.arange(200), 10), seed=0)
    assert once["low"] < once["ratio"] < once["high"]
    assert once["ratio"] == pytest.approx(mine.sum() / theirs.sum() - 1)
    assert copied == pytest.approx(once)
    # Delta method: the ratio's standard error from residuals.
    error = np.std(mine - (1 + once["ratio"]) * theirs) / np.sqrt(200) / theirs.mean()
    assert once["high"] - once["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert compared(mine, np.zeros(200), users=np.arange(200), seed=0)["ratio"] is None


def test_the_table_has_every_arm_and_names_what_is_missing(world):
    table = build(world, ranker=PriceyRanker(), speeds={"vsl": 20.0})
    rows = table["rows"]
    assert list(rows) == list(world.settings.arms)
    assert rows["rspo"]["metrics"] == {}
    assert "none-0" in rows["rspo"]["missing"]
    assert (
        table["rspo_vs_vsl_value50"] is table["auction_rspo_vs_vsl_low"] is table["lazyar_vs_k0_qps"] is None
    )
    assert rows["vsl"]["qps"] == 20
    assert rows["vsl"]["seeds"] == [0, 1]
    assert rows["popularity"]["seeds"] == []
    for name in ("popularity", "pointwise", "vsl", "vsl_by_probability", "vsl_reward"):
        assert rows[name]["missing"] is None
        assert {"recall@5", "value@5", "response@5", "revenue alone", "revenue ranked"} <= set(
            rows[name]["metrics"]
        )
    for cell in rows["vsl"]["metrics"].values():
        assert (cell["ratio"], cell["low"], cell["high"]) == (0, 0, 0)
    # By hand, from the answers: mean over seeds, then over requests.
    value = []
    for seed in SEEDS:
        by_value = ordered(searched(world, "vsl", seed), "value", ranker=None, rerank=8)
        value.append(
            [
                v[np.isin(t, row[:5])].sum()
                for row, t, v in zip(by_value.ads, world.requests.targets, world.requests.values, strict=True)
            ]
        )
    assert rows["vsl"]["metrics"]["value@5"]["mean"] == pytest.approx(np.mean(value))
    assert rows["vsl"]["metrics"]["value@5"]["by_seed"] == pytest.approx(
        dict(zip(SEEDS, np.mean(value, axis=1), strict=True))
    )
    shown = (
        rows["vsl_by_probability"]["metrics"]["value@1"]["mean"],
        rows["vsl"]["metrics"]["value@1"]["mean"],
    )
    assert table["rank_by_value_gain10"] == (pytest.approx(shown[1] / shown[0] - 1) if shown[0] else None)
    assert table["seeds"] == 2
    assert table["requests"] == len(world.requests.rows)


def test_without_a_ranker_its_rows_and_auctions_are_empty(world):
    rows = build(world)["rows"]
    for name in ("pointwise", "vsl_reward"):
        assert rows[name]["metrics"] == {}
        assert "no ranker in" in rows[name]["missing"]
    assert "revenue ranked" not in rows["vsl"]["metrics"]
    assert rows["vsl"]["metrics"]["revenue alone"]["mean"] >= 0


def test_seeds_are_paired(world):
    """An arm with one of two seeds is held against the baseline's same seed."""
    arms = world.settings.arms | {
        "rspo": world.settings.arms["vsl"].model_copy(update={"model": "one-{seed}"})
    }
    rows = build(replace(world, settings=world.settings.model_copy(update={"arms": arms})))["rows"]
    assert rows["rspo"]["seeds"] == [1]
    assert "one-0" in rows["rspo"]["missing"]
    for metric, cell in rows["rspo"]["metrics"].items():
        assert cell["mean"] == rows["vsl"]["metrics"][metric]["by_seed"][1]
        assert cell["ratio"] in (0, None)
    assert any(
        cell["mean"] != rows["vsl"]["metrics"][m]["mean"] for m, cell in rows["rspo"]["metrics"].items()
    )


def curve(*points, start=(-0.1, 100.0)):
    """Drift and metric of the arm that is compared, and of its other strengths."""
    own, *others = [Point(drift, np.array([metric, 2 * metric])) for drift, metric in points]
    return Curve(Point(start[0], np.array([start[1], 2 * start[1]])), own, others)


def test_at_equal_drift_the_one_that_went_further_is_read_from_its_curve():
    near, far = curve((-0.2, 104.0), (-0.5, 109.0)), curve((-0.4, 106.0), (-0.25, 103.0))
    mine, theirs = at_equal_drift({0: far}, {0: near})
    assert mine.tolist() == pytest.approx([102.0, 204.0])  # -.2 is two thirds from -.1 (100) to -.25 (103)
    assert theirs.tolist() == [104, 208]
    theirs, mine = at_equal_drift({0: near}, {0: far})
    assert (mine[0], theirs[0]) == pytest.approx((102, 104))
    alone = curve((-0.4, 106.0))  # a straight line from the baseline
    assert at_equal_drift({0: alone}, {0: near})[0][0] == pytest.approx(102.0)
    # Seeds have drifts of their own; one that is in one curve alone does not count.
    pair = at_equal_drift({0: far, 1: curve((-0.3, 110.0)), 2: far}, {0: near, 1: curve((-0.3, 108.0))})
    assert [x[0] for x in pair] == pytest.approx([(102 + 110) / 2, (104 + 108) / 2])


def test_two_that_drifted_to_different_sides_have_no_drift_in_common():
    assert at_equal_drift({0: curve((-0.2, 104.0))}, {0: curve((0.1, 104.0))}) is None
    assert at_equal_drift({0: curve((-0.2, 104.0))}, {0: curve((-0.1, 104.0))}) is None  # no drift at all
    assert at_equal_drift({}, {0: curve((-0.2, 104.0))}) is None


def test_objectives_are_compared_at_equal_drift_or_it_is_said_that_they_are_not(world):
    random = np.random.default_rng(0)
    value = {name: random.random(len(world.requests.rows)) for name in ("vsl", "rspo", "rspo_s3", "grpo")}
    figures = {name: {0: {"value@5": metric}} for name, metric in value.items()}
    moved = {
        name: {0: {"drift": drift}}
        for name, drift in {"vsl": -0.1, "rspo": -0.3, "rspo_s3": -0.6, "grpo": -0.2}.items()
    }
    arm = world.settings.arms["vsl"]
    arms = {name: arm.model_copy(update={"curve": name[:4] if name != "vsl" else None}) for name in value}
    here = replace(world, settings=world.settings.model_copy(update={"arms": arms}))
    found = equal_drift(here, figures, moved)
    expected = compared((value["vsl"] + value["rspo"]) / 2, value["grpo"], users=world.users, seed=0)
    assert found["rspo_vs_grpo_at"] == "drift"
    assert found["rspo_vs_grpo"] == pytest.approx(expected["ratio"])
    assert found["rspo_vs_grpo_low"] == pytest.approx(expected["low"])
    moved["grpo"][0]["drift"] = -0.5  # its curve is read at -.3, half way
    expected = compared(value["rspo"], (value["vsl"] + value["grpo"]) / 2, users=world.users, seed=0)
    assert equal_drift(here, figures, moved)["rspo_vs_grpo"] == pytest.approx(expected["ratio"])
    unknown = equal_drift(here, figures, moved | {"grpo": {}})
    expected = compared(value["rspo"], value["grpo"], users=world.users, seed=0)
    assert unknown["rspo_vs_grpo_at"] == "strength"
    assert unknown["rspo_vs_grpo_low"] == pytest.approx(expected["low"])
    assert set(equal_drift(here, {"vsl": figures["vsl"]}, moved).values()) == {None}


@pytest.mark.slow
def test_speed_is_measured_once_for_a_shape(world):
    speeds = requests_a_second(world)
    assert set(speeds) == {"vsl", "vsl_by_probability", "vsl_reward"}
    assert len(set(speeds.values())) == 1  # same shape and widths
    assert min(speeds.values()) > 0


def test_drift_is_measured_on_the_lists_of_the_run(folder, world, tmp_path, monkeypatch):
    """Zero for the model that made the lists, not for another; None where a run has none; measured once."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("data", "tokenizer", "model-0", "model-1"):
        (run / name).symlink_to(folder / "run" / name)
    arm = world.settings.arms["vsl"].model_copy(update={"run": str(run)})
    own, other = (Trained.find(arm, seed=seed) for seed in SEEDS)
    assert drifts(world, {0: own}) == {}
    assert mean_drift({}) == {"drift": None, "live_mass": None}
    preset = Preset.load(folder / "preset.yaml", ["rollout.requests=6", "rollout.list_size=4"])
    roll_out(preset, run, part="train", checkpoint=own.checkpoint, folder=run / "lists" / "train")
    found = drifts(world, {0: own})[0]
    assert found["drift"] == pytest.approx(0, abs=1e-4)
    assert 0 < found["live_mass"] <= 1
    moved = drifts(world, {1: other})[1]["drift"]
    assert abs(moved) > 0.01
    monkeypatch.setattr(drift_module, "measure_drift", lambda *a, **k: pytest.fail("measured again"))
    both = drifts(world, {0: own, 1: other})
    assert mean_drift(both)["drift"] == pytest.approx(moved / 2, abs=1e-4)


def test_settings_that_cannot_be_are_refused(folder):
    good = settings_of(folder)
    for changes, said in (
        ({"baseline": "no"}, "baseline: expected one of popularity"),
        ({"arms": {"vsl": {"name": "VSL"}}}, "expected a run of a generator"),
        ({"folds": 1}, "greater than or equal to 2"),
        ({"surprise": 1}, "Extra inputs"),
    ):
        with pytest.raises(ValueError, match=said):
            Settings.model_validate(good | changes)
    with pytest.raises(CheckpointError):
        Trained.find(Settings.model_validate(good).arms["rspo"], seed=0)


def test_the_command_writes_table_and_picture(folder, world, tmp_path):
    arms, out = tmp_path / "arms.yaml", world.cache.parent
    arms.write_text(yaml.safe_dump(settings_of(folder)))
    command = [sys.executable, "-m", "benchmarks.simulation", "--arms", str(arms), "--out", str(out)]
    done = subprocess.run(
        [*command, "--requests", "12", "--no-speed"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = json.loads((out / "table.json").read_text())
    assert table["requests"] == 12
    assert table["response_model"]["requests"] == 12
    assert table["label"] == "simulation"
    assert table["rows"]["vsl"]["qps"] is None
    assert (out / "table.png").stat().st_size > 10_000
    assert "RSPO" in done.stdout


def test_shipped_arms_are_valid():
    path = Path(answers_module.__file__).with_name("arms.yaml")
    settings = Settings.load(path)
    assert {"vsl", "k0", "rspo", "grpo", "dpo", "uvr", "vsl_by_probability"} <= set(settings.arms)
    assert path.read_text().startswith("# make simulate")


def test_the_curves_of_the_shipped_arms_are_of_the_models_that_are_trained():
    settings = Settings.load(Path(answers_module.__file__).with_name("arms.yaml"))
    for objective in set(train_module.OBJECTIVES) - {train_module.CONTROL}:
        models = {arm.model for arm in settings.arms.values() if arm.curve == objective}
        names = {train_module.name_of(objective, strength) for strength in train_module.STRENGTHS}
        assert models == {f"model/post_trained/{name}" for name in names}
        assert objective in names  # strength 1, which the keys of the table are of


def test_answers_survive_the_cache(tmp_path):
    random = np.random.default_rng(0)
    ads = random.integers(-1, 9, (4, 3))
    found = Answers(ads, *random.random((2, 4, 3)))
    found.save(tmp_path / "a.npz")
    for name, array in vars(Answers.load(tmp_path / "a.npz")).items():
        np.testing.assert_array_equal(array, vars(found)[name])
