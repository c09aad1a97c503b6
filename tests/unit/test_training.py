"""Objective, value buckets, schedule, batches, resume, processes: each against a plain version of itself."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import training.train as module
from serving.index.keys import unpack
from serving.model.features import build_slots
from tests.tiny_log import write_run
from training.batches import BatchOrder
from training.checkpoint import CheckpointError, load_checkpoint
from training.config import TrainingConfig
from training.data.prepare import load_prepared
from training.dataset import RequestDataset, ValueBuckets, load_sids
from training.objectives.vsl import vsl_loss
from training.run import open_run
from training.train import Trainer, learning_rate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Preset and run folder of the tiny log; tests write their models elsewhere."""
    torch.set_num_threads(1)
    return write_run(tmp_path_factory.mktemp("log"))


def trainer(run, folder, *overrides):
    dataset, spec, config, data = open_run(*run, overrides=overrides)
    return Trainer(dataset, spec, config, target_behaviors=data.target_behaviors, folder=folder)


def weights(folder):
    return load_file(folder / "checkpoint" / "model.safetensors")


# The objective


def test_vsl_loss_equals_the_double_loop_of_its_formula():
    random = np.random.default_rng(0)
    batch, n, sizes, buckets = 3, 4, (5, 6, 7), 3
    logits = [random.normal(size=(batch, n, v)) for v in (*sizes, buckets)]
    mtp = [random.normal(size=(batch, v)) for v in (*sizes, buckets)]
    tokens = np.stack([random.integers(0, v, (batch, n)) for v in sizes], axis=-1)
    value, weight = random.integers(0, buckets, (batch, n)), random.random((batch, n))
    weight[1, 2] = 0

    def log_p(x, i):
        return x[i] - math.log(sum(math.exp(v) for v in x))

    total = sid = bucket = skip = 0.0
    for b in range(batch):
        for i in range(n):
            w = weight[b, i]
            l_sid = -sum(log_p(logits[t][b, i], tokens[b, i, t]) for t in range(3))
            l_value = -log_p(logits[3][b, i], value[b, i])
            l_mtp = -sum(log_p(mtp[t][b], tokens[b, i, t]) for t in range(3))
            total += w * (l_sid + 0.2 * l_value + 0.7 * l_mtp)
            sid, bucket, skip = sid + w * l_sid, bucket + w * l_value, skip + w * l_mtp
    tensors = {"tokens": torch.tensor(tokens), "value": torch.tensor(value), "weight": torch.tensor(weight)}
    got = vsl_loss(
        [torch.tensor(x) for x in logits],
        [torch.tensor(x) for x in mtp],
        **tensors,
        lambda_value=0.2,
        lambda_mtp=0.7,
    )
    for actual, expected in (
        (got.total, total),
        (got.sid, sid),
        (got.value, bucket),
        (got.mtp, skip),
        (got.weight, weight.sum()),
    ):
        assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_padding_does_not_reach_the_gradient(run, tmp_path):
    """What stands in a target of weight 0 changes nothing."""
    one = trainer(run, tmp_path)
    batch = one.dataset.batch(
        one.groups, np.arange(8), config=one.config, buckets=one.spec.value_buckets, epoch=0
    )
    padded = np.flatnonzero(batch.weight[:, -1] == 0)
    assert len(padded)  # otherwise this test says nothing
    gradients = []
    for code in (0, 3):
        batch.tokens[padded, -1], batch.value[padded, -1] = code, code
        one.model.zero_grad()
        one._loss(one.model, batch).total.backward()
        gradients.append([p.grad.clone() for p in one.model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


# Value buckets, schedule


def test_value_buckets_are_equal_frequency_and_know_their_mean():
    values = np.random.default_rng(0).permutation(np.arange(1, 801)).astype(np.float32) ** 2
    buckets = ValueBuckets.fit(values, buckets=8)
    code = buckets.encode(values)
    assert len(buckets.means) == 8
    assert np.abs(np.bincount(code) - 100).max() <= 1
    for b in range(8):
        assert buckets.means[b] == pytest.approx(values[code == b].mean(), rel=1e-5)
    assert (np.diff(buckets.encode(np.sort(values))) >= 0).all()
    assert buckets.encode(np.array([-1.0, 1e9])).tolist() == [0, 7]


@pytest.mark.parametrize("values", [[2.0] * 50, [1.0] * 40 + [3.0] * 10, [0.0, 1.0], [5.0]])
def test_ties_leave_fewer_buckets_and_none_is_empty(values):
    values = np.array(values, np.float32)
    buckets = ValueBuckets.fit(values, buckets=8)
    counts = np.bincount(buckets.encode(values), minlength=len(buckets.means))
    assert len(buckets.means) <= len(np.unique(values))
    assert (counts > 0).all()
    assert (buckets.means * counts).sum() == pytest.approx(values.sum())


def test_no_values_is_an_error():
    with pytest.raises(ValueError, match="expected at least one training target with a value, got none"):
        ValueBuckets.fit(np.zeros(0, np.float32), buckets=4)


def test_learning_rate():
    config = TrainingConfig(steps=110, warmup_steps=10, learning_rate=2.0)
    rates = [learning_rate(s, config) for s in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.01)  # half way between the peak and a hundredth of it
    assert rates[110] == pytest.approx(0.02)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert learning_rate(0, TrainingConfig(steps=5, warmup_steps=0, learning_rate=2.0)) == 2.0


# Samples


def test_context_holds_exactly_what_was_before(run):
    """No leakage: every context equals one built from the raw table filtered to times before the request."""
    dataset, _, config, data = open_run(*run)
    events = pl.read_parquet(run[1] / "data" / "events.parquet")
    sids = {r[0]: r[1:] for r in load_sids(run[1] / "tokenizer").rows()}
    codes = {"impression": 1, "click": 2, "conversion": 3}
    ends = {"train": 0, "validation": 0, "test": 0}
    for part in ends:
        groups = dataset.groups(part, target_behaviors=data.target_behaviors, min_history=config.min_history)
        rows = np.arange(0, len(groups), 7)
        slots, profile = dataset.context(groups, rows)
        for i, row in enumerate(rows):
            user, now = int(dataset.log.user_ids[groups.user_row[row]]), int(groups.now[row])
            past = events.filter((pl.col("user_id") == user) & (pl.col("timestamp") < now)).sort(
                "timestamp", "ad_id"
            )
            expected = build_slots(
                dataset.spec,
                past["ad_id"].to_numpy(),
                sids=np.array([sids[a] for a in past["ad_id"]]),
                behaviors=np.array([codes[b] for b in past["behavior"]]),
                timestamps=past["timestamp"].to_numpy(),
                now=now,
            )
            np.testing.assert_array_equal(slots[i], expected.slots)
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
    dataset, spec, config, data = open_run(
        *run,
        overrides=(
            "training.behavior_weights={conversion: 2.5}",
            "data.target_behaviors=[conversion, impression]",
        ),
    )
    groups = dataset.groups("train", target_behaviors=data.target_behaviors, min_history=3)
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


def test_drawn_targets_depend_on_epoch_and_request_only(run):
    dataset, spec, config, data = open_run(*run, overrides=("training.targets_per_request=1",))
    groups = dataset.groups("train", target_behaviors=data.target_behaviors, min_history=3)

    def tokens(rows, epoch):
        return dataset.batch(
            groups, np.array(rows), config=config, buckets=spec.value_buckets, epoch=epoch
        ).tokens[:, 0]

    rows = list(range(30))
    np.testing.assert_array_equal(tokens(rows, 0)[5:9], tokens([5, 6, 7, 8], 0))
    assert (tokens(rows, 0) != tokens(rows, 1)).any()


def test_every_request_once_an_epoch_and_similar_sizes_together():
    sizes = np.random.default_rng(0).integers(1, 9, 400)
    order = BatchOrder(sizes, batch_size=4, seed=0)
    first = [order(i) for i in range(100)]
    assert {e for e, _ in first} == {0}
    assert sorted(np.concatenate([r for _, r in first]).tolist()) == list(range(400))
    padding = sum(len(r) * sizes[r].max() - sizes[r].sum() for _, r in first)
    assert padding < 0.05 * sizes.sum()  # a random order pads by about a half
    again = BatchOrder(sizes, batch_size=4, seed=0)
    np.testing.assert_array_equal(again(57)[1], first[57][1])  # a pure function of the step
    assert (
        np.concatenate([order(100 + i)[1] for i in range(100)]) != np.concatenate([r for _, r in first])
    ).any()


def test_fewer_requests_than_a_batch():
    epoch, rows = BatchOrder(np.ones(3, int), batch_size=4, seed=0)(7)
    assert (epoch, sorted(rows.tolist())) == (7, [0, 1, 2])


def test_recent_weeks_cut_targets_not_histories(run):
    dataset, *_ = open_run(*run)
    every = dataset.groups("train", target_behaviors=("conversion",), min_history=1)
    recent = dataset.groups("train", target_behaviors=("conversion",), min_history=1, recent_weeks=1)
    week = dataset.split.train_end - 7 * 86400
    assert recent.now.tolist() == every.now[every.now >= week].tolist()
    assert 0 < len(recent) < len(every)
    assert (recent.begin == every.begin[every.now >= week]).all()


def test_targets_are_counted(run):
    dataset, *_ = open_run(*run)
    groups = dataset.groups("train", target_behaviors=("conversion",), min_history=1)
    counted = [len(dataset.targets(groups, row)) for row in range(len(groups))]
    assert dataset.target_counts(groups).tolist() == counted


def test_seen_sids_are_those_of_the_training_weeks(run, trained):
    dataset, spec, _, _ = open_run(*run)
    saved = load_checkpoint(trained / "checkpoint").seen_sids
    np.testing.assert_array_equal(saved, dataset.seen_sids(spec.level_sizes))
    early = int(np.quantile(dataset.log.timestamp, 0.02))  # the whole tiny catalogue is in the training weeks
    dataset.split = dataset.split.model_copy(update={"train_end": early})
    sids = dict(zip(dataset.ad_ids.tolist(), dataset.ad_sids.tolist(), strict=True))
    log = dataset.log
    events = list(zip(log.ad_ids.tolist(), log.timestamp.tolist(), strict=True))
    seen = {tuple(sids[ad]) for ad, at in events if at < dataset.split.train_end}
    found = dataset.seen_sids(spec.level_sizes)
    assert {tuple(s) for s in unpack(found, spec.level_sizes).tolist()} == seen
    assert (np.diff(found) > 0).all()
    assert seen != {tuple(sids[ad]) for ad, _ in events}


def test_event_of_an_ad_without_sid(run):
    dataset, spec, *_ = open_run(*run)
    sids = load_sids(run[1] / "tokenizer")
    gone = int(dataset.log.ad_ids[0])
    prepared = load_prepared(run[1] / "data")
    with pytest.raises(ValueError, match=f"expected a SID for every ad of the events; .* first ad_id {gone}"):
        RequestDataset(prepared, sids.filter(pl.col("ad_id") != gone), spec=spec.features)


# Runs


def test_loss_falls(run, tmp_path):
    one = trainer(run, tmp_path)
    last = one.run()
    uniform = sum(math.log(v) for v in one.spec.level_sizes)
    assert last["train_sid"] < uniform - 1
    assert last["validation_sid"] < uniform - 0.8
    assert last["train_sid"] < one.history[0]["train_sid"]
    assert [r["step"] for r in one.history] == [20, 40]
    assert (tmp_path / "training.png").read_bytes()[:4] == b"\x89PNG"


def test_stop_and_resume_is_one_run(run, tmp_path):
    trainer(run, tmp_path / "once").run()
    first = trainer(run, tmp_path / "twice")
    step, first_step = first._train_step, []

    def stop_after_27(*arguments):
        first_step.append(1)
        if len(first_step) == 27:
            first._request_stop()
        return step(*arguments)

    first._train_step = stop_after_27
    with pytest.raises(KeyboardInterrupt, match="stopped at step 27; run again to resume"):
        first.run()
    torch.manual_seed(12345)  # nothing may come from the state of the process
    second = trainer(run, tmp_path / "twice")
    assert second.resume()
    assert second.step == 20
    second.run()
    once, twice = weights(tmp_path / "once"), weights(tmp_path / "twice")
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[k], twice[k]) for k in once)
    a, b = (load_checkpoint(tmp_path / n / "checkpoint") for n in ("once", "twice"))
    for i, state in a.optimizer_state.items():
        assert all(torch.equal(state[k], b.optimizer_state[i][k]) for k in state)
    strip = [[{k: v for k, v in r.items() if k != "seconds"} for r in c.history] for c in (a, b)]
    assert strip[0] == strip[1]


