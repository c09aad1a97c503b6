"""The ranking stage of one model version: ads of a request -> the graph `ad_ranker` -> worth, best first.

The bundle says what its ranker is (`ranker` of the manifest). Each kind makes the inputs of its graph, in a
module of its own; the graph gives one number an ad, `worth`, and the largest comes first.

Letters: B requests, n ads, h past events, P columns of profile and request, T SID levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from serving.model.bundle import BundleError
from serving.model.manifest import AD_RANKER, Manifest, RankerKind

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
        log_p: float32 [n], of each ad's SID, as the search found it.
        past_ads: int64 [h], of the events that count, see `serving.model.features.History`.
        past_sids: int32 [h, T].
        past_behaviors: int32 [h].
        past_times: int64 [h], unix seconds.
        now: of the request, unix seconds.
        profile: int32 [P], codes of profile and request features.
    """

    ads: np.ndarray
    sids: np.ndarray
    log_p: np.ndarray
    past_ads: np.ndarray
    past_sids: np.ndarray
    past_behaviors: np.ndarray
    past_times: np.ndarray
    now: int
    profile: np.ndarray


class Ranker(ABC):
    """A version's tables and graph; see `RankRequest` for what it is asked.

    Attributes:
        kind: what it is called in a manifest.
        takes: inputs that its graph may have.
    """

    kind: ClassVar[RankerKind]
    takes: ClassVar[tuple[str, ...]]

    def __init__(self, graph: RankGraph, *, inputs: tuple[str, ...], pad_to: int = 1) -> None:
        """Put together.

        Args:
            graph: runs the graph.
            inputs: those of `takes` that the graph has.
            pad_to: calls have rows for at least so many ads a request, so that most are of one shape.
        """
        self._graph, self._graph_inputs, self._pad_to = graph, inputs, pad_to

    @classmethod
    def inputs_of(cls, manifest: Manifest) -> tuple[str, ...]:
        """Inputs of the graph of a bundle.

        Raises:
            BundleError: it has no ranker, one of another kind, or one that takes what this release does not
                make.
        """
        where = f"model version {manifest.version}"
        if manifest.ranker_kind != cls.kind:
            raise BundleError(
                f"{where}: expected a bundle with the ranker {cls.kind}, got "
                f"{manifest.ranker_kind or 'one without'}"
            )
        tensors = manifest.graphs[AD_RANKER]
        inputs = tuple(name for name, *_ in tensors["inputs"])
        outputs = [name for name, *_ in tensors["outputs"]]
        if set(inputs) - set(cls.takes) or outputs != [OUTPUT]:
            raise BundleError(
                f"{where}: {AD_RANKER}: expected inputs among {', '.join(cls.takes)} and the output "
                f"{OUTPUT}, got {', '.join(inputs)} and {', '.join(outputs)}"
            )
        return inputs

    @abstractmethod
    def tensors(self, requests: Sequence[RankRequest], *, ads: int) -> dict[str, np.ndarray]:
        """Inputs of the graph, rows for `ads` ads a request; those behind a request's own are padding."""

    @property
    @abstractmethod
    def ad_ids(self) -> np.ndarray:
        """Of the catalogue that it was made with, int64 [A], A > 0."""

    def worth(self, requests: Sequence[RankRequest]) -> list[np.ndarray]:
        """What showing each ad is worth, float32 [n] a request; one call of the graph for all of them."""
        counts = [len(request.ads) for request in requests]
        inputs = self.tensors(requests, ads=max(self._pad_to, *counts))
        worth = self._graph({name: inputs[name] for name in self._graph_inputs})
        return [worth[row, :count] for row, count in enumerate(counts)]

    def probe(self, manifest: Manifest) -> None:
        """Rank one ad for a user without history.

        Raises:
            BundleError: the graph fails, or gives anything but one number an ad.
        """
        none, where = np.zeros(0, np.int64), f"model version {manifest.version}: {AD_RANKER}"
        sids = np.zeros((1, manifest.levels), np.int32)
        request = RankRequest(
            ads=self.ad_ids[:1],
            sids=sids,
            log_p=np.zeros(1, np.float32),
            past_ads=none,
            past_sids=sids[:0],
            past_behaviors=none,
            past_times=none,
            now=0,
            profile=np.zeros(len(manifest.features.column_sizes), np.int32),
        )
        try:
            [worth] = self.worth([request])
        except Exception as error:  # engines raise many kinds
            raise BundleError(f"{where} fails: {error}") from error
        if worth.shape != (1,) or not np.isfinite(worth).all():
            raise BundleError(f"{where}: expected one finite number an ad, got {worth}")


def best_first(worth: np.ndarray) -> np.ndarray:
    """Positions int64 [n] of ads by worth, the largest first; equals keep their order."""
    return np.argsort(-worth, kind="stable")
