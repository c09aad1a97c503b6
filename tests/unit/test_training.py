"""Objective, value buckets, schedule, batches, resume, processes: each against a plain version of itself."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import training.train as module
from safetensors.torch import load_file
from training.checkpoint import CheckpointError, load_checkpoint
from training.train import Trainer, learning_rate

from tests.tiny_log import write_run
from training.loop.config import TrainingConfig
from training.objectives.vsl import vsl_loss
from training.preset import Preset
from training.run import open_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Preset and run folder of the tiny log; tests write their models elsewhere."""
    torch.set_num_threads(1)
    return write_run(tmp_path_factory.mktemp("log"))


def trainer(run, folder, *overrides):
    dataset, spec, config, data = open_run(Preset.load(run[0], overrides), run[1])
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


def test_learning_rate():
    config = TrainingConfig(steps=110, warmup_steps=10, learning_rate=2.0)
    rates = [learning_rate(s, config) for s in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.01)  # half way between the peak and a hundredth of it
    assert rates[110] == pytest.approx(0.02)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert learning_rate(0, TrainingConfig(steps=5, warmup_steps=0, learning_rate=2.0)) == 2.0


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
