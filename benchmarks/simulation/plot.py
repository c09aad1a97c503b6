"""The table as a picture: each arm against the baseline, and value against drift along the curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def plot(table: dict[str, Any], path: Path, *, metrics: list[str]) -> None:
    """Draw; arms that are not there are left out, and named below."""
    rows = {name: row for name, row in table["rows"].items() if row["metrics"]}
    figure, axes = plt.subplots(
        1, len(metrics) + 1, figsize=(4.2 * (len(metrics) + 1), 1.6 + 0.32 * len(rows)), layout="constrained"
    )
    for axis, metric in zip(axes, metrics, strict=False):
        _against(axis, rows, metric)
    axes[0].set_yticks(range(len(rows)), [row["name"] for row in rows.values()])
    for axis in axes[1:-1]:
        axis.set_yticks(range(len(rows)), [])
    _curves(axes[-1], rows, metric=metrics[0], baseline=table["baseline"])
    empty = [row["name"] for row in table["rows"].values() if not row["metrics"]]
    note = f"; not there: {'; '.join(empty)}" if empty else ""
    figure.suptitle(
        f"simulation, {table['requests']} requests, {table['seeds']} seeds, 95 % intervals over users{note}",
        fontsize=9,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _against(axis: Axes, rows: dict[str, Any], metric: str) -> None:
    axis.axvline(0, color="#999999", linewidth=1)
    for y, row in enumerate(rows.values()):
        cell = row["metrics"].get(metric, {})
        if cell.get("ratio") is None:
            continue
        ratio, low, high = (100 * cell[key] for key in ("ratio", "low", "high"))
        axis.plot([low, high], [y, y], color=COLOURS[0], linewidth=2)
        axis.plot(ratio, y, "o", color=COLOURS[0], markersize=5)
        axis.annotate(f"{ratio:+.1f}", (ratio, y), xytext=(0, 5), textcoords="offset points", fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.margins(x=0.12)  # room for the numbers
    axis.set_xlabel(f"{metric}, % against the baseline", fontsize=8)
    axis.grid(axis="x", alpha=0.3)


def _curves(axis: Axes, rows: dict[str, Any], *, metric: str, baseline: str) -> None:
    """Arms with a drift; those of one curve are joined, with the baseline, which is their strength 0."""
    drifted = [row for row in rows.values() if row["drift"] is not None]
    points = [(row, row["metrics"][metric].get("ratio")) for row in drifted]
    points = [(row, 100 * ratio) for row, ratio in points if ratio is not None]
    for colour, curve in zip(COLOURS * 4, dict.fromkeys(row["curve"] for row, _ in points), strict=False):
        of = [(row, ratio) for row, ratio in points if row["curve"] == curve]
        if curve is not None and rows[baseline]["drift"] is not None:
            of.append((rows[baseline], 0.0))
        place = sorted((row["drift"], ratio) for row, ratio in of)
        style = "o" if curve is None else "o-"
        axis.plot(*zip(*place, strict=True), style, color=colour, label=curve, markersize=5)
    for row, ratio in points:
        axis.annotate(
            row["name"], (row["drift"], ratio), xytext=(4, 3), textcoords="offset points", fontsize=7
        )
    axis.margins(x=0.35, y=0.1)
    axis.set_xlabel("drift, mean log p / p of the baseline", fontsize=8)
    axis.set_ylabel(f"{metric}, %", fontsize=8)
    axis.grid(alpha=0.3)
    if any(row["curve"] for row, _ in points):
        axis.legend(frameon=False, fontsize=7)
