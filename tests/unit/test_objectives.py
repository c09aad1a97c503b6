"""Objectives: each against its formula as plain loops in float64, and its gradient against differences."""

import math

import numpy as np
import pytest
import torch

from training.data.batch import Batch
from training.objectives.distill import Distill
from training.objectives.mtp import mtp_loss
from training.objectives.vsl import Vsl

B, N, SIZES, BUCKETS = 3, 4, (5, 6, 7), 3
LEVELS = (*SIZES, BUCKETS)


def log_p(logits, code):
    """log softmax(logits)[code] of a list of floats."""
    return logits[code] - math.log(sum(math.exp(x) for x in logits))


def draw(seed=0):
    """Logits of every level, logits of the path without tokens, and a batch with padding."""
    random = np.random.default_rng(seed)
    logits = [random.normal(size=(B, N, v)) for v in LEVELS]
    mtp = [random.normal(size=(B, v)) for v in LEVELS]
    weight = random.random((B, N))
    weight[1, 2] = 0
    batch = Batch(
        slots=torch.zeros(B, 1, 1),
        profile=torch.zeros(B, 1),
        tokens=torch.tensor(np.stack([random.integers(0, v, (B, N)) for v in SIZES], axis=-1)),
        value=torch.tensor(random.integers(0, BUCKETS, (B, N))),
        weight=torch.tensor(weight),
    )
    return logits, mtp, batch


def tensors(arrays, **options):
    return [torch.tensor(x, **options) for x in arrays]


def model_of(logits, mtp=()):
    """A model that gives these logits, whatever it is asked."""
    return lambda slots, profile, tokens, **asked: (list(logits), list(mtp))


def vsl_by_loops(logits, mtp, batch):
    """Sums of total, sid, value, mtp."""
    sums = np.zeros(4)
    for b in range(B):
        for i in range(N):
            codes = batch.tokens[b, i].tolist()
            sid = -sum(log_p(logits[t][b, i].tolist(), codes[t]) for t in range(3))
            value = -log_p(logits[3][b, i].tolist(), int(batch.value[b, i]))
            skip = -sum(log_p(mtp[t][b].tolist(), codes[t]) for t in range(3))
            terms = (sid + 0.2 * value + 0.7 * skip, sid, value, skip)
            sums += float(batch.weight[b, i]) * np.array(terms)
    return sums


def test_vsl_equals_its_formula():
    logits, mtp, batch = draw()
    loss = Vsl(lambda_value=0.2, lambda_mtp=0.7)(model_of(tensors(logits), tensors(mtp)), batch)
    total, *parts = vsl_by_loops(logits, mtp, batch)
    assert float(loss.total.sum) == pytest.approx(total, rel=1e-12)
    assert {name: float(part.sum) for name, part in loss.parts.items()} == pytest.approx(
        dict(zip(("sid", "value", "mtp"), parts, strict=True)), rel=1e-12
    )
    for part in (loss.total, *loss.parts.values()):
        assert float(part.weight) == pytest.approx(float(batch.weight.sum()))
    assert tuple(loss.parts) == Vsl(lambda_value=0.2, lambda_mtp=0.7).names


def test_mtp_equals_its_formula():
    _, mtp, batch = draw(1)
    got = mtp_loss(tensors(mtp[:3]), batch.tokens)
    for b in range(B):
        for i in range(N):
            codes = batch.tokens[b, i].tolist()
            expected = -sum(log_p(mtp[t][b].tolist(), codes[t]) for t in range(3))
            assert float(got[b, i]) == pytest.approx(expected, rel=1e-12)


def kl_by_loops(wanted, got, weight):
    """KL(p || q), p of `wanted`, weighted by the first."""
    total = 0.0
    for p, q in zip(wanted, got, strict=True):
        for b in range(B):
            for i in range(N):
                for code in range(p.shape[-1]):
                    mine, other = (log_p(x[b, i].tolist(), code) for x in (p, q))
                    total += float(weight[b, i]) * math.exp(mine) * (mine - other)
    return total


