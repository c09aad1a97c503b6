"""The training loop with a toy: interruption, numbers that are none, precision, what is written down."""

import csv
import math
import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import LEVEL_SIZES
from tests.toy_training import VSL, ToySource, start, toy_batch, toy_trainer
from training import plots
from training.loop.checkpoint import CheckpointError, NonFiniteError
from training.loop.device import Device, DeviceError
from training.loop.log import EVENTS, PARTS, PLOT, TABLE
from training.loop.meter import Meter
from training.loop.optimizer import learning_rate, make_optimizer
from training.loop.patience import is_exhausted
from training.loop.retention import open_checkpoint
from training.loop.trainer import _seed
from training.objectives.base import Loss, Part
from training.plots import plot_history
from training.preset.loop import LoopConfig


@pytest.fixture(autouse=True, scope="module")
def _quick(no_curves):
    torch.set_num_threads(1)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_time(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


# Optimiser


def test_learning_rate():
    config = LoopConfig(steps=110, warmup_steps=10, learning_rate=2.0)
    rates = [learning_rate(s, config) for s in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.01)  # half way between the peak and a hundredth of it
    assert rates[110] == pytest.approx(0.02)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert learning_rate(0, LoopConfig(steps=5, warmup_steps=0, learning_rate=2.0)) == 2.0


def test_matrices_decay_and_code_tables_do_not():
    model = start().model
    decayed, others = make_optimizer(model, LoopConfig(weight_decay=0.5)).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert {names[id(p)] for p in others["params"]} == {
        name for name, p in model.named_parameters() if p.ndim == 1 or name.startswith("codes.")
    }


# A run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts: its folder and its trainer."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    trainer = toy_trainer(folder, start(model={"dropout": 0.1}))
    trainer.run()
    return folder, trainer


def test_it_learns_and_writes_down_what_it_did(whole):
    folder, trainer = whole
    assert [r["step"] for r in trainer.history] == [10, 20, 30]
    first, last = trainer.history[0], trainer.history[-1]
    for part in ("train", "validation"):
        assert {k.partition("_")[2] for k in first if k.startswith(part)} == {"total", "sid", "value", "mtp"}
        assert last[f"{part}_total"] < first[f"{part}_total"]
        assert last[f"{part}_total"] == pytest.approx(
            last[f"{part}_sid"] + 0.2 * last[f"{part}_value"] + 0.3 * last[f"{part}_mtp"]
        )
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == ["step-000020", "step-000030"]


def test_recorded_means_are_those_of_the_batches(tmp_path):
    """Train figures are means over the targets of the steps since the last record, each before its update."""
    seen = []

    def spy(model, batch):
        loss = VSL(model, batch)
        if torch.is_grad_enabled():
            seen.append([float(x.detach()) for x in loss.total])
        return loss

    spy.names = VSL.names
    trainer = toy_trainer(tmp_path, objective=spy, steps=6, validate_every=3)
    trainer.run()
    assert len(seen) == 6
    for record, steps in zip(trainer.history, (seen[:3], seen[3:]), strict=True):
        total, weight = np.sum(steps, axis=0)
        assert record["train_total"] == pytest.approx(total / weight, rel=1e-12)


class StopAt(ToySource):
    """Asks the process to stop while it builds a batch."""

    def __init__(self, step, number=signal.SIGTERM):
        super().__init__({step: self._stop})
        self._number = number

    def _stop(self, batch):
        os.kill(os.getpid(), self._number)
        return batch


@pytest.mark.parametrize(("step", "number"), [(13, signal.SIGTERM), (18, signal.SIGINT), (3, signal.SIGTERM)])
def test_a_stop_saves_and_the_resumed_run_is_the_whole_run(whole, tmp_path, step, number):
    folder, _ = whole
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    first = toy_trainer(tmp_path, start(model={"dropout": 0.1}), source=StopAt(step, number))
    with pytest.raises(KeyboardInterrupt, match=r"stopped at step \d+ of 30; run again to go on there"):
        first.run()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert step < first.step <= step + 2  # no work is begun that is not needed, none is lost
    stood = open_checkpoint(tmp_path)
    assert stood.step == first.step
    assert stood.sums["total"][1] == 12 * (first.step % 10)  # 12 targets a step since the last record
    torch.manual_seed(12345)  # nothing may come from the state of the process
    source = ToySource()
    toy_trainer(tmp_path, stood, source=source).run()
    assert source.built[0] == first.step
    once, twice = open_checkpoint(folder), open_checkpoint(tmp_path)
    assert equal(once.model.state_dict(), twice.model.state_dict())
    for i, state in once.optimizer_state.items():
        assert equal(state, twice.optimizer_state[i])
    assert without_time(once.history) == without_time(twice.history)
    assert twice.seconds > stood.seconds > 0


def test_checkpoints_come_by_the_clock_too(whole, tmp_path, monkeypatch):
    """A step takes a minute here; 3 minutes after the last checkpoint there is one, validation or not."""
    now = [0.0]

    class Slow(ToySource):
        def batches(self, start):
            for batch in super().batches(start):
                now[0] += 60.0
                yield batch

    monkeypatch.setattr("training.loop.trainer.time.monotonic", lambda: now[0])
    saved = []
    trainer = toy_trainer(
        tmp_path, start(model={"dropout": 0.1}), source=Slow(), checkpoint_minutes=3, keep_checkpoints=99
    )
    save = trainer.save
    monkeypatch.setattr(trainer, "save", lambda: (saved.append(trainer.step), save()))
    trainer.run()
    # Seen one step late, so that the device is not waited for; every checkpoint starts the clock again.
    assert saved == [4, 8, 10, 14, 18, 20, 24, 28, 30]
    assert equal(trainer.model.state_dict(), whole[1].model.state_dict())
    assert without_time(trainer.history) == without_time(whole[1].history)


def judged(*losses):
    return [{"step": 10 * (i + 1), "validation_total": loss} for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "patience", "first", "exhausted"),
    [
        ([], 1, 0, False),
        ([3.0], 1, 0, False),
        ([3.0, 3.0], 1, 0, True),  # no lower is no better
        ([3.0, 2.0, 2.5], 2, 0, False),
        ([3.0, 2.0, 2.5, 2.4], 2, 0, True),
        ([3.0, 2.0, 2.5, 1.9], 2, 0, False),
        ([3.0, 2.0, 2.5, 2.4], None, 0, False),
        ([1.0, 2.0, 2.5, 2.4], 2, 2, False),  # the first two are of other requests
        ([1.0, 2.0], 1, 2, False),
    ],
)
def test_patience(losses, patience, first, exhausted):
    assert is_exhausted(judged(*losses), patience=patience, first=first) is exhausted


