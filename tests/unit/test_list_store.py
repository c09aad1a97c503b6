"""Candidate lists on disk: what was written comes back for its request, and nothing else does."""

import json
import re

import numpy as np
import polars as pl
import pytest

from tests.funnel_log import USERS, config, impressions
from tests.tiny_log import open_run, run_of, write_run
from training.data.list_about import ABOUT, About, ListStoreError
from training.data.list_shards import ContextList
from training.data.list_store import ListWriter, RewardWriter, StoredLists, request_keys
from training.data.lists import CandidateList

SIZES = (8, 9, 10)
BEHAVIORS = ("impression", "click", "conversion")
WEIGHTS = "training.behavior_weights={impression: 1}"


def about(contexts=7, per_shard=3, **changed):
    fields = {"weights": "w" * 64, "tokenizer_id": "t1", "level_sizes": SIZES, "inputs": {"rollout.seed": 0}}
    return About(contexts=contexts, per_shard=per_shard, **fields | changed)


def made_up(user, now, nth=0, *, size, seed):
    random = np.random.default_rng(seed)
    candidates = CandidateList(
        sids=random.integers(0, SIZES, (size, 3)).astype(np.int32),
        reward=np.zeros(size, np.float32),
        flags=random.integers(1, 16, size).astype(np.uint8),
        ads=random.integers(-1, 1 << 40, size),
        log_p_ref=(-random.exponential(5, size)).astype(np.float32),
    )
    bought = random.random(size) < 0.3
    return ContextList(user_id=user, now=now, nth=nth, candidates=candidates, bought=bought)


@pytest.fixture
def contexts():
    """Seven lists of lengths 0 .. 6, one user twice."""
    return [made_up(user % 5, 100 * user, size=user, seed=user) for user in range(7)]


@pytest.fixture
def folder(tmp_path, contexts):
    """A folder with these lists in three shards."""
    writer = ListWriter(tmp_path / "lists", about())
    assert writer.missing() == [0, 1, 2]
    for shard in (2, 0, 1):
        writer.write(shard, [contexts[row] for row in about().rows(shard)])
    assert writer.missing() == []
    return tmp_path / "lists"


def test_what_was_written_comes_back(folder, contexts):
    lists = StoredLists.open(folder)
    assert lists.about == about()
    assert len(lists) == 7
    for row, context in enumerate(contexts):
        got = lists.get(row)
        for name, expected in vars(context.candidates).items():
            np.testing.assert_array_equal(getattr(got, name), expected)
            assert getattr(got, name).dtype == expected.dtype
        np.testing.assert_array_equal(lists.bought(row), context.bought)
        here = lists.lists
        assert (here.user_id[row], here.now[row], here.nth[row]) == (context.user_id, context.now, 0)


def test_rewards_are_kept_by_reward_model_and_shard(folder):
    lists = StoredLists.open(folder)
    given = {name: [np.random.default_rng((s, r)).random(r) for r in range(7)] for s, name in enumerate("ab")}
    for name, rewards in given.items():
        writer = RewardWriter(lists, name)
        assert writer.missing() == [0, 1, 2]
        writer.write(1, rewards[3:6])
        assert writer.missing() == [0, 2]
        with pytest.raises(ListStoreError, match=r"rewards\.[ab]: expected rewards of 3 shards, got 1"):
            StoredLists.open(folder, reward=name)
        writer.write(0, rewards[:3])
        writer.write(2, rewards[6:])
    for name, rewards in given.items():
        scored = StoredLists.open(folder, reward=name)
        for row, reward in enumerate(rewards):
            np.testing.assert_array_equal(scored.get(row).reward, reward.astype(np.float32))
    assert (StoredLists.open(folder).get(6).reward == 0).all()


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([np.zeros(6), np.zeros(6)], "expected rewards of 1 requests, got 2"),
        ([np.zeros(5)], r"row 0: expected 6 finite rewards, got \[5\]"),
        ([np.array([0, 1, 2, 3, 4, np.nan])], "row 0: expected 6 finite rewards, got .*nan"),
        ([np.full(6, 1e39)], "row 0: expected 6 finite rewards, got .*inf"),  # beyond float32
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_rewards_that_cannot_be_are_not_written(folder, rewards, message):
    writer = RewardWriter(StoredLists.open(folder), "a")
    with pytest.raises(ValueError, match=message):
        writer.write(2, rewards)
    assert writer.missing() == [0, 1, 2]


