"""report.png: one time axis for offered and completed rate, latency, beams, queue and failures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from loadtest.outcomes import OUTCOMES
from loadtest.shapes import Shape

# Okabe and Ito's colours, which colour-blind readers tell apart; lines differ in style as well.
_BLACK, _ORANGE, _SKY, _GREEN, _YELLOW, _BLUE, _RED, _PINK = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
_FAILURES = dict(
    zip(
        OUTCOMES[1:],
        (_ORANGE, _RED, _BLACK, _PINK, _SKY, _YELLOW, _GREEN, _BLUE, "#999999"),
        strict=True,
    )
)
_REQUESTS_A_STEP = 20  # a percentile of fewer says little
_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


def step_for(requests: int, seconds: float) -> int:
    """Seconds a point of the picture: enough for some 20 requests at the mean rate, at most 600 points."""
    wanted = max(_REQUESTS_A_STEP * seconds / max(requests, 1), seconds / 600)
    # A short test keeps ten points, however few requests it has.
    wanted = min(wanted, max(seconds / 10, 1))
    return next((step for step in _STEPS if step >= wanted), _STEPS[-1])


def draw(
    table: pl.DataFrame, path: Path, *, title: str, step_s: float, shape: Shape | None, slo_ms: float | None
) -> None:
    """Draw a `summary.timeline`.

    Args:
        table: a row a step.
        path: of the PNG.
        title: above it all.
        step_s: seconds a row.
        shape: offered rate, of an open loop.
        slo_ms: limit of the latency, drawn as a line.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.titlesize": 11, "axes.spines.top": False})
    heights = (2.2, 2.6, 1.5, 1.5, 1.5)
    figure, axes = plt.subplots(
        5, 1, figsize=(12, 13), sharex=True, height_ratios=heights, layout="constrained"
    )
    columns = {name: table[name].cast(pl.Float64).to_numpy() for name in table.columns}
    x = columns["second"] + step_s / 2
    _rates(axes[0], x, columns, shape)
    _latencies(axes[1], x, columns, slo_ms)
    _beams(axes[2], x, columns)
    _queue(axes[3], x, columns)
    _failures(axes[4], columns, step_s)
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.set_xlim(0, float(columns["second"][-1] + step_s))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0)
    axes[-1].set_xlabel(f"seconds from the start (a point is {step_s:g} s)")
    figure.suptitle(title, fontsize=12, ha="left", x=0.01)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _rates(axis: Any, x: np.ndarray, columns: dict[str, np.ndarray], shape: Shape | None) -> None:
    axis.set_ylabel("requests / s")
    if shape is not None:
        fine = np.linspace(0, shape.duration_s, 2000, endpoint=False)
        axis.plot(fine, shape.rate(fine), color=_BLACK, ls="--", lw=1.5, label="offered (shape)")
    axis.plot(x, columns["arrived_qps"], color=_SKY, lw=1.5, label="arrived")
    axis.plot(x, columns["completed_qps"], color=_BLUE, lw=2.2, label="completed ok")
    axis.set_ylim(bottom=0)


def _latencies(axis: Any, x: np.ndarray, columns: dict[str, np.ndarray], slo_ms: float | None) -> None:
    for name, colour, style in (("p50", _GREEN, "-"), ("p95", _ORANGE, "--"), ("p99", _RED, "-.")):
        values = columns[f"{name}_ms"]
        axis.plot(x, values, color=colour, ls=style, lw=1.8, marker=".", ms=5, label=name)
    if slo_ms is not None:
        axis.axhline(slo_ms, color=_BLACK, lw=1.2, ls=":", label=f"SLO {slo_ms:g} ms")
    axis.set_yscale("log")
    axis.set_ylabel("latency, ms (log)\nby intended start")
    low, high = axis.get_ylim()
    ticks = [m * 10**e for e in range(-1, 7) for m in (1, 2, 5) if low <= m * 10**e <= high]
    if math.log10(high / low) > 3:
        ticks = [t for t in ticks if f"{t:g}".strip("0.")[:1] == "1"]
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_yticks([], minor=True)


def _beams(axis: Any, x: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    axis.set_ylabel("beam rows\na request")
    axis.plot(x, columns["beam_rows"], color=_PINK, lw=2, marker=".", ms=5, label="mean of answers")
    if "gr4ad_beam_rows" in columns:
        axis.plot(
            *_present(x, columns["gr4ad_beam_rows"]), color=_BLACK, ls="--", lw=1.4, label="server's gauge"
        )
    axis.set_ylim(bottom=0)


def _queue(axis: Any, x: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    axis.set_ylabel("queue of\nbeam_scheduler")
    if "pending" in columns:
        axis.step(
            *_present(x, columns["pending"]), where="mid", color=_BLUE, lw=1.8, label="pending requests"
        )
    else:
        axis.text(
            0.5, 0.5, "the metrics page was not read", ha="center", va="center", transform=axis.transAxes
        )
    axis.set_ylim(bottom=0, top=max(1.0, axis.get_ylim()[1]))


def _failures(axis: Any, columns: dict[str, np.ndarray], step_s: float) -> None:
    axis.set_ylabel(f"failed requests\nin {step_s:g} s")
    below = np.zeros(len(columns["second"]))
    for name, colour in _FAILURES.items():
        if columns[name].any():
            axis.bar(
                columns["second"], columns[name], step_s, bottom=below, align="edge", color=colour,
                edgecolor="white", linewidth=0.3, label=name.replace("_", " "),
            )  # fmt: skip
            below = below + columns[name]
    if not below.any():
        axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes)
        axis.set_yticks([])
    axis.set_ylim(bottom=0, top=max(1.0, float(below.max()) * 1.1))


def _present(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    there = ~np.isnan(y)
    return x[there], y[there]
