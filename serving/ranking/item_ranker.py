"""Ranker of kind `item`: vectors of a request's past ads and of the ads found -> the item level's scores.

Letters: B requests, n ads, S history slots, P columns of profile and request, T SID levels, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from serving.model.features import FeatureSpec, join_codes, select_events
from serving.model.manifest import ItemRankerSpec, Manifest
from serving.ranking.item_tables import ItemTables
from serving.ranking.ranker import Ranker, RankGraph, RankRequest


class ItemRanker(Ranker):
    """Tables and graph of an item level.

    Its graph takes slots int32 [B, S, T + 3] and the vectors float32 [B, S, d] of their ads, the codes int32
    [B, P], and of the ads that are ordered the vectors float32 [B, n, d] and log p of their SIDs [B, n].
    """

    kind = "item"
    takes = ("slots", "profile", "slot_vectors", "ad_vectors", "log_p")

    def __init__(
        self,
        spec: FeatureSpec,
        tables: ItemTables,
        graph: RankGraph,
        *,
        inputs: tuple[str, ...] = takes,
        pad_to: int = 1,
    ) -> None:
        """Put them together; `spec` says what a context looks like, for the others see `Ranker`."""
        super().__init__(graph, inputs=inputs, pad_to=pad_to)
        self._spec, self._tables = replace(spec, habits=0), tables  # the item level sees slots alone

    @classmethod
    def load(cls, bundle: str | Path, manifest: Manifest, graph: RankGraph, *, pad_to: int = 1) -> Self:
        """With the tables of a bundle.

        Raises:
            BundleError: see `Ranker.inputs_of` and `ItemTables.load`.
        """
        inputs, spec = cls.inputs_of(manifest), manifest.ranker
        assert isinstance(spec, ItemRankerSpec)
        tables = ItemTables.load(bundle, width=spec.width, levels=manifest.levels)
        return cls(manifest.features, tables, graph, inputs=inputs, pad_to=pad_to)

    @property
    def ad_ids(self) -> np.ndarray:
        """See `Ranker`."""
        return self._tables.ad_ids

    def tensors(self, requests: Sequence[RankRequest], *, ads: int) -> dict[str, np.ndarray]:
        """See `Ranker`; slots are those of the generator, of the past ads that the index knows."""
        spec, width = self._spec, self._tables.width
        inputs = {
            "slots": np.zeros((len(requests), spec.slots, spec.columns), np.int32),
            "profile": np.stack([request.profile for request in requests]).astype(np.int32),
            "slot_vectors": np.zeros((len(requests), spec.slots, width), np.float32),
            "ad_vectors": np.zeros((len(requests), ads, width), np.float32),
            "log_p": np.zeros((len(requests), ads), np.float32),
        }
        for row, request in enumerate(requests):
            inputs["ad_vectors"][row, : len(request.ads)] = self._tables.of_ads(request.ads, request.sids)
            inputs["log_p"][row, : len(request.ads)] = request.log_p
            past = select_events(
                spec,
                request.past_ads,
                behaviors=request.past_behaviors,
                timestamps=request.past_times,
                now=request.now,
            )
            shown = past.events >= 0
            if shown.any():
                sids = request.past_sids[past.events]  # of empty slots anything
                inputs["slots"][row] = join_codes(sids, past.columns, shown=shown)
                vectors = self._tables.of_ads(request.past_ads[past.events[shown]], sids[shown])
                inputs["slot_vectors"][row, shown] = vectors
        return inputs
