"""What the ad resolver shows of the index and of its answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.backend.metrics import RESOLVER, Metrics
from serving.backend.resolve import NO_AD
from serving.index.reader import IndexReader


class ResolverMetrics:
    """Of one process. What it says of the index moves with requests: an idle server shows what it saw."""

    PERIOD_S = 1.0  # between two looks at the index

    def __init__(self, triton: Any, reader: IndexReader) -> None:
        """Register."""
        self._metrics, self._reader, self._due = Metrics(triton, RESOLVER, labels={}), reader, 0.0

    def close(self) -> None:
        """See `Metrics.close`."""
        self._metrics.close()

    def look(self) -> None:
        """Show the index as it is; call between batches."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self.PERIOD_S
        self._metrics.set("gr4ad_index_version", self._reader.version)
        self._metrics.set("gr4ad_index_lag_seconds", self._reader.lag_s())

    def count(self, ad_ids: np.ndarray, num_ads: np.ndarray) -> None:
        """Count an answer: ad_ids int64 [b, k], -1 is padding, num_ads int32 [b, 1]."""
        found = (ad_ids != NO_AD).sum(axis=1)
        self._metrics.add("gr4ad_ads_returned_total", int(found.sum()))
        self._metrics.add("gr4ad_short_answers_total", int((found < num_ads[:, 0]).sum()))

    def show_served(self) -> None:
        """Have the counters of the served log there, at 0."""
        for result in ("written", "dropped", "failed"):
            self._metrics.show("gr4ad_served_records_total", result=result)

    def served(self, counts: Mapping[str, int]) -> None:
        """Records since the last call, by what became of them."""
        for result, count in counts.items():
            self._metrics.add("gr4ad_served_records_total", count, result=result)

    def ranked(self, answers: int, *, seconds: float) -> None:
        """Count what the ranking stage did with a batch."""
        self._metrics.add("gr4ad_reranked_total", answers)
        self._metrics.observe("gr4ad_rerank_seconds", seconds)
