"""Requests to the tiny deployment, and the answers it must give.

Letters: b rows of one client request, N history events, P profile columns, E excluded ads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc

from benchmarks import catalogue
from examples.client import send
from serving.backend.request import Features
from serving.backend.resolve import resolve
from serving.engines.ort import OrtExecutor
from serving.index.reader import IndexReader
from serving.index.snapshot import Snapshot
from serving.model.bundle import read_manifest
from serving.model.current import current_version
from serving.model.features import FeatureSpec, fill_slots
from serving.model.value_correction import ValueCorrection
from serving.search.beam_search import beam_search
from serving.search.beams import Beams
from serving.search.normalise import Normalise
from serving.search.rank import RankBy
from serving.search.widths import WidthPlan
from tests.pipeline import WIDTHS, Pipeline
from tests.tiny import SPEC, tiny_catalogue

NOW = 1_700_000_000
AD_IDS, SIDS, ACTIVE = tiny_catalogue()
LIVE = AD_IDS[ACTIVE]


def request(
    *, history: int = 6, rows: int = 1, num_ads: int = 5, exclude: list[int] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """A good request; histories hold paused ads too."""
    random = np.random.default_rng(seed)
    tensors = {
        "history_ad_ids": random.choice(AD_IDS, (rows, history)),
        "history_behaviors": random.integers(1, 4, (rows, history)).astype(np.int32),
        "history_timestamps": NOW - random.integers(0, 10_000_000, (rows, history)),
        "profile": np.stack([random.integers(0, s, rows) for s in SPEC.profile_sizes], 1).astype(np.int32),
        "num_ads": np.full((rows, 1), num_ads, np.int32),
        "timestamp": np.full((rows, 1), NOW, np.int64),
    }
    if exclude is not None:
        tensors["exclude_ad_ids"] = np.tile(np.array(exclude, np.int64), (rows, 1))
    return tensors


def infer(
    url: str,
    tensors: dict[str, tuple[str, np.ndarray]],
    *,
    model: str = "gr4ad",
    parameters: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Send tensors with any dtype under any name over gRPC; all outputs."""
    client = tritonclient.grpc.InferenceServerClient(url)
    try:
        inputs = []
        for name, (dtype, values) in tensors.items():
            tensor = tritonclient.grpc.InferInput(name, list(values.shape), dtype)
            tensor.set_data_from_numpy(values)
            inputs.append(tensor)
        result = client.infer(model, inputs, parameters=parameters, client_timeout=20)
        return {o.name: result.as_numpy(o.name) for o in result.get_response().outputs}
    finally:
        client.close()


def send_at_once(
    url: str, asked: Sequence[tuple[dict[str, np.ndarray], str]], *, parameter: str
) -> list[dict[str, np.ndarray]]:
    """Answers of requests that eight clients send together, searched anew, each with its own parameter."""

    def one(a: tuple[dict[str, np.ndarray], str]) -> dict[str, np.ndarray]:
        return send(url, a[0], parameters={parameter: a[1], "cache": "bypass"})

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, asked))


@dataclass(frozen=True)
class Reference:
    """The request path in this process: ONNX Runtime and the product's functions, without Triton."""

    snapshot: Snapshot
    executor: OrtExecutor
    value_table: np.ndarray
    value_correction: ValueCorrection
    spec: FeatureSpec = SPEC

    @classmethod
    def of(cls, pipeline: Pipeline) -> Reference:
        """Reference of a deployment's current version."""
        bundle = pipeline.bundles / str(current_version(pipeline.bundles))
        manifest = read_manifest(bundle)
        reader = IndexReader(pipeline.index)
        reader.close()  # LMDB opens a file once a process; the snapshot is all that is needed
        return cls(
            reader.snapshot,
            OrtExecutor(bundle, levels=manifest.levels),
            manifest.value_table,
            ValueCorrection(manifest.value_correction),
            manifest.features,
        )

    def beams(
        self,
        tensors: dict[str, np.ndarray],
        row: int = 0,
        *,
        widths: str = WIDTHS,
        normalise: tuple[Normalise, ...] | None = None,
    ) -> tuple[Features, Beams]:
        """Features and beams of one row, searched alone."""
        snapshot = self.snapshot
        features = catalogue.features(self.spec, snapshot, tensors, row=row)
        beams = beam_search(
            self.executor,
            snapshot.trie,
            fill_slots(snapshot, features.slot_ads[None], features.slots[None]),
            features.profile[None],
            plan=WidthPlan.parse(widths, levels=3),
            num_results=np.array([int(tensors["num_ads"][row, 0])]),
            value_table=self.value_table,
            banned=[snapshot.banned_leaves(excluded(tensors, row))],
            normalise=normalise,
            value_correction=self.value_correction,
        )
        return features, beams

    def answer(
        self,
        tensors: dict[str, np.ndarray],
        row: int = 0,
        *,
        rank_by: RankBy = "probability",
        paused_since: Sequence[int] = (),
        **search: Any,
    ) -> dict[str, Any]:
        """Answer of one row, see `beams`; ads that were paused after the search are not in it."""
        features, beams = self.beams(tensors, row, **search)
        ads = resolve(
            self.snapshot,
            beams.sids[0],
            scores=beams.scores[0],
            expected_value=beams.expected_value[0],
            num_ads=int(tensors["num_ads"][row, 0]),
            exclude=np.append(excluded(tensors, row), np.array(paused_since, np.int64)),
            rank_by=rank_by,
        )
        return {
            "ad_ids": ads.ad_ids,
            "scores": ads.scores,
            "expected_value": ads.expected_value,
            "sids": ads.sids,
            "beam_widths": beams.widths,
            "ignored_history": features.ignored,
        }


def excluded(tensors: dict[str, np.ndarray], row: int) -> np.ndarray:
    """Ads that a row excludes, int64."""
    return tensors["exclude_ad_ids"][row] if "exclude_ad_ids" in tensors else np.zeros(0, np.int64)


def assert_same(answer: dict[str, np.ndarray], expected: dict[str, Any], *, row: int = 0) -> None:
    """Ads and SIDs equal, scores and values to 1e-5; an answer may be padded beyond the row's own num_ads."""
    count = len(expected["ad_ids"])
    for name in ("ad_ids", "sids"):
        np.testing.assert_array_equal(answer[name][row][:count], expected[name], err_msg=name)
        assert (answer[name][row][count:] == -1).all()
    for name in ("scores", "expected_value"):
        np.testing.assert_allclose(answer[name][row][:count], expected[name], atol=1e-5, err_msg=name)
    assert answer["ignored_history"][row, 0] == expected["ignored_history"]