def test_two_processes_equal_one(run, tmp_path):
    overrides = ["--set", "training.steps=6", "--set", "training.validate_every=3"]
    arguments = ["-m", "--", "training.train", "--config", str(run[0]), "--run", str(run[1])]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node=2",
            "--standalone",
            *arguments,
            "--out",
            str(tmp_path / "two"),
            *overrides,
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    trainer(run, tmp_path / "one", "training.steps=6", "training.validate_every=3").run()
    one, two = (load_checkpoint(tmp_path / n / "checkpoint") for n in ("one", "two"))
    expected, got = one.model.state_dict(), two.model.state_dict()
    width = one.model.config.width
    for name in expected:
        # A bias of keys moves all attention scores alike: its gradient is noise, which Adam makes large.
        if name.endswith("qkv_self.bias"):
            expected[name][width : 2 * width] = got[name][width : 2 * width] = 0
        elif name.endswith("key.bias"):
            continue
        torch.testing.assert_close(
            got[name], expected[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
    for a, b in zip(one.history, two.history, strict=True):
        for key in a.keys() - {"seconds"}:
            assert a[key] == pytest.approx(b[key], abs=1e-5)


def test_fewer_requests_than_processes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 4)
    with pytest.raises(
        ValueError, match="at least one request of a batch for each of 4 processes, got batches of 2"
    ):
        trainer(run, tmp_path, "training.batch_size=2")


def test_no_request_is_an_error(run, tmp_path):
    with pytest.raises(ValueError, match="expected at least one training request with 9999 earlier events"):
        trainer(run, tmp_path, "training.min_history=9999")


# Checkpoints


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    trainer(run, folder, "training.steps=2", "training.validate_every=2").run()
    return folder


@pytest.fixture
def broken(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "model")


def test_nothing_is_pickled(trained):
    assert {p.name for p in (trained / "checkpoint").iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "checkpoint.json",
        "seen_sids.npy",
    }
    np.load(trained / "checkpoint" / "seen_sids.npy", allow_pickle=False)
    for path in (trained / "checkpoint").glob("*.safetensors"):
        data = path.read_bytes()
        assert json.loads(
            data[8 : 8 + int.from_bytes(data[:8], "little")]
        )  # length, JSON header, raw numbers


def test_finished_run_resumes_to_its_end(run, trained):
    again = trainer(run, trained, "training.steps=2", "training.validate_every=2")
    assert again.resume()
    assert again.step == 2
    assert not trainer(run, trained / "elsewhere").resume()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate=0.5", "made with training.learning_rate = 0.01, expected 0.5"),
        ("model.width=32", "made with spec.model = .*expected .*'width': 32"),
        ("features.max_history=31", "made with spec.features = "),
    ],
)
def test_checkpoint_of_another_configuration(run, trained, override, message):
    with pytest.raises(CheckpointError, match=message):
        trainer(run, trained, "training.steps=2", "training.validate_every=2", override).resume()


