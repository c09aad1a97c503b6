"""Post-training on stored lists: what each objective learns, going on, processes, and what is refused."""

import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.processes import in_processes
from tests.stored_lists import price, write_lists, write_rewards
from tests.tiny_log import open_run, write_run
from tests.unit.test_recipes_pretrain import equal
from training.data.list_store import ListStoreError, StoredLists
from training.data.lists import CandidateFlag, CandidateList
from training.loop.checkpoint import CheckpointError, load_checkpoint, weights_sha256
from training.loop.device import Device
from training.loop.retention import find_checkpoint, open_checkpoint, save_checkpoint
from training.objectives.balance import Balanced
from training.objectives.vsl import Vsl
from training.preset.preset import ConfigError, Preset
from training.recipes import post_train as module
from training.recipes.listed_requests import ListsOfParts, some
from training.recipes.post_train import FOLDER, prepare_post_training
from training.recipes.pretrain import prepare_training
from training.run import SpecError

SETTINGS = {
    "steps": 24,
    "validate_every": 12,
    "batch_size": 8,
    "validation_requests": 12,
    "balance_batches": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "threads": 1,
    "list_size": 6,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, no_curves):
    """Preset and run folder with a trained model, and scored lists of every second training request."""
    torch.set_num_threads(1)
    made = write_run(tmp_path_factory.mktemp("log"))
    preset = Preset.load(made[0], ["training.steps=60", "training.validate_every=60"])
    prepare_training(preset, made[1], folder=made[1] / "model", device=Device()).run()
    write_rewards(write_lists(made, every=2))
    write_rewards(write_lists(made, part="validation"))
    return made


def preset_of(run, **settings):
    return Preset.load(run[0], [f"post_training.{k}={v}" for k, v in (SETTINGS | settings).items()])


def trainer(run, folder, *, device=None, fresh=False, **settings):
    preset = preset_of(run, **settings)
    return prepare_post_training(preset, run[1], folder=folder, device=device or Device(), fresh=fresh)


@pytest.fixture(scope="module")
def runs(run, tmp_path_factory):
    """A finished run of every objective, and of RSPO on lists alone."""
    made = {}
    for name in ("vsl", "rspo", "uvr", "dpo", "grpo", "alone"):
        settings = {"supervised": "false"} if name == "alone" else {"objective": name}
        made[name] = trainer(run, tmp_path_factory.mktemp(name), validation_lists="validation", **settings)
        made[name].record()
        made[name].run()
    return made


def value_of(model, batches):
    """Expected price of a candidate under the model's probabilities, normalised within each list."""
    total, count = 0.0, 0
    for batch in batches:
        batch = Device().put(batch)
        with torch.no_grad():
            logits, *_ = model(batch.slots, batch.profile, batch.lists.sids)
        log_p = sum(
            logits[t].log_softmax(-1).gather(-1, batch.lists.sids[..., t, None])[..., 0] for t in range(3)
        )
        log_p = log_p.masked_fill(batch.lists.flags == 0, -torch.inf)
        total += float((log_p.softmax(-1) * torch.tensor(price(batch.lists.sids.numpy()))).sum())
        count += len(log_p)
    return total / count


def test_every_objective_moves_probability_to_what_is_worth_more(run, runs):
    """On lists of validation requests; the control does not."""
    batches = list(runs["rspo"].source.validation())
    before = value_of(open_checkpoint(run[1] / "model").model.eval(), batches)
    after = {name: value_of(one.model.eval(), batches) for name, one in runs.items()}
    for name in ("rspo", "uvr", "dpo", "grpo", "alone"):
        assert after[name] > 1.05 * before, (name, before, after)
        assert after[name] > 1.05 * after["vsl"]


