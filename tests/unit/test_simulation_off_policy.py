"""Off-policy estimates: their mean over every slate that can be shown is the value of the judged policy."""

from itertools import permutations

import numpy as np
import pytest

from benchmarks.simulation.outside.off_policy import cascade_doubly_robust, ips, snips

ACTIONS, SLOTS = 4, 3
SLATES = np.array(list(permutations(range(ACTIONS), SLOTS)))  # all 24


def chances(scores):
    """Plackett-Luce: probability of each action in each slot of all slates, given those above, [N, k, A]."""
    given = np.zeros((len(SLATES), SLOTS, ACTIONS))
    for i, slate in enumerate(SLATES):
        for slot in range(SLOTS):
            left = [a for a in range(ACTIONS) if a not in slate[:slot]]
            given[i, slot, left] = np.exp(scores[left]) / np.exp(scores[left]).sum()
    return given


@pytest.fixture
def case():
    """Policies that show and that are judged, and rewards that depend on the slots down to each."""
    random = np.random.default_rng(0)
    showed, judged = (chances(random.normal(0, 1, ACTIONS)) for _ in range(2))
    of_prefix = {}
    rewards = np.array(
        [[of_prefix.setdefault(tuple(s[: i + 1]), random.random()) for i in range(SLOTS)] for s in SLATES]
    )
    return showed, judged, rewards


def of_shown(given):
    return np.take_along_axis(given, SLATES[:, :, None], 2)[:, :, 0]


def expected_over(slates, estimate):
    """Sum of probability x estimate of a log of one slate."""
    return sum(p * estimate(slice(i, i + 1)) for i, p in enumerate(slates))


def test_every_weight_is_unbiased_where_its_assumption_holds(case):
    showed, judged, rewards = case
    p, q = of_shown(showed).prod(axis=1), of_shown(judged).prod(axis=1)
    assert p.sum() == pytest.approx(1)
    truth = (q[:, None] * rewards).sum()
    standard = np.repeat((q / p)[:, None], SLOTS, axis=1)
    cascade = (of_shown(judged) / of_shown(showed)).cumprod(axis=1)
    for weights in (standard, cascade):
        assert expected_over(p, lambda at, w=weights: ips(rewards[at], w[at])) == pytest.approx(truth)
    # Rewards of one slot alone: the weights of one slot are enough, and only then.
    alone = np.random.default_rng(1).random((SLOTS, ACTIONS))
    of_slot = np.stack([alone[i, SLATES[:, i]] for i in range(SLOTS)], axis=1)
    marginal = np.stack(
        [[[x[SLATES[:, i] == a].sum() for a in range(ACTIONS)] for i in range(SLOTS)] for x in (p, q)]
    )  # [2, k, A]
    independent = np.stack([(marginal[1] / marginal[0])[i, SLATES[:, i]] for i in range(SLOTS)], axis=1)
    found = expected_over(p, lambda at: ips(of_slot[at], independent[at]))
    assert found == pytest.approx((q[:, None] * of_slot).sum())
    assert expected_over(p, lambda at: ips(rewards[at], independent[at])) != pytest.approx(truth, rel=0.01)


@pytest.mark.parametrize("guess", ["nothing", "random"])
def test_doubly_robust_is_unbiased_whatever_is_guessed(case, guess):
    showed, judged, rewards = case
    p, q = of_shown(showed).prod(axis=1), of_shown(judged).prod(axis=1)
    weights = (of_shown(judged) / of_shown(showed)).cumprod(axis=1)
    random, of_prefix = np.random.default_rng(2), {}
    expected = np.zeros((len(SLATES), SLOTS, ACTIONS))  # a function of the slots above and the action
    for i, slate in enumerate(SLATES if guess == "random" else ()):
        for slot in range(SLOTS):
            expected[i, slot] = of_prefix.setdefault(tuple(slate[:slot]), random.random(ACTIONS))

    def estimate(at):
        return cascade_doubly_robust(
            rewards[at], weights[at], actions=SLATES[at], expected=expected[at], policy=judged[at]
        )

    assert expected_over(p, estimate) == pytest.approx((q[:, None] * rewards).sum())
    if guess == "nothing":
        assert estimate(slice(None)) == pytest.approx(ips(rewards, weights))


def test_normalised_weights_of_a_slot_add_up_to_its_rows(case):
    rewards = case[2]
    weights = np.random.default_rng(3).exponential(1, rewards.shape)
    # A reward that is the same everywhere is found exactly, whatever the weights; plain weights do not.
    assert snips(np.full(rewards.shape, 2.0), weights) == pytest.approx(2.0 * SLOTS)
    assert ips(np.full(rewards.shape, 2.0), weights) != pytest.approx(2.0 * SLOTS, rel=0.01)
    assert snips(rewards, 7 * weights) == pytest.approx(snips(rewards, weights))
