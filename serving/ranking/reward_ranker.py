"""Ranker of kind `reward`: features of each ad in a request -> p x value of a reward model.

Letters: B requests, n ads, F numbers, P columns of profile and request.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from serving.model.bundle import BundleError
from serving.model.features import BEHAVIORS
from serving.model.manifest import Manifest, RewardRankerSpec
from serving.ranking.ad_codes import AD
from serving.ranking.features import NUMBERS, Features, Request, feature_set, features_of
from serving.ranking.ranker import Ranker, RankGraph, RankRequest
from serving.ranking.tables import RankerTables


class RewardRanker(Ranker):
    """Tables and graph of a reward model.

    Its graph may take `Features.numbers` float32 [B, n, F], `Features.value` float32 [B, n], and the codes
    int32 [B, P].
    """

    kind = "reward"
    takes = ("numbers", "mean_value", "profile")

    def __init__(
        self, manifest: Manifest, tables: RankerTables, graph: RankGraph, *, pad_to: int = 1
    ) -> None:
        """Put them together.

        Args:
            manifest: of a bundle that has such a ranker.
            tables: of the bundle.
            graph: runs its graph.
            pad_to: see `Ranker`.

        Raises:
            BundleError: the bundle has none, or its ranker takes what this release does not make.
        """
        super().__init__(graph, inputs=self.inputs_of(manifest), pad_to=pad_to)
        spec = manifest.ranker
        assert isinstance(spec, RewardRankerSpec)
        expected = feature_set(manifest.features.column_sizes)
        if spec.features != expected:
            raise BundleError(
                f"model version {manifest.version}: expected a ranker over the features {expected} of this "
                f"release, got {spec.features}: fit it again and export"
            )
        self._wanted = np.array([BEHAVIORS[name] for name in spec.target_behaviors], np.int32)
        self._tables = tables

    @classmethod
    def load(cls, bundle: str | Path, manifest: Manifest, graph: RankGraph, *, pad_to: int = 1) -> Self:
        """With the tables of a bundle.

        Raises:
            BundleError: see `__init__` and `RankerTables.load`.
        """
        return cls(manifest, RankerTables.load(bundle), graph, pad_to=pad_to)

    @property
    def ad_ids(self) -> np.ndarray:
        """See `Ranker`."""
        return self._tables.ad_ids

    def features(self, request: RankRequest) -> Features:
        """Of the ads of a request; the same as training's, by the same code."""
        count = len(request.ads)
        codes = self._tables.ad_codes.of(
            np.concatenate([request.ads, request.past_ads]), np.concatenate([request.sids, request.past_sids])
        )
        past = codes[count:]
        had = np.isin(request.past_behaviors, self._wanted)
        known = Request(
            codes=past[had],
            times=request.past_times[had],
            seen_codes=past[:, AD],
            seen_times=request.past_times,
            now=request.now,
            profile=request.profile,
        )
        return features_of(known, codes[:count], statistics=self._tables.statistics)

    def tensors(self, requests: Sequence[RankRequest], *, ads: int) -> dict[str, np.ndarray]:
        """See `Ranker`."""
        shape = len(requests), ads
        inputs = {
            "numbers": np.zeros((*shape, len(NUMBERS)), np.float32),
            "mean_value": np.zeros(shape, np.float32),
            "profile": np.stack([request.profile for request in requests]).astype(np.int32),
        }
        for row, request in enumerate(requests):
            of, count = self.features(request), len(request.ads)
            inputs["numbers"][row, :count], inputs["mean_value"][row, :count] = of.numbers, of.value
        return inputs
