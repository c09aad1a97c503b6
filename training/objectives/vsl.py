"""Value-aware supervised learning (VSL; GR4AD, arXiv 2602.22732).

L_NTP = - sum_t log p(s_t | s_<t, X) - lambda_e log p(v | y, X)
L_VSL = E[ w ( L_NTP + lambda_mtp L_MTP ) ]
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from training.objectives.mtp import mtp_loss


@dataclass(frozen=True)
class VslLoss:
    """Weighted sums over the targets of a batch; divide by `weight` for means.

    Attributes:
        total: what is minimised, times the weight.
        sid: - sum_t log p(s_t | s_<t, X).
        value: - log p(v | y, X).
        mtp: L_MTP.
        weight: sum of w.
    """

    total: Tensor
    sid: Tensor
    value: Tensor
    mtp: Tensor
    weight: Tensor


def vsl_loss(
    logits: list[Tensor],
    mtp_logits: list[Tensor],
    *,
    tokens: Tensor,
    value: Tensor,
    weight: Tensor,
    lambda_value: float,
    lambda_mtp: float,
) -> VslLoss:
    """Loss of a batch.

    Args:
        logits: for levels 1 .. T + 1, [B, n, V].
        mtp_logits: for levels 1 .. T + 1, [B, V] (the value level is not used).
        tokens: int [B, n, T].
        value: int [B, n] value bucket.
        weight: float [B, n], w = w_user * w_behavior; 0 is padding.
        lambda_value: lambda_e.
        lambda_mtp: weight of L_MTP.
    """
    levels = tokens.shape[-1]
    sid = sum(_cross_entropy(logits[t], tokens[..., t]) for t in range(levels))
    bucket = _cross_entropy(logits[levels], value)
    mtp = mtp_loss(mtp_logits[:levels], tokens)
    total = sid + lambda_value * bucket + lambda_mtp * mtp
    sums = [(x * weight).sum() for x in (total, sid, bucket, mtp)]
    return VslLoss(sums[0], sums[1], sums[2], sums[3], weight.sum())


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
