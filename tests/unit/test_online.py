"""Learning from what is served: each sample once, whatever ends the trainer; and what guards stop."""

from __future__ import annotations

import math
import random
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from feedback.store.layout import FeedbackStoreError
from feedback.store.samples import Fact, JoinedSample, Samples
from serving.index.keys import pack
from tests.online_run import OnlineRun, learnt, run, said, trained
from training.loop.checkpoint import CheckpointError, load_checkpoint
from training.loop.retention import find_checkpoint, open_checkpoint, save_checkpoint
from training.online.intake import Intake
from training.online.state import OnlineState, digest_of
from training.preset.preset import ConfigError, Preset
from training.recipes.command import alone
from training.recipes.online import LOCK, main
from training.run import SpecError

__all__ = ["run", "trained"]


def weights(learner):
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# Once each


def test_each_sample_is_learnt_once_and_its_targets_are_remembered(run):
    run.serve(30)
    learner = learnt(run.learner())
    assert learner.state.to_json() | {"offset": 30, "learnt": 30, "empty": 0} == learner.state.to_json()
    with Samples(run.store) as samples:
        expected = Counter(
            digest_of(sample, fact)
            for sample in samples.read(after=0)
            for fact in sample.facts
            if fact.behavior == 3
        )
    assert Counter(learner.state.memory().tolist()) == expected
    saved = open_checkpoint(run.run / "online")
    assert saved.online == learner.state.to_json() | {"since": saved.online["since"]}
    assert Counter(saved.learnt.tolist()) == expected
    assert not same(weights(learner), open_checkpoint(run.run / "model").model.state_dict())


@pytest.mark.parametrize("objective", ["uvr", "rspo", "vsl"])
def test_a_trainer_that_dies_after_any_checkpoint_ends_with_the_same_weights(run, objective):
    """Optimizer, offset, order of the replay and balance of the lists: all of it is in the checkpoint."""
    run.serve(40)
    whole = learnt(run.learner(list_objective=objective))
    expected, steps = weights(whole), whole.step
    assert steps == 10
    shutil.rmtree(run.run / "online")
    for died in range(steps):
        again = run.learner(list_objective=objective, keep_checkpoints=20)
        assert again.step == died
        learnt(again, steps=1)
        again._make_step([])  # was not saved: is as if it had not been
    again = run.learner(list_objective=objective)
    assert (again.step, again.state.offset, again.state.learnt) == (steps, 40, 40)
    assert same(weights(again), expected)
    assert {k: v for k, v in again.state.to_json().items() if k != "since"} == {
        k: v for k, v in whole.state.to_json().items() if k != "since"
    }
    at = 0, 0
    for step in range(1, steps + 1):  # checkpoint by checkpoint, without a gap
        online = load_checkpoint(find_checkpoint(run.run / "online", f"step-{step:06d}")).online
        assert (online["since"]["step"], online["since"]["offset"]) == at
        at = step, online["offset"]


def test_the_copy_path_stays_what_the_logs_taught(tmp_path, no_curves):
    run = OnlineRun(tmp_path, "model.copy_path=true", "features.habits=6")
    run.serve(24)
    before = open_checkpoint(run.run / "model").model.state_dict()
    learnt(run.learner(), steps=2)
    learner = learnt(run.learner())  # goes on, without a state of the optimizer for what stands still
    after = weights(learner)
    still = {name for name, value in before.items() if torch.equal(after[name], value)}
    copying = {name for name in before if name.startswith("copy_path.")}
    assert copying
    assert copying <= still
    assert len(still - copying) < len(before) / 2
    shutil.rmtree(run.run / "online")
    assert same(after, weights(learnt(run.learner())))


def test_of_a_correction_only_what_is_new_is_learnt(run):
    draw = random.Random(5)
    record = run.record("q", draw=draw, at=int(run.now))
    first, second, third = record.ad_ids[:3]
    run.feed([record, run.event(record, first, "conversion", value=5.0)], later=700)
    for ad, value, delay in ((second, 7.0, 2), (third, 9.0, 3), (first, 6.0, 4)):
        run.feed([run.event(record, ad, "conversion", value=value, delay=delay)], later=1)
    run.feed([run.event(record, second, "impression")], later=1)
    intake = run.learner()._intake
    taken = [intake.take(1) for _ in range(5)]
    targets = [[(int(s.ads[i]), int(s.value[i])) for i in range(len(s.ads))] for [s] in taken[:4]]
    value = intake._spec.value_buckets.encode(np.array([5.0, 7.0, 9.0, 6.0])).tolist()
    assert targets == [[(ad, v)] for ad, v in zip((first, second, third, first), value, strict=True)]
    assert [len(s.candidates.ads) for [s] in taken[:4]] == [1, 2, 3, 3]  # a list is learnt with all in it
    assert taken[4] == []  # an impression adds nothing that was not known to be worth nothing
    assert (intake.state.learnt, intake.state.empty, intake.state.offset) == (4, 1, 5)


