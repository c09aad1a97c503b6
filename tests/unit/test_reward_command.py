"""`python -m training.reward`: fits once, says how good it is, and scores stored lists shard by shard."""

import json
import shutil
import sys

import numpy as np
import polars as pl
import pytest
import torch

import training.reward.__main__ as command
from serving.files import sha256
from tests.once import made_once
from tests.tiny_log import open_run, write_run
from tests.unit.test_reward_model import SMALL, groups_of
from training.data.list_about import About
from training.data.list_shards import ContextList
from training.data.list_store import ListWriter, RewardWriter, StoredLists, request_keys
from training.data.lists import CandidateFlag, CandidateList
from training.reward import features
from training.reward.reward_model import ARRAYS, MODEL, RewardModel
from training.run import RunData

OWN, LOGGED = CandidateFlag.OWN, CandidateFlag.LOGGED


def call_of(made, monkeypatch, capsys):
    """What the command says of a run."""

    def run(*words, sets=()):
        sets = [f"--set={s}" for s in (*SMALL, *sets)]
        line = [*words, "--config", str(made[0]), "--run", str(made[1]), *sets]
        monkeypatch.setattr(sys, "argv", ["reward", *line])
        capsys.readouterr()
        command.main()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Preset and run folder."""
    torch.set_num_threads(1)
    return write_run(tmp_path_factory.mktemp("log"), users=16)


@pytest.fixture
def made(log, tmp_path):
    """A copy of them."""
    shutil.copytree(log[1], tmp_path / "run")
    return log[0], tmp_path / "run"


@pytest.fixture
def call(made, monkeypatch, capsys):
    return call_of(made, monkeypatch, capsys)


@pytest.fixture
def fitted(made, call, tmp_path_factory):
    """A copy of them with a reward model, fitted once."""
    once = made_once(
        tmp_path_factory,
        "reward",
        lambda folder: (call(), shutil.copytree(made[1] / "reward", folder, dirs_exist_ok=True)),
    )
    shutil.copytree(once, made[1] / "reward", dirs_exist_ok=True)
    return made


def write_lists(made, name, *, part="train", count=40, tokenizer_id=None):
    """Lists of the first requests of a part: twelve ads each, what was bought behind them, one unknown ad."""
    dataset, random = open_run(made)[2], np.random.default_rng(0)
    groups = groups_of(dataset, part)
    tokenizer_id = tokenizer_id or RunData.load(made[1]).tokenizer_id
    about = About(
        weights="w" * 64,
        tokenizer_id=tokenizer_id,
        level_sizes=(6, 5, 16),
        contexts=count,
        per_shard=15,
        inputs={"part": part},
    )
    writer = ListWriter(made[1] / "lists" / name, about)
    keys = request_keys(dataset.log, groups.request[:count])
    contexts = []
    for row in range(count):
        had = np.unique(dataset.log.ad_ids[dataset.targets(groups, row)])
        own = random.choice(np.setdiff1d(np.arange(60), had[1:]), 12, replace=False)
        late = np.setdiff1d(had, own)
        ads = np.concatenate([own, late])
        flags = np.concatenate([np.full(12, OWN), np.full(len(late), LOGGED)]).astype(np.uint8)
        stored = ads.copy()
        stored[3] = -1
        candidates = CandidateList(
            sids=dataset.ad_sids[ads],
            reward=np.zeros(len(ads), np.float32),
            flags=flags,
            ads=stored,
            log_p_ref=np.full(len(ads), -1, np.float32),
        )
        key = {name: int(column[row]) for name, column in zip(("user_id", "now", "nth"), keys, strict=True)}
        contexts.append(ContextList(**key, candidates=candidates, bought=np.isin(ads, had)))
    for shard in range(about.shards):
        writer.write(shard, [contexts[row] for row in about.rows(shard)])
    return StoredLists.open(made[1] / "lists" / name)


def test_it_fits_says_how_good_it_is_and_does_nothing_twice(made, call):
    said, folder = call(), made[1] / "reward"
    report = json.loads((folder / "reward.json").read_text())
    assert f"{report['test']['trees']['auc']:8.4f}" in said
    assert report["serves"] == "mean"
    assert {kind for kind in report["test"]} == {"trees", "neural", "mean"}
    assert 0 < report["ms_512"] < 1000
    assert (folder / "reward.png").stat().st_size > 10_000
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert "up to date" in call()
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert "out of date: reward.trees 40 -> 8" in call(sets=("reward.trees=8",))


def test_a_fit_that_fails_leaves_the_model_that_was_there(fitted, call):
    folder = fitted[1] / "reward"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(
        SystemExit, match="error: reward model: expected at least one train request, got none"
    ):
        call(sets=("training.min_history=1000",))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_release_with_other_features_makes_it_again(fitted, call, monkeypatch):
    fitted_before = (fitted[1] / "reward" / MODEL).stat().st_mtime_ns
    assert "up to date" in call()
    monkeypatch.setattr(command, "feature_set", lambda _: "others")
    assert "up to date" not in call()
    assert (fitted[1] / "reward" / MODEL).stat().st_mtime_ns > fitted_before


def test_what_it_was_made_from_is_what_it_is_told_by(made, call, monkeypatch):
    """Settings outside its own section, too; and all of them are in the model, so in its id."""
    call()
    model = RewardModel.load(made[1] / "reward")
    assert model.about.made_from == json.loads((made[1] / "reward" / "inputs.json").read_text())["values"]
    assert model.about.made_from["data/events.parquet"] == sha256(made[1] / "data" / "events.parquet")
    assert "up to date" in call()
    stats = made[1] / "data" / "stats.json"
    stats.write_text(json.dumps(json.loads(stats.read_text()) | {"attribution_window_s": 60}))
    assert "out of date: data.attribution_window 1800 -> 60" in call()
    assert RewardModel.load(made[1] / "reward").id != model.id
    monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    assert "out of date: features of this release " in call()


def test_lists_are_scored_and_what_was_stopped_goes_on(fitted, call, monkeypatch):
    lists, model = write_lists(fitted, "train"), RewardModel.load(fitted[1] / "reward")
    monkeypatch.setattr(RewardModel, "score", stop_after(20, RewardModel.score))
    with pytest.raises(SystemExit, match="stopped"):
        call("score", "--lists", "train")
    assert RewardWriter(lists, model.id).missing() == [1, 2]
    monkeypatch.undo()
    assert "rewards of 40 lists" in call("score", "--lists", "train")
    scored = StoredLists.open(lists.folder, reward=model.id)
    dataset = open_run(fitted)[2]
    groups = groups_of(dataset, "train")
    for row, stored in enumerate(scored.rows_of(dataset, groups)[:40]):
        found = scored.get(int(stored))
        expected = model.score(dataset, groups, row, found.ads).reward
        np.testing.assert_allclose(found.reward, expected, rtol=1e-5)


def stop_after(count, score):
    asked = []

    def ask(*arguments):
        asked.append(1)
        if len(asked) > count:
            raise KeyboardInterrupt
        return score(*arguments)

    return ask


def test_lists_are_what_it_learns_from_and_is_judged_on(made, call):
    lists = write_lists(made, "train", count=60)
    write_lists(made, "test", part="test", count=20)
    call(sets=("reward.lists=[train, test]",))
    report = json.loads((made[1] / "reward" / "reward.json").read_text())
    of_search = (lists.lists.flags & OWN > 0) & (lists.lists.ads >= 0)
    assert report["rows"]["train"]["requests"] == 60
    assert report["rows"]["test"] == {
        "requests": 20,
        "rows": 20 * 11,
        "outcomes": report["rows"]["test"]["outcomes"],
    }
    assert report["rows"]["train"]["outcomes"] == int((lists.lists.bought & of_search).sum())
    assert report["rows"]["validation"]["requests"] > 0


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (lambda m: None, ("score", "--lists", "none"), "about.json: expected candidate lists"),
        (
            lambda m: write_lists(m, "a", tokenizer_id="other"),
            ("score", "--lists", "a"),
            "expected lists of the tok",
        ),
        (
            lambda m: (m[1] / "reward" / ARRAYS).write_bytes(b""),
            ("score", "--lists", "train"),
            "expected sha256",
        ),
        (lambda m: (m[1] / "reward" / MODEL).unlink(), ("score", "--lists", "train"), "make reward"),
    ],
)
def test_lists_that_cannot_be_scored(fitted, call, change, words, message):
    write_lists(fitted, "train")
    change(fitted)
    with pytest.raises(SystemExit, match=message):
        call(*words)


def test_lists_of_requests_that_the_log_does_not_have(fitted, call):
    lists = write_lists(fitted, "train")
    path = lists.folder / "part-00001.parquet"
    shard = pl.read_parquet(path)
    shard.with_columns(now=pl.col("now") + 5).write_parquet(path)
    with pytest.raises(SystemExit, match="expected requests of this log, got 15 others, first user"):
        call("score", "--lists", "train")


def test_score_asks_for_lists(call):
    with pytest.raises(SystemExit):
        call("score")


def test_lists_of_validation_alone_leave_the_fit_its_recent_weeks(made, call):
    write_lists(made, "validation", part="validation", count=15)
    sets = ("reward.lists=[validation]", "reward.weeks=2", "reward.requests=1000")
    call(sets=sets)
    report = json.loads((made[1] / "reward" / "reward.json").read_text())
    dataset = open_run(made)[2]
    recent = dataset.groups("train", target_behaviors=("conversion",), min_history=3, recent_weeks=2)
    assert report["rows"]["train"]["requests"] == len(recent)
    assert report["rows"]["validation"]["requests"] == 15