def test_rewards_of_other_lists_are_refused(folder):
    writer = RewardWriter(StoredLists.open(folder), "a")
    for shard, sizes in enumerate(([0, 1, 2], [3, 4, 5], [6])):
        writer.write(shard, [np.ones(size) for size in sizes])
    part = writer.folder / "part-00002.parquet"
    pl.DataFrame({"reward": [[1.0] * 5]}, schema={"reward": pl.List(pl.Float32)}).write_parquet(part)
    with pytest.raises(ListStoreError, match=r"part-00002.*row 0: expected 6 finite rewards, got \[5\]"):
        StoredLists.open(folder, reward="a")


def test_an_id_of_a_reward_model_is_a_name(folder):
    for name in ("", "../x", "a b", "x" * 65):
        with pytest.raises(ValueError, match="expected an id"):
            RewardWriter(StoredLists.open(folder), name)


def test_a_writer_goes_on_with_the_same_lists_and_empties_others(folder, contexts):
    (folder / "part-00001.parquet").unlink()
    assert ListWriter(folder, about()).missing() == [1]
    with pytest.raises(ListStoreError, match="expected 3 shards, at least one, got 2"):
        StoredLists.open(folder)
    RewardWriter(StoredLists(folder, about(), None), "a").folder.mkdir()
    assert ListWriter(folder, about(inputs={"rollout.seed": 1})).missing() == [0, 1, 2]
    assert [path.name for path in folder.iterdir()] == [ABOUT]


def tree(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("other", ["checkpoints/step-000001/model.safetensors", "notes.txt"])
def test_a_folder_of_something_else_is_refused_as_it_is(folder, other, fresh):
    path = folder / other
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not of a roll-out")
    before = tree(folder)
    name = other.split("/")[0]
    with pytest.raises(ListStoreError, match=f"folder of candidate lists alone, got {name}"):
        ListWriter(folder, about(weights="v" * 64), fresh=fresh)
    assert tree(folder) == before


def test_what_a_killed_roll_out_left_goes_with_the_lists(folder):
    for name in (".part-00002.parquet.new", ".about.json.new", ".inputs.json.new", "inputs.json"):
        (folder / name).write_text("half")
    rewards = RewardWriter(StoredLists.open(folder), "a")
    rewards.folder.mkdir()
    (rewards.folder / "part-00000.parquet").write_text("x")
    ListWriter(folder, about(), fresh=True)
    assert [path.name for path in folder.iterdir()] == [ABOUT]


def test_a_shard_of_too_few_lists_is_not_written(folder, contexts):
    writer = ListWriter(folder, about(weights="v" * 64))
    with pytest.raises(ValueError, match="shard 0: expected lists of 3 requests, got 2"):
        writer.write(0, contexts[:2])
    assert writer.missing() == [0, 1, 2]


def test_lists_of_another_model_or_tokenizer_are_refused(folder):
    lists = StoredLists.open(folder)
    lists.check(tokenizer_id="t1")
    lists.check(tokenizer_id="t1", weights="w" * 64)
    with pytest.raises(ListStoreError, match="lists of the tokenizer t2, got those of t1: make them again"):
        lists.check(tokenizer_id="t2")
    with pytest.raises(ListStoreError, match="lists of the weights v{64}, got those of w{64}"):
        lists.check(tokenizer_id="t1", weights="v" * 64)


def damage(folder, name, change):
    """Write shard 2, which has one list of six candidates, with a column changed."""
    path = folder / "part-00002.parquet"
    table = pl.read_parquet(path)
    table.with_columns(pl.Series(name, [change(table[name][0].to_list())], table.schema[name])).write_parquet(
        path
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ads", lambda ads: ads[:5], "row 0, ads: expected 6 candidates, got 5"),
        ("ads", lambda ads: [None, *ads[1:]], "ads: expected no empty value in a list"),
        ("ads", lambda ads: [-2, *ads[1:]], "candidate 0, ads: expected an ad or -1, got -2"),
        ("flags", lambda flags: [*flags[:5], 0], r"candidate 5, flags: expected flags 1\.\.15, got 0"),
        ("log_p_ref", lambda p: [np.nan, *p[1:]], "candidate 0, log_p_ref: expected a log-prob.*, got nan"),
        ("log_p_ref", lambda p: [*p[:5], 0.5], "candidate 5, log_p_ref: expected a log-prob.*, got 0.5"),
        ("sids", lambda s: [*s[:5], [0, 0, 10]], r"candidate 5: .* below \(8, 9, 10\), got \[0, 0, 10\]"),
        ("sids", lambda s: [*s[:5], [0, -1, 0]], "candidate 5, sids: expected codes >= 0"),
        ("sids", lambda s: [*s[:5], [0, None, 0]], "sids: expected no empty value in a list"),
        ("bought", lambda bought: None, "bought: expected no empty cell, got 1"),
    ],
)
def test_a_damaged_shard_is_named_with_its_fault(folder, name, change, message):
    damage(folder, name, change)
    with pytest.raises(ListStoreError, match=rf"part-00002\.parquet: {message}"):
        StoredLists.open(folder)


