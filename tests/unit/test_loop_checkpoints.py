"""Checkpoints: what one holds, what makes it unreadable, which ones are kept, and how they are found."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import training.loop.retention as module
from serving.files import new_folder
from tests.toy_training import start, toy_trainer
from training.loop.checkpoint import CheckpointError, NonFiniteError, load_checkpoint, weights_sha256
from training.loop.retention import find_checkpoint, has_checkpoint, open_checkpoint, save_checkpoint


def at(step, loss=None, **changes):
    """A checkpoint of a step, validated there with `loss` if it is given."""
    history = [{"step": step, "validation_total": loss}] if loss is not None else [{"step": 0}]
    return start(step=step, history=history, settings={"steps": 9}, **changes)


def names(folder):
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


# What one holds


@pytest.fixture(scope="module")
def trained(tmp_path_factory, no_curves):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    beginning = start(seen_sids=np.array([3, 8, 9]), settings={"steps": 2}, source="abc")
    toy_trainer(folder, beginning, steps=2, validate_every=1).run()
    return folder


def test_a_checkpoint_comes_back_as_it_was(trained, tmp_path):
    found = open_checkpoint(trained)
    again = load_checkpoint(save_checkpoint(tmp_path, found, keep=1))
    for part in ("spec", "settings", "step", "seconds", "history", "sums", "held_out", "source"):
        a, b = getattr(found, part), getattr(again, part)
        assert (a.to_json(), True) == (b.to_json(), True) if part == "spec" else a == b
    assert (found.step, found.settings, found.source, found.held_out) == (2, {"steps": 2}, "abc", "toys")
    assert len(found.history) == 2
    np.testing.assert_array_equal(found.seen_sids, [3, 8, 9])
    np.testing.assert_array_equal(again.seen_sids, [3, 8, 9])
    a, b = found.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert found.optimizer_state.keys() == again.optimizer_state.keys()
    for i, state in found.optimizer_state.items():
        assert all(torch.equal(state[k], again.optimizer_state[i][k]) for k in state)


def test_nothing_is_pickled(trained):
    folder = find_checkpoint(trained)
    assert {p.name for p in folder.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "checkpoint.json",
        "seen_sids.npy",
    }
    np.load(folder / "seen_sids.npy", allow_pickle=False)
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        # length, JSON header, raw numbers
        assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def edit(folder, **changes):
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: edit(f, format=3), "expected format 2, got 3"),
        (lambda f: edit(f, format="new"), "expected format 2, got new"),
        (lambda f: edit(f, spec=[]), "not a readable checkpoint"),
        (lambda f: (f / "checkpoint.json").write_text("[]"), "not a readable checkpoint"),
        (lambda f: (f / "checkpoint.json").unlink(), "not a readable checkpoint: .*No such file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04."), "not a readable checkpoint"),
        (lambda f: (f / "model.safetensors").unlink(), "not a readable checkpoint"),
        (lambda f: (f / "seen_sids.npy").write_bytes(b"\x80\x04."), "not a readable checkpoint"),
        (
            lambda f: shutil.copy(f / "optimizer.safetensors", f / "model.safetensors"),
            "not a readable checkpoint: .*Missing key",
        ),
    ],
)
def test_broken_checkpoints(trained, tmp_path, harm, message):
    folder = shutil.copytree(find_checkpoint(trained), tmp_path / "step-000002")
    harm(folder)
    with pytest.raises(CheckpointError, match=f"(?s)step-000002: {message}"):
        load_checkpoint(folder)


def test_weights_tell_whose_they_are(tmp_path):
    same = [weights_sha256(save_checkpoint(tmp_path / n, at(1), keep=1)) for n in ("a", "b")]
    other = at(1)
    with torch.no_grad():
        other.model.bos.add_(1)
    assert same[0] == same[1] != weights_sha256(save_checkpoint(tmp_path / "c", other, keep=1))


# Which ones are kept


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    losses = {1: 5.0, 2: 3.0, 3: 4.0, 4: 4.5, 5: 4.1}
    kept = []
    for step, loss in losses.items():
        save_checkpoint(tmp_path, at(step, loss), keep=2)
        kept.append(names(tmp_path))
    assert kept[1:] == [
        ["step-000001", "step-000002"],
        ["step-000002", "step-000003"],
        ["step-000002", "step-000003", "step-000004"],
        ["step-000002", "step-000004", "step-000005"],
    ]
    assert find_checkpoint(tmp_path, "best").name == "step-000002"
    assert find_checkpoint(tmp_path).name == "step-000005"
    save_checkpoint(tmp_path, at(6, 2.5), keep=2)  # a new best
    assert names(tmp_path) == ["step-000005", "step-000006"]
    assert open_checkpoint(tmp_path, "best").step == 6


def test_a_stop_between_two_validations_is_not_the_best(tmp_path):
    """Its history ends with figures of earlier weights."""
    save_checkpoint(tmp_path, at(10, 3.0), keep=3)
    stopped = start(step=13, history=[{"step": 10, "validation_total": 3.0}], settings={})
    save_checkpoint(tmp_path, stopped, keep=3)
    assert find_checkpoint(tmp_path, "best").name == "step-000010"
    assert find_checkpoint(tmp_path, "latest").name == "step-000013"


def test_losses_on_other_validation_requests_are_not_compared(tmp_path):
    """A newer log has other validation weeks: what was best on the old ones may be worst on these."""
    for step, loss, weeks in ((1, 2.0, "old"), (2, 9.0, "new"), (3, 8.0, "new"), (4, 8.5, "new")):
        save_checkpoint(tmp_path, at(step, loss, held_out=weeks), keep=2)
    assert names(tmp_path) == ["step-000003", "step-000004"]
    assert find_checkpoint(tmp_path, "best").name == "step-000003"


def test_steps_are_numbers_not_names(tmp_path):
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, at(step), keep=2)
    (tmp_path / "checkpoints" / "step-9999999-notes").mkdir()
    assert find_checkpoint(tmp_path).name == "step-1000000"
    assert find_checkpoint(tmp_path, "step-999999").name == "step-999999"


@pytest.mark.parametrize("which", ["latest", "best", "step-000007"])
def test_a_checkpoint_that_is_not_there(tmp_path, which):
    with pytest.raises(CheckpointError, match=rf"checkpoints: expected a checkpoint \({which}\), found none"):
        find_checkpoint(tmp_path, which)
    assert not has_checkpoint(tmp_path)
    save_checkpoint(tmp_path, at(3), keep=1)
    assert has_checkpoint(tmp_path)
    if which != "latest":
        with pytest.raises(CheckpointError, match=rf"\({which}\), found step-000003$"):
            find_checkpoint(tmp_path, which)


def test_an_unreadable_one_does_not_stop_the_others(tmp_path):
    save_checkpoint(tmp_path, at(1, 3.0), keep=3)
    (tmp_path / "checkpoints" / "step-000001" / "checkpoint.json").write_text("{")
    save_checkpoint(tmp_path, at(2, 4.0), keep=3)
    assert find_checkpoint(tmp_path, "best").name == "step-000002"


# Interruptions


def crash(*_, **__):
    raise OSError("the disk is full")


def test_a_save_that_fails_leaves_everything(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, at(1, 3.0), keep=1)
    monkeypatch.setattr("training.loop.checkpoint.json", SimpleNamespace(dumps=crash, loads=json.loads))
    with pytest.raises(OSError, match="disk is full"):
        save_checkpoint(tmp_path, at(2, 2.0), keep=1)
    assert names(tmp_path) == ["step-000001"]
    assert open_checkpoint(tmp_path).step == 1


def test_killed_while_it_drops_the_old_ones(tmp_path, monkeypatch):
    """Half of a folder is never taken for a checkpoint, and the next save clears it away."""
    for step in (1, 2):
        save_checkpoint(tmp_path, at(step), keep=2)
    removed = []
    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", lambda path, **_: removed.append(path.name))
        save_checkpoint(tmp_path, at(3), keep=1)
    gone = [".step-000001.gone", ".step-000002.gone"]
    assert {*gone} <= {*removed}
    assert names(tmp_path) == [*gone, "step-000003"]
    (tmp_path / "checkpoints" / gone[0] / "model.safetensors").unlink()
    (tmp_path / "checkpoints" / ".step-000009.new").mkdir()  # killed while it wrote
    assert find_checkpoint(tmp_path).name == "step-000003"
    save_checkpoint(tmp_path, at(4), keep=1)
    assert names(tmp_path) == ["step-000004"]


def test_a_fresh_run_replaces_older_checkpoints_when_its_first_is_there(tmp_path, monkeypatch):
    for step in (40, 50):
        save_checkpoint(tmp_path, at(step, 1.0), keep=2)
    with monkeypatch.context() as patched:
        patched.setattr("training.loop.checkpoint.json", SimpleNamespace(dumps=crash, loads=json.loads))
        with pytest.raises(OSError, match="disk is full"):
            save_checkpoint(tmp_path, at(10, 9.0), keep=2, fresh=True)
    assert names(tmp_path) == ["step-000040", "step-000050"]
    save_checkpoint(tmp_path, at(10, 9.0), keep=2, fresh=True)
    assert names(tmp_path) == ["step-000010"]  # though it is neither the highest step nor the best


def test_killed_between_the_renames_of_a_fresh_run(tmp_path):
    save_checkpoint(tmp_path, at(40), keep=2)
    (tmp_path / "checkpoints").rename(tmp_path / ".checkpoints.old")
    with new_folder(tmp_path / "unrelated"):
        pass
    (tmp_path / ".checkpoints.new").mkdir()
    assert open_checkpoint(tmp_path).step == 40


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    bad = at(2, 1.0)
    with torch.no_grad():
        bad.model.norm.weight[0] = torch.nan
    save_checkpoint(tmp_path, at(1, 3.0), keep=1)
    with pytest.raises(
        NonFiniteError, match="step 2: expected finite weights, 1 of .* first norm.weight; not"
    ):
        save_checkpoint(tmp_path, bad, keep=1)
    assert names(tmp_path) == ["step-000001"]