def test_distill_equals_its_formula():
    wanted, _, batch = draw(2)
    got, *_ = draw(3)
    loss = Distill(model_of(tensors(wanted)))(model_of(tensors(got)), batch)
    expected = kl_by_loops(wanted, got, batch.weight)
    assert float(loss.total.sum) == pytest.approx(expected, rel=1e-12)
    assert expected != pytest.approx(kl_by_loops(got, wanted, batch.weight), rel=1e-2)  # it is not symmetric
    assert float(loss.total.weight) == pytest.approx(float(batch.weight.sum()))
    assert loss.parts == {}
    shifted = [x + 3.0 for x in got]  # logits are free up to a constant
    same = Distill(model_of(tensors(wanted)))(model_of(tensors(shifted)), batch)
    assert float(same.total.sum) == pytest.approx(expected, rel=1e-9)
    nothing = Distill(model_of(tensors(wanted)))(model_of(tensors(wanted)), batch)
    assert float(nothing.total.sum) == pytest.approx(0, abs=1e-12)


def test_distill_needs_all_levels():
    wanted, _, batch = draw()
    with pytest.raises(ValueError, match="shorter|longer"):
        Distill(model_of(tensors(wanted)))(model_of(tensors(wanted[:2])), batch)


def test_the_teacher_gets_no_gradient():
    wanted, got = (tensors(draw(seed)[0], requires_grad=True) for seed in (2, 3))

    def teacher(*_):
        return [2 * x for x in wanted], []

    Distill(teacher)(model_of(got), draw()[2]).total.sum.backward()
    assert all(x.grad is None for x in wanted)
    assert all(float(x.grad.abs().sum()) > 0 for x in got)


def test_gradients_equal_differences():
    """torch.autograd.gradcheck: the gradient of the total against central differences, in float64."""
    logits, mtp, batch = draw(4)
    teacher = tensors(draw(5)[0])
    inputs = tensors([*logits, *mtp], requires_grad=True)

    def vsl(*flat):
        model = model_of(flat[: len(LEVELS)], flat[len(LEVELS) :])
        return Vsl(lambda_value=0.2, lambda_mtp=0.7)(model, batch).total.sum

    def distill(*flat):
        return Distill(model_of(teacher))(model_of(flat), batch).total.sum

    assert torch.autograd.gradcheck(vsl, inputs)
    assert torch.autograd.gradcheck(distill, inputs[: len(LEVELS)])


def test_gradient_of_the_sid_is_probability_minus_target():
    logits, mtp, batch = draw(6)
    inputs = tensors(logits, requires_grad=True)
    Vsl(lambda_value=0.0, lambda_mtp=0.0)(model_of(inputs, tensors(mtp)), batch).total.sum.backward()
    for t in range(3):
        one = torch.nn.functional.one_hot(batch.tokens[..., t], SIZES[t])
        expected = (inputs[t].detach().softmax(-1) - one) * batch.weight[..., None]
        torch.testing.assert_close(inputs[t].grad, expected)
    assert float(inputs[3].grad.abs().sum()) == 0  # lambda_value 0


@pytest.mark.parametrize("objective", [Vsl(lambda_value=0.2, lambda_mtp=0.7), "distill"])
def test_low_precision_logits_are_summed_in_float32(objective):
    """A codebook of 16,384 codes: log-probabilities of bfloat16 logits, not in bfloat16."""
    torch.manual_seed(0)
    logits = [torch.randn(2, 3, 16_384).bfloat16() for _ in range(2)]
    other = [x + 0.25 * torch.randn_like(x) for x in logits]
    mtp = [torch.randn(2, 16_384).bfloat16() for _ in range(2)]
    batch = Batch(
        slots=torch.zeros(2, 1, 1),
        profile=torch.zeros(2, 1),
        tokens=torch.randint(0, 16_384, (2, 3, 1)),
        value=torch.randint(0, 16_384, (2, 3)),
        weight=torch.ones(2, 3),
    )

    def total(dtype):
        cast = lambda xs: [x.to(dtype) for x in xs]  # noqa: E731
        rule = Distill(model_of(cast(other))) if objective == "distill" else objective
        return rule(model_of(cast(logits), cast(mtp)), batch).total.sum

    low, exact = total(torch.bfloat16), total(torch.float64)
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(float(exact), rel=1e-5)
