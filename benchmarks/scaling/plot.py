"""Loss and gains by size and by width, the paper's end points beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.simulation.plot import COLOURS

# GR4AD, arXiv 2602.22732: revenue against DLRM in percent, at both ends of what was scaled.
PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "size": {"parameters": (0.03e9, 0.32e9), "revenue": (2.13, 4.43)},  # 512 beams
    "beams": {"beams": (128, 1024), "revenue": (2.33, 4.21)},  # .16 B parameters
}


def paper_gain(by: str) -> tuple[float, float]:
    """How many times the start the paper's end is, and what that gives of revenue in percent."""
    ends = PAPER[by]
    scale = ends["parameters" if by == "size" else "beams"]
    before, after = ends["revenue"]
    return scale[1] / scale[0], 100 * ((100 + after) / (100 + before) - 1)


def plot(report: dict[str, Any], path: Path, *, found: str, earned: list[str]) -> None:
    """Draw; sizes that are missing are named in the title.

    Args:
        report: of `benchmarks.scaling.measure`.
        path: PNG.
        found: metric that is drawn as it is, by width.
        earned: metrics whose gains are drawn by size; those of the last one by width, too.
    """
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2), layout="constrained")
    sizes = {name: size for name, size in report["sizes"].items() if not size["missing"]}
    parameters = {name: size["parameters"] for name, size in sizes.items()}
    losses = [size["loss"] for size in sizes.values()]
    axes[0].plot(list(parameters.values()), losses, "o-", color=COLOURS[0])
    axes[0].set(xscale="log", xlabel="parameters", ylabel="validation loss of the SID")
    for colour, name in zip(COLOURS, sizes, strict=False):
        points = [p for p in report["points"] if p["size"] == name]
        means = [p["metrics"][found]["mean"] for p in points]
        axes[1].plot([p["beams"] for p in points], means, "o-", color=colour, label=name)
        times = [p["beams"] / report["start"] for p in points]
        _gains(axes[3], times, [p["metrics"][earned[-1]]["beams"] for p in points], colour=colour, label=name)
    axes[1].set(xscale="log", xlabel="beams", ylabel=found)
    points = [p for p in report["points"] if p["beams"] == report["at_beams"]]
    times = [parameters[p["size"]] / parameters[report["smallest"]] for p in points]
    for colour, metric in zip(COLOURS, earned, strict=False):
        _gains(axes[2], times, [p["metrics"][metric]["size"] for p in points], colour=colour, label=metric)
    smallest, start = report["smallest"], report["start"]
    axes[2].set_xlabel(f"times the parameters of {smallest}, {report['at_beams']} beams")
    axes[3].set_xlabel(f"times {start} beams, {earned[-1]}")
    for axis, by in ((axes[2], "size"), (axes[3], "beams")):
        times_paper, percent = paper_gain(by)
        axis.plot([1, times_paper], [0, percent], "s--", color="black", label="paper: revenue, both ends")
        axis.set(xscale="log", ylabel="gain, %")
    for axis, places in (
        (axes[0], list(parameters.values())),
        (axes[1], sorted({p["beams"] for p in report["points"]})),
        (axes[2], times),
        (axes[3], sorted({p["beams"] / start for p in report["points"]})),
    ):
        axis.grid(alpha=0.3)
        axis.set_xticks(
            places, [f"{place / 1e6:.2g} M" if place > 1e5 else f"{place:.4g}" for place in places]
        )
        axis.minorticks_off()
    for axis in axes[1:]:
        axis.legend(frameon=False, fontsize=7)
    missing = [name for name, size in report["sizes"].items() if size["missing"]]
    note = f"; not there: {', '.join(missing)}" if missing else ""
    seeds = ", ".join(map(str, report["seeds"]))
    figure.suptitle(
        f"simulation, {report['requests']} requests, seed {seeds}, 95 % intervals over users{note}",
        fontsize=9,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _gains(
    axis: Axes, times: list[float], cells: list[dict[str, float | None]], *, colour: str, label: str
) -> None:
    """Percent with intervals; what has nothing to be compared to is left out."""
    there = [(x, cell) for x, cell in zip(times, cells, strict=True) if cell["ratio"] is not None]
    percent = {key: [100 * cell[key] for _, cell in there] for key in ("ratio", "low", "high")}
    places = [x for x, _ in there]
    axis.vlines(places, percent["low"], percent["high"], color=colour, alpha=0.5)
    axis.plot(places, percent["ratio"], "o-", color=colour, label=label, markersize=4)
