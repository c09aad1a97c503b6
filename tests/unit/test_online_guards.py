"""What guards do not let into a checkpoint, and where a run that they stopped goes on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.online_run import learnt, run, trained
from training.loop.checkpoint import NonFiniteError
from training.loop.retention import find_checkpoint, open_checkpoint
from training.online.guards import GuardError

__all__ = ["run", "trained"]


def stopped_by(run, learner, error, match):
    """A guard ends the run, and what was saved before stays as it was."""
    before = find_checkpoint(run.run / "online")
    content = {path: path.read_bytes() for path in before.iterdir()}
    with pytest.raises(error, match=match):
        learnt(learner)
    assert find_checkpoint(run.run / "online") == before
    assert {path: path.read_bytes() for path in before.iterdir()} == content


@pytest.fixture
def begun(run):
    """With two steps saved, and samples for more."""
    run.serve(8)
    learnt(run.learner())
    run.serve(24, seed=1)
    return run


def test_weights_that_are_no_numbers(begun):
    learner = begun.learner()
    next(learner.model.parameters()).data[0] = math.nan
    learner._guards.begin = lambda *_: None
    stopped_by(begun, learner, GuardError, "step 2: expected a finite loss and gradient, got loss nan")


def test_weights_that_are_no_numbers_where_no_loss_sees_them(begun):
    """A row of a code that nobody asked for."""
    learner = begun.learner(probe_requests=1)
    real = learner._guards.check

    def spoil(model, state, *, unseen):
        found = real(model, state, unseen=unseen)
        next(model.parameters()).data[0] = math.inf
        return found

    learner._guards.check = spoil
    stopped_by(begun, learner, NonFiniteError, "expected finite weights")


def test_a_loss_that_runs_away(begun):
    learner = begun.learner(learning_rate=3.0, clip_norm=100.0)
    stopped_by(begun, learner, GuardError, r"online.max_loss_rise: .* at most 1.2 x its moving average")


def test_everybody_is_given_the_same(begun):
    learner = begun.learner()
    with torch.no_grad():
        learner.model.norm.bias[0] = 50.0  # whatever the context says
        learner.model.codes.tables[0].weight[2, 0] = 50.0
    learner._config = learner._config.model_copy(update={"learning_rate": 1e-9})
    learner._guards._config = learner._config.model_copy(update={"max_loss_rise": 1e6})
    stopped_by(begun, learner, GuardError, r"online.min_entropy: .* 0.5 x .*: everybody is given the same")


def test_the_entropy_is_that_of_the_mean_distribution_of_the_first_level(run):
    learner = run.learner()
    loss, entropy = learner._guards.look(learner.model)
    mean, count = 0.0, 0
    for batch in learner._guards._probe:
        with torch.no_grad():
            said = learner.model(*(torch.from_numpy(x) for x in (batch.slots, batch.profile, batch.tokens)))
        logits = said.logits[0][:, 0].double().numpy()
        p = np.exp(logits - logits.max(1, keepdims=True))
        mean, count = mean + (p / p.sum(1, keepdims=True)).sum(0), count + len(p)
    mean = mean / count
    assert count == 12
    assert entropy == pytest.approx(-(mean * np.log(mean)).sum(), rel=1e-5)
    assert 0 < loss < 20


def test_answers_with_other_sids_than_the_tokenizer_has(begun):
    begun.serve(80, seed=2, sids=[[0, 0, 0]] * 5)
    learner = begun.learner()
    stopped_by_all = pytest.raises(GuardError, match=r"online.max_unseen: expected at most 50% .* got \d+%")
    with stopped_by_all:
        learnt(learner)
    assert open_checkpoint(begun.run / "online").online["offset"] < learner.state.offset
    assert begun.learner(max_unseen=1.0).state.offset < learner.state.offset


def test_a_run_that_was_stopped_by_a_guard_goes_on_at_its_last_checkpoint(begun):
    saved = open_checkpoint(begun.run / "online")
    bad = begun.learner(learning_rate=3.0, clip_norm=100.0)
    with pytest.raises(GuardError):
        learnt(bad)
    again = begun.learner()
    assert (again.step, again.state.offset) == (saved.step, saved.online["offset"])
    assert learnt(again).state.learnt == 32
