"""Values of request features that the model does not know: they count as unknown, and are counted."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from serving.backend.metrics import REQUEST_FEATURES, Metrics
from serving.backend.outcomes import TELL_EVERY_S
from serving.model.features import FeatureSpec

_NAME = "gr4ad_unknown_values_total"


class UnknownValues:
    """Counts for one model."""

    def __init__(self, triton: Any, spec: FeatureSpec) -> None:
        """Register a series for every request feature of `spec`, at 0."""
        self._metrics = Metrics(triton, REQUEST_FEATURES, labels={})
        self._untold, self._told_at = Counter[str](), -math.inf  # not in the metric yet
        for feature in spec.request_features:
            self._metrics.show(_NAME, feature=feature.name)

    def close(self) -> None:
        """Tell what is not told yet, and see `Metrics.close`."""
        self._tell()
        self._metrics.close()

    def count(self, features: Iterable[str]) -> None:
        """Count these, by name; the metric has them with the next call after `TELL_EVERY_S`."""
        self._untold.update(features)
        now = time.monotonic()
        if self._untold and now - self._told_at >= TELL_EVERY_S:
            self._tell()
            self._told_at = now

    def _tell(self) -> None:
        for feature, count in self._untold.items():
            self._metrics.add(_NAME, count, feature=feature)
        self._untold.clear()
