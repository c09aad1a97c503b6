"""The table as a picture: NDCG@10 of what was measured here, seeds as points, beside what others report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METRICS = {"recall10": "Recall@10", "ndcg10": "NDCG@10"}
OURS, OTHERS = "#0072B2", "#BBBBBB"


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw bars, the best NDCG@10 first."""
    bars = [(row["label"], {m: row[m]["by_seed"] for m in METRICS}, OURS) for row in report["rows"].values()]
    bars += [(row["name"], {m: [row[m]] for m in METRICS}, OTHERS) for row in report["published"]]
    bars.sort(key=lambda bar: sum(bar[1]["ndcg10"]) / len(bar[1]["ndcg10"]))
    figure, axes = plt.subplots(
        1, len(METRICS), figsize=(11, 1.2 + 0.28 * len(bars)), layout="constrained", sharey=True
    )
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for y, (_, values, colour) in enumerate(bars):
            mean = sum(values[metric]) / len(values[metric])
            axis.barh(y, mean, color=colour, height=0.7)
            axis.plot(values[metric], [y] * len(values[metric]), ".", color="black", markersize=3)
            axis.annotate(f" {mean:.4f}", (mean, y), va="center", fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.margins(x=0.12)
    axes[0].set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize=8)
    figure.suptitle(
        f"{report['dataset']}: {report['users']:,} users, {report['items']:,} items, seeds {report['seeds']}"
        "; blue: measured here, grey: reported by others",
        fontsize=9,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
