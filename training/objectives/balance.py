"""How much lists count beside targets: lambda = |g_VSL| / |g_RL|, measured.

L = E_targets[ L_VSL ] + strength lambda E_lists[ L_RL ]

The gradient of a preference loss is fifty to some hundred times below that of VSL, by objective and length of
lists, so that one number for all would compare nothing. With lambda both pull equally at the start, and
`strength` means the same for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.data.batch import Batch
from training.objectives.base import Loss, Part
from training.objectives.joint import TwoTerms


@dataclass(frozen=True)
class Balanced:
    """An objective of targets and lists, or of lists alone.

    A list counts as much as a target of weight 1: both sums are divided by the weight of the targets, so that
    a batch that is split over processes has the loss of the whole one.

    Attributes:
        terms: the two losses.
        list_weight: strength * lambda.
        supervised: whether the targets are learned from, too; without, what is divided by is the lists.
    """

    terms: TwoTerms
    list_weight: float
    supervised: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Parts of both losses."""
        return self.terms.names

    def __call__(self, model: nn.Module, batch: Batch[Tensor]) -> Loss:
        """Rate a batch."""
        targets, lists = self.terms(model, batch)
        of_lists, weight = self.list_weight * lists.total.sum, lists.total.weight
        # Alone, lists leave the value level without a gradient, which several processes would wait for.
        of_targets = targets.total.sum if self.supervised else 0.0 * targets.total.sum
        total = Part(of_targets + of_lists, targets.total.weight if self.supervised else weight)
        return Loss(total, {**targets.parts, **lists.parts})


def measure_balance(model: nn.Module, terms: TwoTerms, batches: Iterable[Batch[Tensor]]) -> float:
    """Measure lambda = sum |g_VSL| / sum |g_RL| over batches, g of the sums over targets and over lists.

    The model is in evaluation mode afterwards, its gradients are as they were.

    Raises:
        ValueError: one of the gradients is 0 or not finite, so that nothing balances.
    """
    of_targets = of_lists = 0.0
    for batch in batches:
        norms = gradient_norms(model, terms, batch)
        of_targets, of_lists = of_targets + norms[0], of_lists + norms[1]
    if not (0 < of_targets < math.inf and 0 < of_lists < math.inf):
        raise ValueError(
            "balance of targets and lists: expected gradients above 0 of both, got norms "
            f"{of_targets:g} (targets) and {of_lists:g} (lists); lists of equal rewards teach nothing"
        )
    return of_targets / of_lists


def gradient_norms(model: nn.Module, terms: TwoTerms, batch: Batch[Tensor]) -> tuple[float, float]:
    """|g_VSL| and |g_RL| of a batch; the model is in evaluation mode afterwards."""
    model.eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    norms: list[float] = []
    for loss in terms(model, batch):
        gradients = torch.autograd.grad(loss.total.sum, weights, retain_graph=not norms, allow_unused=True)
        squares = [g.detach().double().square().sum().cpu() for g in gradients if g is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))
    return norms[0], norms[1]