def test_parts_of_each_objective(runs):
    own = {
        "vsl": set(),
        "rspo": {"list", "gate", "drift"},
        "uvr": {"list", "gate", "drift", "disagreement"},
        "dpo": {"list", "drift"},
        "grpo": {"list", "clipped", "drift"},
        "alone": {"list", "gate", "drift"},
    }
    for name, parts in own.items():
        expected = {"total", "sid", "value", "mtp", *parts}
        assert {k[11:] for k in runs[name].history[-1] if k.startswith("validation_")} == expected
        first = runs[name].history[0]
        if parts:
            assert first["validation_drift"] == pytest.approx(0, abs=1e-5)  # the reference is the start
            assert runs[name].history[-1]["validation_drift"] != pytest.approx(0, abs=1e-4)
    assert runs["rspo"].history[0]["validation_gate"] == 1.0


def test_all_arms_see_the_same_requests(run, runs):
    """Only those with a list, in the same order; VSL continued is the control."""
    _, _, dataset = open_run(run)
    groups = dataset.groups("train", target_behaviors=("conversion",), min_history=3)
    expected = list(zip(groups.user_row[::2].tolist(), groups.now[::2].tolist(), strict=True))
    for one in runs.values():
        source = one.source
        assert list(zip(source.groups.user_row.tolist(), source.groups.now.tolist(), strict=True)) == expected
    batches = [next(runs[name].source.batches(5)) for name in ("vsl", "dpo")]
    for name in ("slots", "profile", "tokens", "value", "weight"):
        np.testing.assert_array_equal(*(getattr(batch, name) for batch in batches))
    assert isinstance(runs["vsl"].objective, Vsl)


def test_batches_hold_the_lists_of_their_requests(run):
    """Each list against the stored one of its user and time."""
    one = trainer(run, run[1] / "unused", list_size="null")
    groups, dataset = one.source.groups, one.source.dataset
    stored = write_lists(run, every=2)
    rows = np.array([3, 0, 17])
    batch = one.source._batch(groups, rows, epoch=1)
    for i, row in enumerate(rows):
        user, now = dataset.log.user_ids[groups.user_row[row]], groups.now[row]
        [place] = np.flatnonzero((stored.lists.user_id == user) & (stored.lists.now == now))
        expected = stored.get(place)
        n = len(expected.sids)
        assert batch.lists.sids[i, :n].tolist() == expected.sids.tolist()
        np.testing.assert_array_equal(batch.lists.log_p_ref[i, :n], expected.log_p_ref)
        np.testing.assert_array_equal(batch.lists.reward[i, :n], price(expected.sids))
        assert batch.lists.flags[i, n:].tolist() == [0] * (batch.lists.flags.shape[1] - n)


def test_long_lists_are_drawn_from(run):
    n = 30
    candidates = CandidateList(
        sids=np.arange(n)[:, None].repeat(3, 1).astype(np.int32),
        reward=np.arange(n, dtype=np.float32),
        flags=np.where(np.arange(n) % 10 == 9, CandidateFlag.LOGGED, CandidateFlag.OWN).astype(np.uint8),
        ads=np.arange(n),
        log_p_ref=-np.ones(n, np.float32),
    )
    assert some(candidates, None, seed=(0,)) is candidates
    assert some(candidates, n, seed=(0,)) is candidates
    seen = set()
    for epoch in range(40):
        got = some(candidates, 8, seed=(0, epoch))
        assert {9, 19, 29} <= set(got.ads.tolist())  # what was shown
        assert (np.diff(got.ads) > 0).all()
        assert len(got.ads) == 8
        np.testing.assert_array_equal(got.reward, got.ads)
        seen |= set(got.ads.tolist())
    assert seen == set(range(n))
    np.testing.assert_array_equal(some(candidates, 8, seed=(0, 3)).ads, some(candidates, 8, seed=(0, 3)).ads)


# Balance


def gradient_norms(one, batches):
    """|g| of the sums of both terms, one after the other."""
    norms = []
    for batch in batches:
        for which in (0, 1):
            one.model.zero_grad()
            one.objective.terms(one.model.eval(), Device().put(batch))[which].total.sum.backward()
            gradients = [p.grad for p in one.model.parameters() if p.grad is not None]
            norms.append(sum(float(g.double().square().sum()) for g in gradients) ** 0.5)
    return sum(norms[::2]), sum(norms[1::2])


