"""Versions that answer otherwise, made in a moment from one that is there, and what they must answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks import catalogue
from serving.backend.resolve import resolve
from serving.engines.ort import OrtExecutor
from serving.files import new_folder, sha256
from serving.index.reader import IndexReader
from serving.index.snapshot import Snapshot
from serving.model.bundle import MANIFEST, read_manifest
from serving.model.features import fill_slots
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan

Answer = dict[str, np.ndarray]
CHECKED = ("ad_ids", "sids", "scores", "expected_value")


def add_variant(bundles: Path, version: int, *, source: int) -> None:
    """Write a bundle like `source` with noise on the weights of every graph, other noise in each version."""
    manifest = json.loads((bundles / str(source) / MANIFEST).read_text())
    with new_folder(bundles / str(version)) as work:
        shutil.copytree(bundles / str(source), work, dirs_exist_ok=True)
        for stem in manifest["graphs"]:
            path = work / f"{stem}.onnx"
            graph = onnx.load(str(path))
            largest = max(graph.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
            weights = numpy_helper.to_array(largest)
            noise = np.random.default_rng(version).normal(size=weights.shape) * weights.std() / 2
            largest.CopyFrom(
                numpy_helper.from_array((weights + noise).astype(weights.dtype), name=largest.name)
            )
            onnx.save(graph, str(path))
            manifest["sha256"][path.name] = sha256(path)
        (work / MANIFEST).write_text(json.dumps(manifest | {"model_version": version}, indent=1))


class Expected:
    """Answers of versions to fixed requests, by the functions that serve, in this process."""

    def __init__(self, bundles: Path, index: Path, requests: list[Answer], *, widths: str) -> None:
        """Read the index, which nobody may change meanwhile; `requests` are of one row each."""
        reader = IndexReader(index)
        reader.close()  # LMDB opens a file once a process; the snapshot is all that is needed
        self._snapshot: Snapshot = reader.snapshot
        self._bundles, self._requests, self._widths = bundles, requests, widths
        self._known: dict[int, list[Answer]] = {}

    def of(self, version: int) -> list[Answer]:
        """One answer a request."""
        if version not in self._known:
            self._known[version] = self._search(version)
        return self._known[version]

    def _search(self, version: int) -> list[Answer]:
        bundle, snapshot = self._bundles / str(version), self._snapshot
        manifest = read_manifest(bundle, verify=False)
        executor = OrtExecutor(bundle, levels=manifest.levels)
        answers = []
        for request in self._requests:
            features = catalogue.features(manifest.features, snapshot, request)
            beams = beam_search(
                executor,
                snapshot.trie,
                fill_slots(snapshot, features.slot_ads[None], features.slots[None]),
                features.profile[None],
                plan=WidthPlan.parse(self._widths, levels=manifest.levels),
                num_results=request["num_ads"][0],
                value_table=manifest.value_table,
            )
            ads = resolve(
                snapshot,
                beams.sids[0],
                scores=beams.scores[0],
                expected_value=beams.expected_value[0],
                num_ads=int(request["num_ads"][0, 0]),
                exclude=np.zeros(0, np.int64),
            )
            answers.append({name: getattr(ads, name) for name in CHECKED})
        return answers
