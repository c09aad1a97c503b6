"""The whole job of the server in this process: what Triton adds is measured against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import catalogue
from benchmarks.burst import CHECKED, Tensors
from serving.backend.resolve import resolve
from serving.backend.settings import ServingConfig
from serving.engines.ort import OrtGraphs
from serving.index.reader import IndexReader
from serving.model.active_model import ActiveModel
from serving.model.current import read_current
from serving.scheduler import Scheduler, SearchRequest
from serving.search.widths import WidthPlan

_NO_ADS = np.zeros(0, np.int64)


class InProcess:
    """The whole job without a server: features, search, ads, by the functions that the adapters call."""

    def __init__(self, run: Path, serving: ServingConfig) -> None:
        """Open bundle and index of a prepared run; LMDB allows that once a process."""
        bundles = run / "bundles"
        self.reader = IndexReader(run / "index")
        current = read_current(bundles, verify=False)
        self.spec = current.features
        graphs = OrtGraphs(bundles, threads=serving.threads)
        active = ActiveModel(
            bundles,
            reader=self.reader,
            graphs=graphs,
            features=self.spec,
            ranker=current.ranker_kind,
        )
        self.scheduler = Scheduler(
            self.reader,
            active,
            plan=WidthPlan.parse(serving.widths, levels=active.manifest.levels),
            make_executor=graphs.executor,
        )

    def answer(self, batch: list[Tensors]) -> list[Tensors]:
        """Answers of requests of one row each, searched together."""
        snapshot = self.reader.snapshot
        searches = []
        for tensors in batch:
            features = catalogue.features(self.spec, snapshot, tensors)
            searches.append(
                SearchRequest(
                    slot_ads=features.slot_ads,
                    slots=features.slots,
                    profile=features.profile,
                    num_ads=int(tensors["num_ads"][0, 0]),
                    exclude=_NO_ADS,
                )
            )
        answers = []
        for search, found in zip(searches, self.scheduler.search(searches).answers, strict=True):
            if isinstance(found, Exception):
                raise found
            ads = resolve(
                snapshot,
                found.sids,
                scores=found.scores,
                expected_value=found.expected_value,
                num_ads=search.num_ads,
                exclude=search.exclude,
            )
            answers.append({name: getattr(ads, name)[None] for name in CHECKED})
        return answers
