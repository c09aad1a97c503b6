"""Quality gate of a precision below FP32: nearly the same beams, recall and expected values, or no bundle."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.compare import CUTOFF, Found, compare, search
from export.gate_requests import GateRequests
from serving.engines.ort import OrtExecutor
from serving.search.normalise import Normalise
from serving.search.widths import WidthPlan
from training.evaluation.metrics import ranking_metrics
from training.preset.precision import Precision, PrecisionConfig


class GateError(RuntimeError):
    """The graphs of a lower precision do not find what the FP32 graphs find."""


@dataclass(frozen=True)
class Gate:
    """What a precision is measured with, and what it must reach.

    Attributes:
        requests: searched with both precisions. Without targets (random requests for seeded weights) figures
            are taken, but nothing is demanded of them: an untrained model barely prefers one beam to another.
        config: thresholds.
        plan: widths that serve.
        normalise: as served, see `beam_search`.
        threads: CPU threads of each graph.
    """

    requests: GateRequests
    config: PrecisionConfig
    plan: WidthPlan
    normalise: tuple[Normalise, ...] | None = None
    threads: int = 1

    def run(
        self, fp32: Path, lower: Path, *, precision: Precision, value_table: np.ndarray
    ) -> dict[str, Any]:
        """Figures of the graphs in folder `lower` against those in folder `fp32`, for the manifest.

        Args:
            fp32: folder of the graphs that passed parity.
            lower: folder of the graphs to judge.
            precision: their precision.
            value_table: float32 [V_value], mean eCPM of each value bucket.

        Raises:
            GateError: a threshold is missed, or a figure is not a number.
        """
        began = time.monotonic()
        levels = len(self.plan.sid)
        found = {
            name: search(
                OrtExecutor(folder, levels=levels, threads=self.threads, fuse=name != "fp8"),
                self.requests,
                plan=self.plan,
                normalise=self.normalise,
                batch_size=self.config.gate_batch_size,
                value_table=value_table,
                title=f"gate {name}",
            )
            for name, folder in (("fp32", fp32), (precision, lower))
        }
        gated = self.requests.targets is not None
        figures: dict[str, Any] = {
            "gated": gated,
            "requests": len(self.requests.slots),
            "requests_from": "validation weeks" if gated else "random, seeded weights: nothing is demanded",
            "seed": self.config.seed,
            "batch_size": self.config.gate_batch_size,
            "widths": str(self.plan),
            "normalise": "-".join(self.normalise or ("codebook",) * levels),
            **compare(found["fp32"], found[precision]),
            "recall50": self._recall(found, precision=precision),
            "thresholds": self.config.model_dump(include=set(_THRESHOLDS)),
            "seconds": round(time.monotonic() - began, 1),
        }
        if gated:
            check(figures, precision=precision)
        return figures

    def _recall(self, found: dict[str, list[Found]], *, precision: Precision) -> dict[str, float | None]:
        targets = self.requests.targets
        if targets is None:
            return {"fp32": None, precision: None, "relative_loss": None}
        ones = [np.ones(len(t)) for t in targets]
        before, after = (
            ranking_metrics([f.ads for f in found[name]], targets, values=ones, cutoffs=(CUTOFF,))["recall"][
                str(CUTOFF)
            ]
            for name in ("fp32", precision)
        )
        loss = (before - after) / before if before else 0.0  # nothing found, nothing to lose
        return {"fp32": before, precision: after, "relative_loss": loss}


_THRESHOLDS = {
    "min_overlap50": "overlap@50 of the beams with FP32 of at least {limit:g}, got {value:.4f}",
    "max_recall50_loss": "relative loss of recall@50 of at most {limit:g}, got {value:.4f}",
    "max_value_error": "relative error of expected values of at most {limit:g}, got {value:.4f}",
}


def check(figures: dict[str, Any], *, precision: Precision) -> None:
    """Compare figures with the thresholds among them.

    Raises:
        GateError: names every threshold that is missed, expected and actual.
    """
    values = {
        "min_overlap50": figures["overlap"]["50"],
        "max_recall50_loss": figures["recall50"]["relative_loss"],
        "max_value_error": figures["expected_value"]["error"],
    }
    missed = []
    for name, value in values.items():
        limit = figures["thresholds"][name]
        # Written so that a figure that is not a number misses its threshold.
        if not (value >= limit if name.startswith("min_") else value <= limit):
            missed.append(f"{_THRESHOLDS[name].format(limit=limit, value=value)} (precision.{name})")
    if missed:
        raise GateError(
            f"precision {precision}: expected {'; '.join(missed)}; measured on {figures['requests']} "
            f"requests ({figures['requests_from']}); the bundle is not published"
        )


def summary(figures: dict[str, Any], *, precision: Precision) -> str:
    """The figures in one line."""
    recall = figures["recall50"]
    parts = [
        f"{precision} against fp32 on {figures['requests']} requests ({figures['requests_from']})",
        f"overlap@10 {figures['overlap']['10']:.4f}, @50 {figures['overlap']['50']:.4f}, "
        f"all {figures['beams']} {figures['overlap']['all']:.4f}",
    ]
    if figures["gated"]:
        parts.append(
            f"recall@50 {recall[precision]:.4f} instead of {recall['fp32']:.4f} "
            f"(relative loss {recall['relative_loss']:.2%})"
        )
    parts.append(f"error of expected values {figures['expected_value']['error']:.2%}")
    return "; ".join(parts) + f"; {figures['seconds']} s"
