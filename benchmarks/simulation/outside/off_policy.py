"""What a policy would have earned, estimated from slates that another one has shown.

Every estimate weighs the reward of a slot by how much likelier the judged policy is to show it; they differ
in what a slot's reward may depend on. Needs numpy alone, so that it runs beside any judge.

Letters: N slates, k slots, A actions.
"""

from __future__ import annotations

import numpy as np


def ips(rewards: np.ndarray, weights: np.ndarray) -> float:
    """Inverse propensity scoring, the value of a slate.

    Args:
        rewards: float64 [N, k], of each slot.
        weights: float64 [N, k], probability under the judged policy / under the one that showed: of the whole
            slate (standard; rewards may depend on all slots), of the slots down to this one (cascade), or of
            this slot's action alone (independent).
    """
    return float((rewards * weights).sum(axis=1).mean())


def snips(rewards: np.ndarray, weights: np.ndarray) -> float:
    """As `ips`, the weights of each slot scaled to a mean of 1: biased, with less variance."""
    return ips(rewards, weights / weights.mean(axis=0))


def cascade_doubly_robust(
    rewards: np.ndarray,
    weights: np.ndarray,
    *,
    actions: np.ndarray,
    expected: np.ndarray,
    policy: np.ndarray,
) -> float:
    """Doubly robust under the cascade model (Kiyohara et al., 2022, Eq. 7); unbiased whatever is expected.

    Args:
        rewards: float64 [N, k].
        weights: float64 [N, k], of the slots down to this one.
        actions: int64 [N, k], what was shown.
        expected: float64 [N, k, A], a model's guess of the reward from this slot on, given those above it.
        policy: float64 [N, k, A], probability of the judged policy of each action, given those above it.
    """
    above = np.concatenate([np.ones((len(weights), 1)), weights[:, :-1]], axis=1)
    guess = np.take_along_axis(expected, actions[:, :, None], 2)[:, :, 0]
    value = weights * (rewards - guess) + above * (policy * expected).sum(axis=2)
    return float(value.sum(axis=1).mean())
