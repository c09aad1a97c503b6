"""Quality gate of new weights: on the same requests they find nearly what the weights that serve find."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.compare import CUTOFF, Found, compare, search
from export.gate import GateError
from export.gate_requests import GateRequests
from serving.engines.ort import OrtExecutor
from serving.files import sha256
from serving.model.manifest import Manifest
from serving.search.normalise import Normalise
from serving.search.widths import WidthPlan
from training.evaluation.metrics import ranking_metrics
from training.preset.publish import PublishConfig

_REMEMBERED = 2  # searches: of the version that serves, of the candidate


@dataclass
class RefitGate:
    """What new weights are measured with, and what they must reach.

    Attributes:
        requests: searched with both. Without targets (random requests) figures are taken, and only expected
            values must be close.
        config: thresholds.
        plan: widths that serve.
        normalise: as served, see `beam_search`.
        threads: CPU threads of each graph.
        batch_size: requests a search.
    """

    requests: GateRequests
    config: PublishConfig
    plan: WidthPlan
    normalise: tuple[Normalise, ...] | None = None
    threads: int = 1
    batch_size: int = 16
    _known: dict[tuple[object, ...], list[Found]] = field(default_factory=dict, init=False)

    def run(
        self, running: Path, candidate: Path, *, manifest: Manifest, value_table: np.ndarray
    ) -> dict[str, Any]:
        """Figures of the graphs in folder `candidate` beside those of the version that serves.

        Args:
            running: bundle of the version that serves, most often the candidate of before: what that found is
                known.
            candidate: folder with FP32 graphs.
            manifest: of `running`.
            value_table: float32 [V_value] of the candidate.

        Raises:
            GateError: a threshold is missed, or a figure is not a number.
        """
        began = time.monotonic()
        fuse = manifest.precision != "fp8"
        before = self._search(running, value_table=manifest.value_table, fuse=fuse)
        after = self._search(candidate, value_table=value_table)
        recall = [self._recall(found) for found in (before, after)]
        compared = compare(before, after)
        figures = {
            "requests": len(self.requests.slots),
            "recall50": recall,
            "overlap": compared["overlap"],
            "value_ratio": compared["expected_value"]["ratio"],
            "seconds": round(time.monotonic() - began, 2),
        }
        self._check(figures)
        return figures

    def _search(self, folder: Path, *, value_table: np.ndarray, fuse: bool = True) -> list[Found]:
        """By the graphs in a folder; of the last two that were searched it is known."""
        levels = len(self.plan.sid)
        stems = ("prefix", *(f"tail_{level}" for level in range(2, levels + 2)))
        key = (*(sha256(folder / f"{stem}.onnx") for stem in stems), value_table.tobytes())
        found = self._known.pop(key, None)
        if found is None:
            found = search(
                OrtExecutor(folder, levels=levels, threads=self.threads, fuse=fuse),
                self.requests,
                plan=self.plan,
                normalise=self.normalise,
                batch_size=self.batch_size,
                value_table=value_table,
                title=f"gate {folder.name}",
            )
        self._known[key] = found
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        return found

    def _recall(self, found: list[Found]) -> float | None:
        targets = self.requests.targets
        if targets is None:
            return None
        ones = [np.ones(len(t)) for t in targets]
        metrics = ranking_metrics([f.ads for f in found], targets, values=ones, cutoffs=(CUTOFF,))
        return float(metrics["recall"][str(CUTOFF)])

    def _check(self, figures: dict[str, Any]) -> None:
        (before, after), ratio, missed = figures["recall50"], figures["value_ratio"], []
        loss, most = self.config.max_recall50_loss, self.config.max_value_change
        # Written so that a figure that is not a number misses its threshold.
        if before is not None and not after >= before * (1 - loss):
            missed.append(
                f"recall@50 of at least {before * (1 - loss):.4f} (the version that serves: {before:.4f}), "
                f"got {after:.4f} (publish.max_recall50_loss)"
            )
        if not 1 / most <= ratio <= most:
            missed.append(
                f"expected values within a factor of {most:g} of those that serve, got one of {ratio:.3g} "
                "(publish.max_value_change)"
            )
        if missed:
            raise GateError(
                f"new weights: expected {'; '.join(missed)}; measured on {figures['requests']} requests; not "
                "published"
            )
