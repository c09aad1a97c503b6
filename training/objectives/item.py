"""Loss of the item level: -log p(a | X) of the ad of each target, by a softmax over ads.

It stands beside the losses of the target's semantic ID, from the same pass of the model: both learn the
context and the code embeddings. Letters: B requests, n targets of a request.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from training.data.batch import Batch
from training.model.gr4ad import TeacherForced


def run_on_targets(
    model: nn.Module, batch: Batch[Tensor], tokens: Tensor, *, items: bool, mtp: bool = True
) -> TeacherForced:
    """What a model says of SIDs int [B, n, T], and, of one with an item level, of the ads of the targets.

    Without `mtp` it is spared the path without tokens.
    """
    asked: dict[str, Any] = {"slot_ads": batch.slot_ads, "ads": batch.ads} if items else {}
    if not mtp:
        asked["mtp"] = False
    return TeacherForced(*model(batch.slots, batch.profile, tokens, **asked))


def item_loss(item_log_p: Tensor | None) -> Tensor:
    """[B, n] of what the model gave; 0 where the model does not know the ad.

    Raises:
        ValueError: it gave nothing.
    """
    if item_log_p is None:
        raise ValueError(
            "expected log-probabilities of ads, got none: the model has no item level (model.item)"
        )
    return -item_log_p
