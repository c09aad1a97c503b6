"""The ranking stage of one model version: ads of a request -> features -> the graph `ad_ranker` -> worth.

The bundle says what its ranker is (`RankerSpec` of the manifest) and which of the inputs below its graph
takes; the graph gives one number an ad, `worth`, and the largest comes first. Another kind of ranker is
another graph, over these inputs or over ones that are added here.

Letters: B requests, n ads, F numbers, h past events, P columns of profile and request, T SID levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from serving.model.bundle import BundleError
from serving.model.features import BEHAVIORS
from serving.model.manifest import AD_RANKER, Manifest
from serving.ranking.ad_codes import AD
from serving.ranking.features import NUMBERS, Features, Request, feature_set, features_of
from serving.ranking.tables import RankerTables

INPUTS = ("numbers", "mean_value", "profile")
"""What a graph may take: `Features.numbers` float32 [B, n, F], `Features.value` float32 [B, n], and the codes
int32 [B, P]."""
OUTPUT = "worth"
"""float32 [B, n]."""


class RankGraph(Protocol):
    """Whoever runs the graph of one version."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Worth float32 [B, n]."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class RankRequest:
    """Ads of one request to be ordered, and what is known of it.

    Attributes:
        ads: int64 [n].
        sids: int32 [n, T].
        past_ads: int64 [h], of the events that count, see `serving.model.features.History`.
        past_sids: int32 [h, T].
        past_behaviors: int32 [h].
        past_times: int64 [h], unix seconds.
        now: of the request, unix seconds.
        profile: int32 [P], codes of profile and request features.
    """

    ads: np.ndarray
    sids: np.ndarray
    past_ads: np.ndarray
    past_sids: np.ndarray
    past_behaviors: np.ndarray
    past_times: np.ndarray
    now: int
    profile: np.ndarray


class Ranker:
    """A version's tables and graph; see `RankRequest` for what it is asked."""

    def __init__(
        self, manifest: Manifest, tables: RankerTables, graph: RankGraph, *, pad_to: int = 1
    ) -> None:
        """Put them together.

        Args:
            manifest: of a bundle that has a ranker.
            tables: of the bundle.
            graph: runs its graph.
            pad_to: calls have rows for at least so many ads a request, so that most are of one shape.

        Raises:
            BundleError: the bundle has none, or its ranker takes what this release does not make.
        """
        where, spec = f"model version {manifest.version}", manifest.ranker
        self._where, self._levels, self._columns = where, manifest.levels, len(manifest.features.column_sizes)
        if spec is None:
            raise BundleError(f"{where}: expected a bundle with a ranker, got one without")
        expected = feature_set(manifest.features.column_sizes)
        if spec.features != expected:
            raise BundleError(
                f"{where}: expected a ranker over the features {expected} of this release, got "
                f"{spec.features}: fit it again and export"
            )
        tensors = manifest.graphs[AD_RANKER]
        self._inputs = tuple(name for name, *_ in tensors["inputs"])
        outputs = [name for name, *_ in tensors["outputs"]]
        if set(self._inputs) - set(INPUTS) or outputs != [OUTPUT]:
            raise BundleError(
                f"{where}: {AD_RANKER}: expected inputs among {', '.join(INPUTS)} and the output {OUTPUT}, "
                f"got {', '.join(self._inputs)} and {', '.join(outputs)}"
            )
        self._wanted = np.array([BEHAVIORS[name] for name in spec.target_behaviors], np.int32)
        self._tables, self._graph, self._pad_to = tables, graph, pad_to

    @classmethod
    def load(cls, bundle: str | Path, manifest: Manifest, graph: RankGraph, *, pad_to: int = 1) -> Self:
        """With the tables of a bundle.

        Raises:
            BundleError: see `__init__` and `RankerTables.load`.
        """
        return cls(manifest, RankerTables.load(bundle), graph, pad_to=pad_to)

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

    def worth(self, requests: Sequence[RankRequest]) -> list[np.ndarray]:
        """What showing each ad is worth, float32 [n] a request; one call of the graph for all of them."""
        found = [self.features(request) for request in requests]
        counts = [len(of.value) for of in found]
        shape = len(found), max(self._pad_to, *counts)
        inputs = {
            "numbers": np.zeros((*shape, len(NUMBERS)), np.float32),
            "mean_value": np.zeros(shape, np.float32),
            "profile": np.stack([request.profile for request in requests]).astype(np.int32),
        }
        for row, (of, count) in enumerate(zip(found, counts, strict=True)):
            inputs["numbers"][row, :count], inputs["mean_value"][row, :count] = of.numbers, of.value
        worth = self._graph({name: inputs[name] for name in self._inputs})
        return [worth[row, :count] for row, count in enumerate(counts)]

    def probe(self) -> None:
        """Rank one ad for a user without history.

        Raises:
            BundleError: the graph fails, or gives anything but one number an ad.
        """
        ad = self._tables.ad_ids[:1]
        none = np.zeros(0, np.int64)
        sids = np.zeros((1, self._levels), np.int32)
        request = RankRequest(
            ads=ad,
            sids=sids,
            past_ads=none,
            past_sids=sids[:0],
            past_behaviors=none,
            past_times=none,
            now=0,
            profile=np.zeros(self._columns, np.int32),
        )
        try:
            [worth] = self.worth([request])
        except Exception as error:  # engines raise many kinds
            raise BundleError(f"{self._where}: {AD_RANKER} fails: {error}") from error
        if worth.shape != (1,) or not np.isfinite(worth).all():
            raise BundleError(f"{self._where}: {AD_RANKER}: expected one finite number an ad, got {worth}")


def best_first(worth: np.ndarray) -> np.ndarray:
    """Positions int64 [n] of ads by worth, the largest first; equals keep their order."""
    return np.argsort(-worth, kind="stable")
