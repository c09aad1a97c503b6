"""The training loop in two processes: what one of them meets, all of them do."""

import numpy as np
import pytest
import torch

from tests.processes import in_processes
from tests.toy_training import ToySource, start, toy_trainer
from tests.unit.test_loop_trainer import StopAt, spoiled
from training.loop.checkpoint import NonFiniteError
from training.loop.device import Device
from training.loop.retention import open_checkpoint


def ends(trainer):
    """How a run ends: step, and what was said."""
    try:
        trainer.run()
    except (KeyboardInterrupt, NonFiniteError) as error:
        return trainer.step, str(error)
    return trainer.step, "done"


def weights_of(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).numpy()


class Half(ToySource):
    """Validation requests in the first process only."""

    def __init__(self, rank, **options):
        super().__init__(**options)
        self._rank = rank

    def validation(self):
        return super().validation() if self._rank == 0 else []


@pytest.fixture(scope="module")
def two(tmp_path_factory, no_curves):
    """One group of two processes goes through three runs; for each process what it saw."""
    folder = tmp_path_factory.mktemp("two")
    return folder, in_processes(2, lambda rank: three_runs(folder, rank))


def three_runs(folder, rank):
    with Device.join("cpu") as device:
        assert (device.rank, device.world) == (rank, 2)
        whole = toy_trainer(folder / "whole", source=Half(rank), device=device)
        end = ends(whole)
        source = StopAt(13) if rank == 1 else ToySource()
        stopped = toy_trainer(folder / "stopped", source=source, device=device)
        stop = ends(stopped)
        device.add_up(torch.zeros(1))  # the first process has saved
        again = toy_trainer(folder / "stopped", open_checkpoint(folder / "stopped"), device=device)
        resumed = ends(again)
        source = ToySource({17: spoiled} if rank == 1 else {})
        bad = ends(toy_trainer(folder / "bad", source=source, device=device))
        return {
            "ends": (end, stop, resumed, bad),
            "history": whole.history,
            "weights": [weights_of(t) for t in (whole, again)],
        }


def test_a_stop_of_one_is_a_stop_of_all_at_the_same_step(two):
    folder, seen = two
    (step, said), other = (found["ends"][1] for found in seen)
    assert (step, said) == other
    assert 13 < step <= 15
    assert said.startswith(f"stopped at step {step} of 30")
    assert [found["ends"][2] for found in seen] == [(30, "done")] * 2
    assert open_checkpoint(folder / "stopped").step == 30
    # Going on gives the weights of the run that was not stopped; the batches of both are the same.
    for found in seen:
        np.testing.assert_array_equal(*found["weights"])


def test_numbers_that_are_none_in_one_end_all(two):
    folder, seen = two
    for found in seen:
        step, said = found["ends"][3]
        assert said.startswith("step 17: expected a finite loss and gradient, got loss nan")
        assert step <= 19
    assert open_checkpoint(folder / "bad").step == 10


def test_a_process_without_validation_requests_knows_the_figures(two):
    _, seen = two
    assert [found["ends"][0] for found in seen] == [(30, "done")] * 2
    mine, other = (found["history"] for found in seen)
    assert [r["step"] for r in mine] == [10, 20, 30]
    for a, b in zip(mine, other, strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}


def test_processes_that_see_the_same_are_as_one(two, tmp_path):
    """Toy batches are the same in every process, so the mean over both is the mean of one."""
    _, seen = two
    torch.set_num_threads(1)
    alone = toy_trainer(tmp_path, start())
    alone.run()
    np.testing.assert_allclose(seen[0]["weights"][0], weights_of(alone), atol=2e-4)
    assert seen[0]["history"][-1]["train_total"] == pytest.approx(alone.history[-1]["train_total"], rel=1e-4)