def test_nothing_to_learn_is_no_step(run):
    draw = random.Random(5)
    records = [run.record(f"q{n}", draw=draw, at=int(run.now)) for n in range(3)]
    run.feed([*records, run.event(records[1], records[1].ad_ids[0], "impression")], later=700)
    learner = learnt(run.learner())
    assert (learner.step, learner.state.empty, learner.state.offset) == (0, 3, 3)
    assert not (run.run / "online" / "checkpoints").exists()


def test_what_was_taken_when_it_is_told_to_stop_is_learnt_and_saved(run):
    run.serve(6)
    learner, looks = run.learner(wait_seconds=60, batch_size=32), []

    def stop():
        looks.append(learner.step)
        return len(looks) > 1

    learner.run(stop)
    assert (learner.step, learner.state.learnt) == (1, 6)
    assert open_checkpoint(run.run / "online").online["learnt"] == 6


def test_it_waits_for_a_store_and_for_samples_with_few_steps_of_replay_alone(run):
    """`replay_only_steps` at most, and then none until a sample has come."""
    learner, looks = run.learner(replay_only_steps=2), []

    def stop():
        looks.append(learner.step)
        if len(looks) == 6:
            run.serve(1)
        return len(looks) > 10

    learner.run(stop)
    assert looks[:6] == [0, 1, 2, 2, 2, 2]
    assert (looks[-1], learner.state.learnt) == (5, 1)