@pytest.mark.parametrize("objective", ["rspo", "uvr", "dpo", "grpo"])
def test_lists_and_targets_pull_equally_at_the_start(run, tmp_path, objective, capsys):
    one = trainer(run, tmp_path, objective=objective, strength=2.0)
    first = [next(one.source.batches(step)) for step in range(2)]
    of_targets, of_lists = gradient_norms(one, first)
    assert one.start.balance == pytest.approx(of_targets / of_lists, rel=1e-5)
    assert one.objective.list_weight == 2.0 * one.start.balance
    assert f"= {one.start.balance:.4g} over 2 batches; lists weigh {2 * one.start.balance:.4g}" in (
        capsys.readouterr().out
    )


def test_the_total_is_both_terms_balanced(run, tmp_path):
    one = trainer(run, tmp_path, strength=0.5)
    batch = Device().put(next(one.source.batches(0)))
    targets, lists = one.objective.terms(one.model, batch)
    loss = one.objective(one.model, batch)
    expected = targets.total.sum.item() + 0.5 * one.start.balance * lists.total.sum.item()
    assert loss.total.sum.item() == pytest.approx(expected, rel=1e-5)
    assert loss.total.weight.item() == pytest.approx(float(batch.weight.sum()))
    alone = Balanced(one.objective.terms, 0.5, supervised=False)(one.model, batch)
    assert alone.total.sum.item() == pytest.approx(0.5 * lists.total.sum.item(), rel=1e-5)
    assert alone.total.weight.item() == lists.total.weight.item()


def test_lists_alone_are_not_balanced(run, tmp_path, capsys):
    settings = {"strength": 0.5, "validation_lists": "validation"}
    one = trainer(run, tmp_path, supervised="false", **settings)
    assert one.objective.list_weight == 0.5
    assert "over 2 batches; lists weigh 0.5\n" in capsys.readouterr().out
    assert one.start.balance == trainer(run, tmp_path, **settings).start.balance


def test_vsl_weighs_as_ever(run, tmp_path):
    """The VSL term of a joint objective is that of VSL alone, whatever else the pass scores."""
    one = trainer(run, tmp_path)
    batch = Device().put(next(one.source.batches(0)))
    joint = one.objective.terms(one.model, batch).targets
    alone = one.objective.terms.vsl(one.model, batch)
    torch.testing.assert_close(joint.total, alone.total, rtol=1e-5, atol=1e-5)


# Going on


def test_a_resumed_run_is_one_run(run, runs, tmp_path, capsys):
    """With the lambda of its start, though that of the weights it stands at is another."""
    half = trainer(run, tmp_path, validation_lists="validation")
    half.record()
    steps = iter(range(100))
    batches = half.source.batches

    def twelve(start):
        for batch in batches(start):
            if next(steps) == 12:
                raise RuntimeError("stop")
            yield batch

    half.source.batches = twelve
    with pytest.raises(RuntimeError, match="stop"):
        half.run()
    assert open_checkpoint(tmp_path).step == 12
    capsys.readouterr()
    again = trainer(run, tmp_path, validation_lists="validation")
    said = capsys.readouterr().out
    assert "resumed at step 12 of 24" in said
    assert "lambda" not in said  # it is not measured again
    assert again.start.balance == runs["rspo"].start.balance
    again.run()
    assert equal(again.model.state_dict(), runs["rspo"].model.state_dict())
    saved = open_checkpoint(tmp_path)
    assert saved.balance == again.start.balance
    assert equal(saved.model.state_dict(), again.model.state_dict())


