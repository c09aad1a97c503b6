"""The item level as it ranks: the graph `ad_ranker`, and the tables that its inputs are made with.

Letters: B requests, n ads, S history slots, P columns of profile and request, T SID levels, d width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from serving.ranking.item_tables import ItemTables
from training.model.gr4ad import Generator
from training.model.item_head import ItemHead

_AT_ONCE = 4096  # ads whose vectors are made at a time


class ItemGraph(nn.Module):
    """State and scores."""

    def __init__(self, model: Generator) -> None:
        """Wrap a model that has an item level."""
        super().__init__()
        self.item = item_of(model)

    def forward(
        self, slots: Tensor, profile: Tensor, slot_vectors: Tensor, ad_vectors: Tensor, log_p: Tensor
    ) -> Tensor:
        """Scores u . v(a) + mix log p(sid(a)), [B, n].

        Args:
            slots: int32 [B, S, T + 3].
            profile: int32 [B, P].
            slot_vectors: float32 [B, S, d], v of the ads of the slots.
            ad_vectors: float32 [B, n, d], v of the ads that are ordered.
            log_p: float32 [B, n], of their SIDs.
        """
        state = self.item.state(slots, profile, slot_vectors)
        return (ad_vectors @ state[:, :, None]).squeeze(-1) + self.item.config.mix * log_p


class TorchRankGraph:
    """`serving.ranking.ranker.RankGraph` over a model in PyTorch, on any device."""

    def __init__(self, model: Generator) -> None:
        """Wrap a model that has an item level, put in evaluation mode."""
        self._graph = ItemGraph(model).eval()
        self._device = model.bos.device

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Worth float32 [B, n]."""
        given = {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
        return self._graph(**given).cpu().numpy()


def item_of(model: Generator) -> ItemHead:
    """The item level of a model.

    Raises:
        ValueError: it has none.
    """
    if model.item is None:
        raise ValueError(
            "expected a model with an item level, got one without: set model.item and train a new one"
        )
    return model.item


@torch.no_grad()
def item_tables(model: Generator) -> ItemTables:
    """Vectors of the ads that a model knows.

    Raises:
        ValueError: it has no item level.
    """
    item = item_of(model.eval())
    rows = torch.arange(len(item.ad_ids), device=item.ad_ids.device).split(_AT_ONCE)
    content = torch.cat([item.content(part) for part in rows])
    own = torch.cat([item.own(part) for part in rows])
    return ItemTables.of(
        item.ad_ids.cpu().numpy(),
        (own + content).cpu().numpy(),
        content=content.cpu().numpy(),
        sids=item.sids.cpu().numpy().astype(np.int32),
    )
