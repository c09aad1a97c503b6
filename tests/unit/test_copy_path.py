"""The copy path: the mixture, its levels and gradients against the formula as plain loops."""

import math

import numpy as np
import pytest
import torch

from tests.copying import EVERY, mixture_by_loops, requests
from tests.tiny import LEVEL_SIZES, SPEC, copying_model, tiny_model
from training.data.batch import Batch
from training.model.context import EMPTY_SLOT_BIAS
from training.model.copy_path import Copies
from training.objectives.distill import Distill
from training.objectives.sid import level_log_p, sid_log_p
from training.objectives.vsl import Vsl
from training.rollout.score import log_p


def test_all_sids_together_have_probability_1():
    slots, profile = requests()
    scores = log_p(copying_model(), slots, profile, sids=np.array([EVERY] * 4))
    np.testing.assert_allclose(np.exp(scores.astype(np.float64)).sum(1), 1.0, rtol=1e-5)
    for row in range(4):
        p = mixture_by_loops(row)
        np.testing.assert_allclose(scores[row], [math.log(p[sid]) for sid in EVERY], atol=2e-5)


def test_the_history_gets_more_and_a_user_without_one_gets_the_model():
    slots, profile = requests()
    model = copying_model()
    with torch.no_grad():
        said = model(*map(torch.tensor, (slots, profile)), torch.tensor([EVERY] * 4))
    alone = sid_log_p(said.logits, torch.tensor([EVERY] * 4)).numpy()
    mixed = log_p(model, slots, profile, sids=np.array([EVERY] * 4))
    assert not slots[0].any()
    assert float(said.copies.logprob[0, 0]) == 0.0
    np.testing.assert_array_equal(mixed[0], alone[0])
    for row in range(1, 4):
        habits = slots[row, SPEC.slots :]
        known = {tuple(s) for s in (habits[habits[:, 3] > 0, :3] - 1).tolist()}
        more = mixed[row] > alone[row]
        assert set() < {EVERY[i] for i in np.flatnonzero(more)} <= known


def test_levels_are_ratios_of_prefixes():
    slots, profile = requests()
    with torch.no_grad():
        said = copying_model()(*map(torch.tensor, (slots, profile)), torch.tensor([EVERY] * 4))
        levels = level_log_p(said.logits, torch.tensor([EVERY] * 4), copies=said.copies)
    for row in range(4):
        p = mixture_by_loops(row)
        for t in range(3):
            expected = [math.log(p[s[: t + 1]] / p[s[:t]]) for s in EVERY]
            np.testing.assert_allclose(levels[t][row].numpy(), expected, atol=2e-5)


def random_copies(sids, *, dtype=torch.float64, seed=0):
    """A mixture over slots int [B, S, T]; -1 is an empty one."""
    raw = torch.randn(len(sids), 1 + sids.shape[1], generator=torch.Generator().manual_seed(seed))
    raw[:, 1:][sids[..., 0] < 0] = EMPTY_SLOT_BIAS
    return raw.to(dtype).requires_grad_(), sids


def test_gradients_equal_differences_and_are_numbers():
    """With a target in the history, one that shares a prefix with it, one apart, and an empty history."""
    sids = torch.tensor([[[1, 2, 3], [1, 2, 4], [0, 1, 1]], [[-1, -1, -1]] * 3])
    tokens = torch.tensor([[[1, 2, 3], [1, 2, 0], [5, 4, 6]]] * 2)
    random = torch.Generator().manual_seed(1)
    logits = [torch.randn(2, 3, v, generator=random, dtype=torch.float64) for v in LEVEL_SIZES]
    raw, _ = random_copies(sids)

    def loss(raw, *logits):
        copies = Copies(raw.log_softmax(-1), sids)
        return sid_log_p(list(logits), tokens, copies=copies)

    inputs = (raw, *(x.requires_grad_() for x in logits))
    assert torch.autograd.gradcheck(loss, inputs)
    # A target that the model finds next to impossible, alone and in the history.
    for dtype in (torch.float32, torch.bfloat16):
        far = [(x.detach() * 200).to(dtype).requires_grad_() for x in logits]
        single = raw.detach().float().requires_grad_()
        total = loss(single, *far).sum()
        total.backward()
        assert total.dtype == torch.float32
        assert total.isfinite()
        assert all(x.grad.isfinite().all() for x in (single, *far))


def test_vsl_takes_the_mixture():
    slots, profile = requests()
    tokens = torch.tensor([EVERY[7:12]] * 4)
    batch = Batch(
        slots=torch.tensor(slots),
        profile=torch.tensor(profile),
        tokens=tokens,
        value=torch.zeros(4, 5, dtype=torch.long),
        weight=torch.rand(4, 5, generator=torch.Generator().manual_seed(0)),
    )
    loss = Vsl(lambda_value=0.0, lambda_mtp=0.0)(copying_model(), batch)
    expected = 0.0
    for row in range(4):
        p = mixture_by_loops(row)
        for i, sid in enumerate(tokens[row].tolist()):
            expected -= float(batch.weight[row, i]) * math.log(p[tuple(sid)])
    assert loss.total.sum.item() == pytest.approx(expected, rel=1e-5)


def test_every_weight_of_the_copy_path_learns():
    slots, profile = requests()
    model = copying_model().train()
    said = model(*map(torch.tensor, (slots, profile)), torch.tensor([EVERY[:50]] * 4))
    sid_log_p(said.logits, torch.tensor([EVERY[:50]] * 4), copies=said.copies).sum().backward()
    for name, weight in model.copy_path.named_parameters():
        assert float(weight.grad.abs().sum()) > 0, name


def test_distilling_also_teaches_who_speaks():
    slots, profile = requests()
    batch = Batch(
        slots=torch.tensor(slots),
        profile=torch.tensor(profile),
        tokens=torch.tensor([EVERY[:2]] * 4),
        value=torch.zeros(4, 2, dtype=torch.long),
        weight=torch.tensor([[1.0, 2.0]] * 4),
    )
    teacher, student = copying_model(), copying_model()
    same = Distill(teacher)(student, batch)
    assert same.total.sum.item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        student.copy_path.gate += 1
        p, q = (
            m(batch.slots, batch.profile, batch.tokens).copies.logprob.double().numpy()
            for m in (teacher, student)
        )
    expected = 3 * sum(
        math.exp(a) * (a - b) for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert expected > 0.1
    assert Distill(teacher)(student, batch).total.sum.item() == pytest.approx(expected, rel=1e-4)


def test_a_specification_of_an_older_release_has_no_copy_path():
    config = tiny_model().config
    assert "copy_path" in config.model_dump()
    older = {k: v for k, v in config.model_dump().items() if k != "copy_path"}
    assert type(config)(**older).copy_path is False
