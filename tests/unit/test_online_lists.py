"""Lists that a roll-out makes for online learning, round by round, and what is replayed with them."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest

from tests.online_run import learnt, run, said, trained
from training.data.list_store import StoredLists
from training.loop.retention import find_checkpoint, open_checkpoint
from training.preset.preset import Preset
from training.recipes.roll_out_online import folder_of, follow, newest_lists, one_round, rounds
from training.reward.__main__ import _fit as fit

__all__ = ["run", "trained"]


@pytest.fixture
def rolled_out(run):
    """With a small reward model; lists of rounds before are gone."""
    preset = Preset.load(
        run.preset, [f"reward.{s}" for s in ("requests=40", "judged_requests=10", "trees=4")]
    )
    if not (run.run / "reward").exists():
        fit(preset, run.run, fresh=False)
    settings = ("rollout.list_size=5", "rollout.sampled=3", "rollout.widths=4-8-16:1")
    return run, Preset.load(run.preset, settings)


def rounds_of(rolled_out, count):
    run, preset = rolled_out
    for _ in range(count):
        one_round(preset, run.run, find_checkpoint(run.run / "model"), requests=10)


def test_each_round_has_other_requests_and_the_two_newest_stay(rolled_out):
    run, _ = rolled_out
    assert newest_lists(run.run, tokenizer_id="any") is None
    rounds_of(rolled_out, 3)
    assert rounds(run.run) == [2, 3]
    tokenizer = open_checkpoint(run.run / "model").spec.tokenizer_id
    number, newest = newest_lists(run.run, tokenizer_id=tokenizer)
    assert (number, len(newest)) == (3, 10)
    assert np.isfinite(newest.rewards).all()
    assert (np.diff(newest.lists.ptr) >= 8).all()  # the best, and some that were drawn beyond them
    before = StoredLists.open(folder_of(run.run, 2))
    keys = [set(zip(x.lists.user_id.tolist(), x.lists.now.tolist(), strict=True)) for x in (before, newest)]
    assert keys[0] != keys[1]
    assert newest_lists(run.run, tokenizer_id=tokenizer, after=3) is None
    assert newest_lists(run.run, tokenizer_id="another") is None


def test_lists_that_are_not_whole_are_not_learnt_from(rolled_out):
    """What a kill leaves: no shard, no rewards, rewards of some shards, half of a file."""
    run, _ = rolled_out
    rounds_of(rolled_out, 2)
    tokenizer = open_checkpoint(run.run / "model").spec.tokenizer_id
    folder = folder_of(run.run, 2)
    [shard], [rewards] = folder.glob("*.parquet"), folder.glob("rewards.*/*.parquet")
    whole = {path: path.read_bytes() for path in (shard, rewards)}
    for path in whole:
        for spoil in (lambda p: p.unlink(), lambda p: p.write_bytes(whole[p][: len(whole[p]) // 2])):  # noqa: B023
            spoil(path)
            number, _ = newest_lists(run.run, tokenizer_id=tokenizer)
            assert number == 1
            path.write_bytes(whole[path])
    assert newest_lists(run.run, tokenizer_id=tokenizer)[0] == 2


def test_some_of_what_is_replayed_comes_with_such_a_list(rolled_out):
    run, _ = rolled_out
    run.serve(8)
    lines = []
    learner = run.learner(replay=0.75, batch_size=16, say=lines.append)
    assert [s.candidates for s in learner._replay(0, 12)] == [None] * 12
    rounds_of(rolled_out, 1)
    learner._replay._looked = -math.inf
    replayed = learner._replay(0, 12)
    assert said(lines, "lists/online-1: 10 lists are learnt from")
    with_list = [s for s in replayed if s.candidates is not None]
    assert (len(replayed), len(with_list)) == (12, 6)
    assert all(len(s.tokens) and len(s.candidates.sids) >= 8 for s in with_list)
    assert any(len(set(s.candidates.reward.tolist())) > 1 for s in with_list)
    assert [s.candidates for s in run.learner(rolled_out=0)._replay(0, 8)] == [None] * 8
    learnt(learner)
    assert learner.history[-1]["train_list"] > 0
    assert learner.state.norms[2] > 0


def test_a_roll_out_follows_the_newest_checkpoint(rolled_out):
    run, preset = rolled_out
    run.serve(4)
    lines = []

    def say(line):
        lines.append(line)
        if len(lines) == 2:
            raise InterruptedError
        learnt(run.learner(say=lambda _: None))

    with pytest.raises(InterruptedError):
        follow(preset, run.run, run.run / "online", requests=5, say=say)
    assert [line.rpartition(" ")[2] for line in lines] == ["step-000040", "step-000001"]
    shutil.move(run.run / "reward", run.run / "reward.gone")
    try:
        with pytest.raises(ValueError, match="reward"):
            one_round(preset, run.run, find_checkpoint(run.run / "model"), requests=5)
    finally:
        shutil.move(run.run / "reward.gone", run.run / "reward")
