"""Two losses of one batch, from one pass of the model: of its targets (VSL) and of its lists of candidates.

Letters: B requests, n targets and m candidates of a request, T SID levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from training.data.batch import Batch
from training.model.gr4ad import TeacherForced
from training.objectives.base import Loss, Part
from training.objectives.item import run_on_targets
from training.objectives.list_scores import ListScores, RewardScale
from training.objectives.vsl import Vsl


class ListObjective(Protocol):
    """A loss of scored lists."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts, the same for all lists."""
        ...

    def __call__(self, scores: ListScores) -> Loss:
        """Rate lists."""
        ...


class Terms(NamedTuple):
    """What a batch gives.

    Attributes:
        targets: the loss of the targets.
        lists: the loss of the lists; the sum of its total is over lists.
    """

    targets: Loss
    lists: Loss


class TwoTerms(Protocol):
    """An objective of targets and lists, before the two are balanced."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts of both, the same for every batch."""
        ...

    def __call__(self, model: nn.Module, batch: Batch[Tensor]) -> Terms:
        """Rate both."""
        ...


@dataclass(frozen=True)
class Joint:
    """VSL of the targets beside any loss of the lists; neither knows the other.

    Attributes:
        vsl: of the targets.
        lists: of the lists.
        scale: of rewards.
    """

    vsl: Vsl
    lists: ListObjective
    scale: RewardScale

    @property
    def names(self) -> tuple[str, ...]:
        """Parts of both."""
        return (*self.vsl.names, *self.lists.names)

    def __call__(self, model: nn.Module, batch: Batch[Tensor]) -> Terms:
        """Rate both."""
        said, scores = score(model, batch, scale=self.scale, items=self.vsl.has_items)
        targets = self.vsl.rate(batch, *said)
        return Terms(targets, self.lists(scores) if scores else no_lists(targets, self.lists.names))


def score(
    model: nn.Module, batch: Batch[Tensor], *, scale: RewardScale, items: bool = False
) -> tuple[TeacherForced, ListScores | None]:
    """Run a model once on the targets and candidates of a batch, and with `items` on the ads of the targets.

    Returns:
        What it says of the targets; and the candidates scored, None where the batch has none.
    """
    lists = batch.lists
    if lists is None or not lists.sids.shape[1]:
        return run_on_targets(model, batch, batch.tokens, items=items), None
    count = batch.tokens.shape[1]
    tokens = torch.cat([batch.tokens, lists.sids], dim=1)
    said = run_on_targets(model, batch, tokens, items=items)
    of_lists = [level[:, count:] for level in said.logits]
    scores = ListScores.of(lists, of_lists, scale=scale, copies=said.copies)
    return said._replace(logits=[level[:, :count] for level in said.logits]), scores


def no_lists(targets: Loss, names: tuple[str, ...]) -> Loss:
    """The loss of no list at all."""
    nothing = Part(0.0 * targets.total.sum, 0.0 * targets.total.weight)
    return Loss(nothing, dict.fromkeys(names, nothing))