def test_replay_is_its_share_of_a_batch_and_no_served_sample_waits_longer_than_it_may(run):
    run.serve(10)
    asked = []
    learner = run.learner(replay=0.75, batch_size=16)
    replay = learner._replay
    learner._replay = lambda step, count: asked.append(count) or replay(step, count)
    learnt(learner)
    assert asked == [12, 12, 6]  # 4, 4 and 2 served ones
    assert len(replay(0, 12)) == 12
    for one, other in zip(replay(3, 4), replay(3, 4), strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


def test_sids_that_were_learnt_are_seen_ones(run):
    run.serve(20)
    learnt(run.learner())
    with Samples(run.store) as samples:
        ads = sorted({f.ad_id for s in samples.read(after=0) for f in s.facts if f.behavior == 3})
    before, after = (open_checkpoint(run.run / name) for name in ("model", "online"))
    own = pack(run.sids_of(np.array(ads))[0], before.spec.level_sizes)
    assert set(after.seen_sids.tolist()) == set(before.seen_sids.tolist()) | set(own.tolist())


def test_a_fresh_start_begins_with_the_trained_model_and_learns_everything_again(run):
    run.serve(12)
    assert learnt(run.learner()).step == 3
    again = run.learner(fresh=True)
    assert (again.step, again.state.offset) == (0, 0)
    assert find_checkpoint(run.run / "online").name == "step-000003"  # until there is another one
    learnt(again, steps=1)
    assert [path.name for path in (run.run / "online" / "checkpoints").glob("step-*")] == ["step-000001"]
    assert learnt(run.learner()).state.learnt == 12


# Bad input


def test_two_trainers_of_one_folder(run, monkeypatch):
    command = ["online", "--config", str(run.preset), "--run", str(run.run)]
    monkeypatch.setattr("sys.argv", command)
    with alone(run.run / "online" / LOCK), pytest.raises(SystemExit, match="expected to work here alone"):
        main()
    with pytest.raises(SystemExit, match="error: index .*: expected a built index"):
        main()


def test_samples_that_are_gone_are_counted_and_it_goes_on_behind_them(run):
    run.serve(12, keep_samples=5)
    lines = []
    learner = learnt(run.learner(say=lines.append))
    assert (learner.state.lost, learner.state.learnt, learner.state.offset) == (7, 5, 12)
    assert said(lines, "samples 1 .. 7 are gone, read after 7: this trainer was away for longer")
    assert open_checkpoint(run.run / "online").online["lost"] == 7


def test_samples_that_are_no_numbers_or_of_another_model_are_refused_and_the_others_are_learnt(run):
    draw = random.Random(1)
    good = run.record("good", draw=draw, at=int(run.now))
    bad = {
        "slots": {"slots": [[4, 0, 0]] * 8},
        "rows": {"slots": [[3, 0, 0]] * 2, "slot_ads": [1, 2]},
        "profile": {"profile": [9]},
        "columns": {"profile": [0, 0]},
        "levels": {"sids": [[1, 2]] * 5},
        "above": {"scores": [3.0] * 5},
    }
    records = [run.record(name, draw=draw, at=int(run.now), **changes) for name, changes in bad.items()]
    items = [*records, good]
    run.feed([*items, *(run.event(r, r.ad_ids[0], "conversion", value=2.0) for r in items)], later=700)
    lines = []
    learner = learnt(run.learner(say=lines.append))
    assert (learner.state.refused, learner.state.learnt, learner.state.offset) == (6, 1, 7)
    for text in (
        "slots: expected codes from 0 to below (4, 12, 10), got [4, 0, 0]",
        "slots: expected 8 (the model's), got 2",
        "profile: expected codes from 0 to below (3,), got [9]",
        "profile: expected 1 (the model's), got 2",
        "levels of SIDs: expected {3} (the model's), got {2}",
        "candidate 0, log_p_ref: expected a log-probability, got 3.0",
    ):
        assert len(said(lines, text)) == 1, (text, lines)


def test_a_value_that_is_no_number_is_refused(run):
    run.serve(1)
    with Samples(run.store) as samples:
        [sample] = samples.read(after=0)
    intake: Intake = run.learner()._intake
    for value in (math.nan, math.inf):
        facts = (Fact(sample.record.ad_ids[0], 3, sample.record.timestamp, value),)
        assert intake._sample(JoinedSample(1, 0, sample.record, facts)) is None
    assert intake.state.refused == 2


def test_the_offset_of_another_store(run):
    run.serve(8)
    learnt(run.learner())
    shutil.rmtree(run.store)
    run.serve(2, seed=1)
    with pytest.raises(FeedbackStoreError, match="expected an offset of at most 2, got 8: of another store"):
        learnt(run.learner())


def test_samples_can_be_left_out_by_command(run):
    run.serve(12)
    lines = []
    learner = learnt(run.learner(after=10, say=lines.append))
    assert (learner.state.skipped, learner.state.learnt, learner.state.offset) == (10, 2, 12)
    assert said(lines, "samples 1 .. 10 are left out")
    assert run.learner(after=5).state.skipped == 10  # what is learnt is not left out


def test_another_tokenizer_and_the_folders_of_other_runs(run, tmp_path):
    run.serve(4)
    learnt(run.learner())
    for changes, match in (
        ({"online": None, "source": None}, "got that of a pre-trained model"),
        ({"online": None}, "expected a run of learning online, got one of fine-tuning for FP8"),
        ({"source": "0" * 64}, "got one that began from 00000000; start over with --fresh"),
        ({"online": {"offset": 3}}, "expected counts that add up to the offset"),
        ({"online": {"what": 3}}, "expected where a run stands"),
    ):
        made = open_checkpoint(run.run / "online")
        for name, value in changes.items():
            object.__setattr__(made, name, value)
        shutil.rmtree(run.run / "online")
        save_checkpoint(run.run / "online", made, keep=1)
        with pytest.raises((SpecError, CheckpointError), match=match):
            run.learner()
        shutil.rmtree(run.run / "online")
        learnt(run.learner())
    tokenizer = run.run / "tokenizer"
    shutil.copytree(tokenizer, tmp_path / "tokenizer")
    shutil.rmtree(run.run / "online")
    trained = open_checkpoint(run.run / "model")
    object.__setattr__(trained, "spec", replace(trained.spec, tokenizer_id="other"))
    shutil.copytree(run.run / "model", tmp_path / "model")
    try:
        object.__setattr__(trained, "step", trained.step + 1)
        save_checkpoint(run.run / "model", trained, keep=5)
        with pytest.raises(SpecError, match="expected tokenizer other"):
            run.learner()
    finally:
        shutil.rmtree(run.run / "model")
        shutil.copytree(tmp_path / "model", run.run / "model")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"replay": 1}, "online.replay: .*less than 1, got 1"),
        ({"min_entropy": 2}, "online.min_entropy: .*less than or equal to 1, got 2"),
        ({"learning_rate": ".nan"}, "online.learning_rate: .*got nan"),
        ({"list_objective": "none"}, "online.list_objective: "),
        ({"steps": 3}, "online: unknown key 'steps'"),
    ],
)
def test_settings_that_cannot_be(run, settings, match):
    with pytest.raises(ConfigError, match=match):
        Preset.load(run.preset, [f"online.{key}={value}" for key, value in settings.items()])


def test_a_state_counts_every_sample():
    state = OnlineState(offset=5, learnt=2, empty=1, refused=1, lost=1)
    assert OnlineState.of(state.to_json(), None) == state
    with pytest.raises(CheckpointError, match="add up"):
        OnlineState.of(state.to_json() | {"learnt": 1}, None)
