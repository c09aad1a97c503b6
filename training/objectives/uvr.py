"""Unified VSL and RSPO (UVR; GR4AD, arXiv 2602.22732): both at once on one stream, without a second stage.

L      = E[ w_VSL L_VSL + w_RL L_RSPO ]
w_VSL  = w0 (1 + v)^A
w_RL   = w0 Zmax (1 - A)
A      = |rank_model - rank_reward| / (n - 1)

Where the model ranks a candidate as its reward does, there is little to learn by imitation, and its order
among the others counts; where it does not, imitation does, by value. w0 scales the loss as a whole, which
AdamW takes out again: it is 1. Zmax is not published: it is the balance of the two terms (`Balanced`).

Letters: B requests, n targets, m candidates of a request, T SID levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from training.data.batch import Batch
from training.objectives.base import Loss, Part
from training.objectives.joint import Terms, no_lists, score
from training.objectives.list_scores import ListScores, RewardScale, ranks
from training.objectives.rspo import Rspo
from training.objectives.vsl import Vsl


@dataclass(frozen=True)
class Uvr:
    """L_UVR in its two terms; `disagreement` is the mean A of the candidates.

    A and v of a target are those of the candidate with its SID. A target that its list does not hold has
    w_VSL = 1, as in VSL alone.

    Attributes:
        vsl: of the targets.
        rspo: of the lists.
        scale: of rewards.
    """

    vsl: Vsl
    rspo: Rspo
    scale: RewardScale

    @property
    def names(self) -> tuple[str, ...]:
        """Parts of both, and the disagreement."""
        return (*self.vsl.names, *self.rspo.names, "disagreement")

    def __call__(self, model: nn.Module, batch: Batch[Tensor]) -> Terms:
        """Rate both."""
        said, scores = score(model, batch, scale=self.scale, items=self.vsl.has_items)
        plain = self.vsl.rate(batch, *said)
        if scores is None:
            return Terms(plain, no_lists(plain, (*self.rspo.names, "disagreement")))
        a = disagreement(scores)
        weight = batch.weight * vsl_weights(batch.tokens, scores, a).to(batch.weight)
        weighted = self.vsl.rate(replace(batch, weight=weight), *said)
        # E[w L] and not its weighted mean: the denominator stays that of the targets.
        targets = Loss(Part(weighted.total.sum, plain.total.weight), plain.parts)
        lists = self.rspo(scores, anchor_weight=1 - a)
        mean = Part(a.sum(), scores.there.sum().to(a.dtype))
        return Terms(targets, replace(lists, parts={**lists.parts, "disagreement": mean}))


def disagreement(scores: ListScores) -> Tensor:
    """A of each candidate, [B, m] in 0 .. 1; 0 where there is none, and in a list of one."""
    there = scores.there
    apart = ranks(scores.log_p.detach(), there) - ranks(scores.reward, there)
    share = apart.abs().to(scores.log_p.dtype) / (there.sum(-1, keepdim=True) - 1).clamp(min=1)
    return torch.where(there, share, 0.0)


def vsl_weights(tokens: Tensor, scores: ListScores, a: Tensor) -> Tensor:
    """(1 + v)^A of each target, float64 [B, n].

    Args:
        tokens: int [B, n, T], SIDs of the targets.
        scores: candidates of the same requests.
        a: [B, m], their disagreement.
    """
    same = (tokens[:, :, None] == scores.sids[:, None]).all(-1) & scores.there[:, None]  # [B, n, m]
    of_candidates = (1 + scores.reward) ** a.double()
    at = same.to(torch.uint8).argmax(-1)  # the first of those with its SID
    return torch.where(same.any(-1), of_candidates.gather(1, at), 1.0)