def test_through_the_command(run, tmp_path, monkeypatch, capsys):
    """Into a folder of its objective; what is done stays; what has changed is told."""
    copy = tmp_path / "run"
    shutil.copytree(run[1], copy, ignore=shutil.ignore_patterns("post_trained"))

    def command(*words, **settings):
        chosen = SETTINGS | {"steps": 2, "validate_every": 2, "objective": "dpo"} | settings
        overrides = [w for k, v in chosen.items() for w in ("--set", f"post_training.{k}={v}")]
        arguments = ["--config", run[0], "--run", copy, *overrides, *words]
        monkeypatch.setattr(sys, "argv", ["post_train", *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    folder = copy / FOLDER / "dpo"
    said = command()
    assert "lambda = |g_VSL| / |g_RL| = " in said
    assert f"{folder}: validation loss of the SID " in said
    assert ", log p / p_ref " in said
    assert find_checkpoint(folder).name == "step-000002"
    assert command() == f"{folder}: up to date (step 2 of 2)\n"
    with pytest.raises(SystemExit, match=r"error: .*post_training.beta 0.5 -> 0.7; raise"):
        command(beta=0.7)
    assert "steps 2 -> 3, post_training.beta 0.5 -> 0.7" in command(beta=0.7, steps=3)
    with pytest.raises(SystemExit, match="with rspo, got one of post-training with dpo; give"):
        command("--out", folder, objective="rspo")
    write_rewards(write_lists((run[0], copy), every=2), reward="others")
    with pytest.raises(SystemExit, match="expected rewards of one reward model, got others, prices: name it"):
        command(steps=4)
    assert "post_training.reward None -> prices" in command(steps=4, reward="prices")
    with pytest.raises(SystemExit, match="rewards.nobody: expected rewards of 3 shards, got 0"):
        command(steps=5, reward="nobody")


def test_several_processes_are_one(run, tmp_path, monkeypatch):
    *_, dataset = open_run(run)  # here, with all that follows: Polars does not survive a fork
    loaded = SimpleNamespace(check_tokenizer=lambda _: None, dataset=lambda _: dataset)
    lists = ListsOfParts.open(run[1], preset_of(run, validation_lists="validation").post_training)
    real, places = StoredLists.rows_of, {}
    for stored, part in ((lists.train, "train"), (lists.validation, "validation")):
        groups = dataset.groups(part, target_behaviors=("conversion",), min_history=3)
        places[stored.folder] = real(stored, dataset, groups)
    monkeypatch.setattr(module.RunData, "load", lambda _: loaded)
    monkeypatch.setattr(module.ListsOfParts, "open", lambda *_: lists)
    monkeypatch.setattr(StoredLists, "rows_of", lambda self, *_: places[self.folder])

    short = {"validation_lists": "validation", "steps": 4, "validate_every": 4}

    def two(rank):
        with Device.join("cpu") as device:
            one = trainer(run, tmp_path / "two", device=device, **short)
            one.run()
            alone = trainer(run, tmp_path / "lists alone", device=device, supervised="false", **short)
            alone.run()
            return one.start.balance, weights_of(one.model), one.history[-1], weights_of(alone.model)

    results = in_processes(2, two)
    alone = trainer(run, tmp_path / "one", **short)
    start = weights_of(alone.model)
    alone.run()
    end = weights_of(alone.model)
    lists_alone = trainer(run, tmp_path / "one, lists alone", supervised="false", **short)
    lists_alone.run()
    for balance, weights, last, of_lists_alone in results:
        assert balance == alone.start.balance
        # Where a gradient is 0 but for rounding, AdamW takes a step of either sign.
        assert np.abs(weights - end).mean() < 0.01 * np.abs(end - start).mean()
        difference = np.abs(of_lists_alone - weights_of(lists_alone.model))
        assert difference.mean() < 0.01 * np.abs(weights_of(lists_alone.model) - start).mean()
        assert last["validation_list"] == pytest.approx(alone.history[-1]["validation_list"], rel=1e-4)
        assert last["train_total"] == pytest.approx(alone.history[-1]["train_total"], rel=1e-4)
        assert last["train_gate"] == pytest.approx(alone.history[-1]["train_gate"], abs=1e-3)


def weights_of(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


# What is refused


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_the_folder_of_a_pre_trained_model(run, tmp_path, fresh, other):
    """That of the run itself, by whatever path, or another one; not a checkpoint of it is lost."""
    folder = run[1] / "lists" / ".." / "model"
    if other:
        folder = shutil.copytree(run[1] / "model", tmp_path / "model")
    before = sorted(folder.rglob("*"))
    got = "that of a pre-trained model" if other else "the one that this run starts from"
    with pytest.raises(SpecError, match=f"checkpoints of this run alone, got {got}; give another --out"):
        trainer(run, folder, fresh=fresh)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("settings", "old", "message"),
    [
        ({}, False, "expected a run of post-training with rspo, got one of fine-tuning for FP8; give"),
        ({"objective": "dpo"}, False, "with rspo, got one of post-training with dpo; give another"),
        ({"objective": "dpo"}, True, "with rspo, got one of post-training with dpo; give another"),
        ({"objective": "rspo"}, True, r"the weights [0-9a-f]{8} of .*step-000060, got .* 00000000; "),
    ],
)
def test_a_folder_of_another_run(run, tmp_path, settings, old, message):
    """Of another recipe or objective, or begun from other weights: it stays, unless told to start over."""
    trained = find_checkpoint(run[1] / "model")
    source = "0" * 64 if old else weights_sha256(trained)
    save_checkpoint(tmp_path, replace(load_checkpoint(trained), settings=settings, source=source), keep=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(SpecError, match=message):
        trainer(run, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert trainer(run, tmp_path, fresh=True).step == 0


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_something_else_among_the_checkpoints(run, tmp_path, fresh):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch=3.ckpt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"checkpoints alone \(step-000400\), got epoch=3.ckpt"):
        trainer(run, tmp_path, fresh=fresh)
    assert (tmp_path / "checkpoints" / "epoch=3.ckpt").read_text() == "mine"


@pytest.mark.parametrize("supervised", ["true", "false"])
def test_lists_that_teach_nothing(run, tmp_path, supervised):
    write_rewards(write_lists(run, every=2, name="flat"), of=lambda s: np.full(len(s), 2, np.float32))
    with pytest.raises(ValueError, match=r"expected gradients above 0 of both, .* 0 \(lists\); lists"):
        trainer(run, tmp_path, lists="flat", supervised=supervised, validation_lists="validation")


def test_lists_of_other_weights(run, tmp_path):
    write_rewards(write_lists(run, every=2, name="others", weights="0" * 64))
    with pytest.raises(ListStoreError, match="expected lists of the weights .*, got those of 000"):
        trainer(run, tmp_path, lists="others")


def test_lists_that_are_not_there(run, tmp_path):
    with pytest.raises(ValueError, match="expected rewards of one reward model, got none: score these lists"):
        trainer(run, tmp_path, lists="none")
    with pytest.raises(ListStoreError, match=r"about.json: expected candidate lists, got no such file"):
        trainer(run, tmp_path, lists="none", objective="vsl")


def test_lists_of_other_requests(run, tmp_path):
    with pytest.raises(ValueError, match="validation: expected lists of train requests, got .* none of the"):
        trainer(run, tmp_path, lists="validation")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "vsl", "supervised": "false"}, "expected supervised: true with objective vsl"),
        ({"objective": "uvr", "supervised": "false"}, "expected supervised: true with objective uvr"),
        ({"supervised": "false"}, "expected validation_lists with supervised: false, got none"),
        ({"reward_top": 9}, "post_training.reward_top: .*less than or equal to 8, got 9"),
        ({"delta": ".inf"}, "post_training.delta: .*finite number, got inf"),
        ({"strength": 0}, "post_training.strength: .*greater than 0, got 0"),
    ],
)
def test_settings_that_cannot_be(run, settings, message):
    with pytest.raises(ConfigError, match=message):
        preset_of(run, **settings)