def edit(folder, **changes):
    path = folder / "checkpoint" / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: edit(f, format=2), "expected format <= 1, got 2"),
        (lambda f: edit(f, format="new"), "not a readable checkpoint"),
        (lambda f: edit(f, spec=[]), "not a readable checkpoint"),
        (lambda f: (f / "checkpoint" / "checkpoint.json").write_text("[]"), "not a readable checkpoint"),
        (
            lambda f: (f / "checkpoint" / "checkpoint.json").unlink(),
            "not a readable checkpoint: .*No such file",
        ),
        (
            lambda f: (f / "checkpoint" / "model.safetensors").write_bytes(b"\x80\x04."),
            "not a readable checkpoint",
        ),
        (lambda f: (f / "checkpoint" / "model.safetensors").unlink(), "not a readable checkpoint"),
        (
            lambda f: (f / "checkpoint" / "seen_sids.npy").write_bytes(b"\x80\x04."),
            "not a readable checkpoint",
        ),
        (
            lambda f: shutil.copy(
                f / "checkpoint" / "optimizer.safetensors", f / "checkpoint" / "model.safetensors"
            ),
            "not a readable checkpoint: .*Missing key",
        ),
    ],
)
def test_broken_checkpoints(broken, harm, message):
    harm(broken)
    with pytest.raises(CheckpointError, match=f"(?s)checkpoint: {message}"):
        load_checkpoint(broken / "checkpoint")


def test_resume_without_optimizer_state_is_refused(run, broken):
    (broken / "checkpoint" / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="expected optimizer.safetensors at step 2, found none"):
        trainer(run, broken, "training.steps=2", "training.validate_every=2").resume()


def test_killed_between_the_renames_of_a_save(run, broken):
    (broken / "checkpoint").rename(broken / ".checkpoint.old")
    (broken / ".checkpoint.new").mkdir()
    again = trainer(run, broken, "training.steps=2", "training.validate_every=2")
    assert again.resume()
    assert again.step == 2
    again.save()
    assert {p.name for p in broken.iterdir()} == {"checkpoint", "training.png"}