def test_a_run_that_gets_no_better_ends_and_keeps_its_best(tmp_path):
    class Contrary(ToySource):
        """The more the model learns, the less it knows of these validation requests."""

        def validation(self):
            other = [np.int64(size // 2) for size in LEVEL_SIZES]
            return [replace(b, tokens=(b.tokens + other) % LEVEL_SIZES) for b in super().validation()]

    options = {"steps": 200, "patience": 3, "keep_checkpoints": 1, "source": Contrary()}
    trainer = toy_trainer(tmp_path, **options)
    trainer.run()
    losses = [record["validation_total"] for record in trainer.history]
    best = int(np.argmin(losses))
    assert trainer.step == 10 * len(losses) < 200
    assert len(losses) - 1 - best == 3
    kept = {f"step-{10 * (best + 1):06d}", f"step-{trainer.step:06d}"}
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == kept
    again = toy_trainer(tmp_path, open_checkpoint(tmp_path), **options)
    again.run()  # no step more, and no complaint
    assert again.step == trainer.step
    patient = toy_trainer(tmp_path, open_checkpoint(tmp_path), **(options | {"patience": 4}))
    patient.run()
    assert patient.step > trainer.step


def test_patience_counts_validations_on_the_same_requests(tmp_path):
    """A longer log has other ones: losses before it say nothing."""
    toy_trainer(tmp_path, steps=20).run()
    found = open_checkpoint(tmp_path)
    spoiled = replace(found, history=judged(1.0, 1.1))  # as a loss that will not be had again
    assert toy_trainer(tmp_path, spoiled, patience=1).exhausted
    later = ToySource()
    later.held_out = "other toys"
    trainer = toy_trainer(tmp_path, spoiled, source=later, patience=1)
    assert not trainer.exhausted
    trainer.run()
    assert open_checkpoint(tmp_path).first_record == 2


def test_random_numbers_differ_by_step_and_process():
    seeds = {_seed(seed, step=step, rank=rank) for seed in (0, 1) for step in range(5) for rank in range(3)}
    assert len(seeds) == 30
    assert _seed(7, step=3, rank=1) == _seed(7, step=3, rank=1)


def test_resuming_without_the_optimizers_state_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="expected the optimizer's state of step 3, the checkpoint has"):
        toy_trainer(tmp_path, start(step=3))


# Numbers that are none


def spoiled(batch):
    batch.weight[0, 0] = np.nan
    return batch


def files(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("step", [20, 23, 29, 0])  # after a save, in between, the last one, the first one
def test_a_loss_that_is_no_number_ends_the_run_and_touches_no_checkpoint(tmp_path, step):
    if step:
        toy_trainer(tmp_path, steps=20).run()
    before = files(tmp_path)
    beginning = open_checkpoint(tmp_path) if step else None
    trainer = toy_trainer(tmp_path, beginning, source=ToySource({step: spoiled}))
    message = (
        rf"^step {step}: expected a finite loss and gradient, got loss nan and gradient norm nan; "
        rf"the toy batch {step}; not saved$"
    )
    with pytest.raises(NonFiniteError, match=message):
        trainer.run()
    assert trainer.step <= step + 2
    assert {p: c for p, c in files(tmp_path).items() if EVENTS not in p.parts} == {
        p: c for p, c in before.items() if EVENTS not in p.parts
    }


def test_a_gradient_that_is_infinite_ends_the_run(tmp_path):
    class Steep:
        """A finite loss whose gradient is not."""

        names = ()

        def __call__(self, model, batch):
            loss = VSL(model, batch)
            root = (loss.total.sum * 0).sqrt() if torch.is_grad_enabled() else 0
            return Loss(Part(loss.total.sum + root, loss.total.weight), {})

    with pytest.raises(
        NonFiniteError, match="step 0: expected a finite loss and gradient, got loss [0-9.]+ and"
    ):
        toy_trainer(tmp_path, objective=Steep()).run()
    assert not list(tmp_path.glob("checkpoints/*"))


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    trainer = toy_trainer(tmp_path, steps=20)
    trainer.run()
    before = files(tmp_path / "checkpoints")
    with torch.no_grad():
        trainer.model.bos[0, 0, 3] = math.inf
    trainer.step = 21
    with pytest.raises(
        NonFiniteError, match=r"step 21: expected finite weights, 1 of \d+ tensors are not, first bos"
    ):
        trainer.save()
    assert files(tmp_path / "checkpoints") == before


def test_a_validation_loss_that_is_no_number_ends_the_run(tmp_path):
    """Weights may be finite and yet so large that nothing comes out of them."""
    with pytest.raises(NonFiniteError, match="step 1: expected a finite validation loss, got {'total': "):
        toy_trainer(tmp_path, steps=1, learning_rate=1e30, warmup_steps=0).run()
    assert not list(tmp_path.glob("checkpoints/*"))


# Device and precision


def test_bf16_computes_in_bfloat16_and_keeps_weights_in_float32(tmp_path):
    kinds = set()

    def note(module, inputs, output):
        kinds.add(output.dtype)

    device = Device(precision="bf16")
    trainer = toy_trainer(tmp_path / "bf16", device=device, steps=10)
    handle = trainer.model.layers[-1].ffn[0].register_forward_hook(note)
    trainer.run()
    handle.remove()
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert {v.dtype for s in trainer.optimizer.state.values() for v in s.values()} == {torch.float32}
    plain = toy_trainer(tmp_path / "fp32", steps=10)
    plain.run()
    for name in ("train_total", "validation_total"):
        low, full = trainer.history[-1][name], plain.history[-1][name]
        assert low == pytest.approx(full, rel=0.02)
        assert low != full


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with Device.join("auto") as device:
        assert (device.device.type, device.rank, device.world) == ("cpu", 0, 1)
    with (
        pytest.raises(DeviceError, match="device: expected a GPU for process 0 of this host, found 0"),
        Device.join("cuda"),
    ):
        pass


def test_batches_go_to_the_device_whole():
    batch = toy_batch(0)
    put = Device().put(batch)
    assert put.lists is None
    for name in ("slots", "profile", "tokens", "value", "weight"):
        array, tensor = getattr(batch, name), getattr(put, name)
        assert tensor.device.type == "cpu"
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert str(tensor.dtype).removeprefix("torch.") == str(array.dtype)


# Any objective


class Squares:
    """Knows nothing of SIDs: two parts, of which one has no weight in a batch of odd size."""

    names = ("user", "slot")

    def __call__(self, model, batch):
        one = torch.ones((), dtype=torch.float32)
        user = (model.context.user**2).sum()
        return Loss(Part(user, one), {"user": Part(user, one), "slot": Part(0 * one, 0 * one)})


def test_history_works_over_the_names_of_any_objective(tmp_path):
    trainer = toy_trainer(tmp_path, objective=Squares(), steps=20)
    trainer.run()
    numbers = set(trainer.history[0]) - {"step", "seconds", "learning_rate"}
    assert numbers == {f"{part}_{name}" for part in ("train", "validation") for name in ("total", "user")}
    assert trainer.history[1]["validation_user"] < trainer.history[0]["validation_user"]


def test_curves_show_every_name(tmp_path, monkeypatch):
    """Of records of any objective, with a first one that has no train figures."""
    history = [{"step": 0, "validation_total": 2.0, "validation_user": 1.0}]
    history += [{"step": s, **{f"{p}_{n}": 1 / s for p in PARTS for n in ("total", "user")}} for s in (1, 2)]
    drawn, save = [], plots._save

    def note(figure, path):
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", note)
    plot_history(history, tmp_path / PLOT)
    [figure] = drawn
    assert [axis.get_title() for axis in figure.axes] == ["total", "user"]
    for axis in figure.axes:
        shown = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
        assert shown == {"train": [1, 2], "validation": [0, 1, 2]}
    assert (tmp_path / PLOT).read_bytes()[:4] == b"\x89PNG"


def test_meter_adds_weighted_sums():
    meter = Meter(Squares(), Device())

    def part(total, weight):
        return Part(torch.tensor(total), torch.tensor(weight))

    assert meter.means() == {}
    meter.add(Loss(part(2.0, 1.0), {"user": part(3.0, 2.0), "slot": part(0.0, 0.0)}))
    meter.add(Loss(part(4.0, 3.0), {"user": part(1.0, 0.0), "slot": part(0.0, 0.0)}))
    assert meter.sums() == {"total": [6.0, 4.0], "user": [4.0, 2.0], "slot": [0.0, 0.0]}
    assert meter.means() == {"total": 1.5, "user": 2.0}
    other = Meter(Squares(), Device())
    other.restore(meter.sums())
    assert other.sums() == meter.sums()


# What people look at


def test_without_tensorboard_numbers_are_a_table(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    trainer = toy_trainer(tmp_path, steps=20)
    trainer.record()  # of the untrained model: no train figures
    trainer.run()
    rows = list(csv.DictReader((tmp_path / TABLE).open()))
    assert [{k: float(v) for k, v in row.items() if v} for row in rows] == trainer.history
    assert rows[0]["train_total"] == ""
    assert not (tmp_path / EVENTS).exists()


def test_with_tensorboard_numbers_are_events(tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="event files need tensorboard (make tensorboard-setup)",
    )
    first = toy_trainer(tmp_path, source=StopAt(14))
    with pytest.raises(KeyboardInterrupt):
        first.run()
    trainer = toy_trainer(tmp_path, open_checkpoint(tmp_path))
    trainer.run()
    found = events.EventAccumulator(str(tmp_path / EVENTS))
    found.Reload()
    for name in ("total", "sid", "value", "mtp"):
        for part in ("train", "validation"):
            got = [(e.step, e.value) for e in found.Scalars(f"{name}/{part}")]
            expected = [(r["step"], r[f"{part}_{name}"]) for r in trainer.history]
            assert [step for step, _ in got] == [10, 20, 30]
            np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert not (tmp_path / TABLE).exists()