def test_files_that_are_no_shards_are_named(folder, contexts):
    path = folder / "part-00001.parquet"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PAR1 not really"):
        path.write_bytes(content)
        with pytest.raises(ListStoreError, match=re.escape(str(path))):
            StoredLists.open(folder)
    pl.DataFrame({"user_id": [1]}).write_parquet(path)
    with pytest.raises(ListStoreError, match="part-00001.parquet: expected columns"):
        StoredLists.open(folder)
    path.write_bytes((folder / "part-00002.parquet").read_bytes())
    with pytest.raises(ListStoreError, match="part-00001.parquet: expected lists of 3 requests, got 1"):
        StoredLists.open(folder)
    path.write_bytes((folder / "part-00000.parquet").read_bytes())
    with pytest.raises(ListStoreError, match="expected lists of 7 distinct requests, got 4"):
        StoredLists.open(folder)


def test_what_lists_are_must_be_known(folder):
    for change in (
        {"format": 1},
        {"per_shard": 0},
        {"level_sizes": ["a"]},
        {"contexts": "many"},
        {"more": 1},
    ):
        good = (folder / ABOUT).read_text()
        (folder / ABOUT).write_text(json.dumps(json.loads(good) | change))
        with pytest.raises(ListStoreError, match=r"about\.json: expected what a roll-out writes"):
            StoredLists.open(folder)
        (folder / ABOUT).write_text(good)
    (folder / ABOUT).unlink()
    with pytest.raises(ListStoreError, match="expected candidate lists, got no such file: make rollout"):
        StoredLists.open(folder)


def test_a_list_without_reference_is_not_stored(tmp_path, contexts):
    odd = contexts[2]
    object.__setattr__(odd.candidates, "log_p_ref", None)
    with pytest.raises(ValueError, match="user 2 at 200: expected log_p_ref and bought of 2 cand.*got none"):
        ListWriter(tmp_path / "x", about(1)).write(0, [odd])


def stored(folder, dataset, groups, rows):
    keys = request_keys(dataset.log, groups.request[rows])
    writer = ListWriter(folder, about(len(rows), per_shard=10))
    lists = [
        made_up(int(user), int(now), int(nth), size=2, seed=row)
        for row, user, now, nth in zip(rows, *keys, strict=True)
    ]
    for shard in writer.missing():
        writer.write(shard, [lists[row] for row in writer.about.rows(shard)])
    return StoredLists.open(folder), lists


def test_rows_are_found_by_user_and_time(tmp_path):
    dataset = open_run(write_run(tmp_path))[2]
    train, test = (
        dataset.groups(part, target_behaviors=("conversion",), min_history=3) for part in ("train", "test")
    )
    drawn = np.random.default_rng(0).permutation(len(train))[:37]
    lists, _ = stored(tmp_path / "lists", dataset, train, drawn)
    expected = np.full(len(train), -1)
    expected[drawn] = np.arange(37)
    np.testing.assert_array_equal(lists.rows_of(dataset, train), expected)
    assert (lists.rows_of(dataset, test) == -1).all()


def test_requests_of_one_user_and_time_are_told_apart(tmp_path):
    events = impressions().with_columns(pl.col("timestamp") // 86_400 * 86_400)  # three a day at one time
    settings = config(split={"by": "days", "validation": 1, "test": 1}, target_behaviors=["impression"])
    dataset = open_run(run_of(tmp_path, events, users=USERS, config=settings), WEIGHTS)[2]
    groups = dataset.groups("train", target_behaviors=BEHAVIORS, min_history=0)
    keys = list(zip(*request_keys(dataset.log, groups.request), strict=True))
    assert len(set(keys)) == len(keys) > 2 * len({key[:2] for key in keys})
    drawn = np.random.default_rng(0).permutation(len(groups))[:100]
    lists, _ = stored(tmp_path / "lists", dataset, groups, drawn)
    rows = lists.rows_of(dataset, groups)
    np.testing.assert_array_equal(rows[drawn], np.arange(100))
    assert (rows >= 0).sum() == 100
