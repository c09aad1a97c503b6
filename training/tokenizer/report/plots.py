"""Plots of a report, each an SVG in a data address: the page is one file that needs nothing else."""

from __future__ import annotations

import base64
import io

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.tokenizer.report.figures import Figures
from training.tokenizer.report.map import AdMap
from training.tokenizer.report.recall import BEST_SELLER, CODES, KS, LEARNT, WORDS, Recall
from training.tokenizer.report.tree import Node

COLOURS = {BEST_SELLER: "#bbbbbb", WORDS: "#7fa7d1", LEARNT: "#1f5fa8", CODES: "#e08a3c"}
LEGEND = {
    BEST_SELLER: "naming best-sellers",
    WORDS: "words (TF-IDF + SVD)",
    LEARNT: "the tokenizer's vectors",
    CODES: "what its codes keep",
}


def recall_bars(recall: Recall) -> str:
    """One panel a k, bars by group and stage."""
    figure, axes = _panels(len(KS), width=3.7)
    names = [f"{group}\n({count:,} texts)" for group, count in recall.anchors.items()]
    for axis, k in zip(axes, KS, strict=True):
        for place, (stage, found) in enumerate(recall.stages.items()):
            at = [i + (place - 1.5) * 0.2 for i, group in enumerate(recall.anchors) if group in found]
            heights = [found[group][k] for group in recall.anchors if group in found]
            bars = axis.bar(at, heights, width=0.19, color=COLOURS[stage], label=LEGEND[stage])
            axis.bar_label(bars, labels=[f"{h:.2f}"[1:] if h < 1 else "1" for h in heights], fontsize=7)
        axis.set_xticks(range(len(names)), names, fontsize=8)
        axis.set_title(f"R@{k}")
    axes[0].legend(fontsize=7, loc="upper right")
    top = max(row[KS[-1]] for stage in recall.stages.values() for row in stage.values())
    for axis in axes:
        axis.set_ylim(0, 1.25 * top)
    return _svg(figure)


def level_curves(figures: Figures) -> str:
    """Ads of each code from the fullest to the emptiest, beside the mean."""
    figure, axes = _panels(len(figures.levels), width=3.7)
    for number, (axis, level) in enumerate(zip(axes, figures.levels, strict=True), start=1):
        ranked = np.sort(level.ads)[::-1]
        axis.fill_between(np.arange(1, len(ranked) + 1), ranked, step="mid", color="#1f5fa8", alpha=0.8)
        axis.axhline(ranked.mean(), color="#e08a3c", linewidth=1)
        axis.set_title(
            f"level {number}: {len(ranked):,} codes\n"
            f"Gini {level.gini:.3f}, largest {level.largest:.2f} x mean, {level.dead} dead",
            fontsize=9,
        )
        axis.set_xlabel("codes, the fullest first")
        axis.set_ylim(0)
    axes[0].set_ylabel("ads (line: the mean)")
    return _svg(figure)


def collision_bars(figures: Figures) -> str:
    """Collision beside its floor, and what the levels lose."""
    figure, (left, right) = _panels(2, width=4.6)
    shares = {"this tokenizer": figures.quality.collision}
    if figures.floor is not None:
        shares["its floor"] = figures.floor
    shares |= {"paper, MGMR": 0.1826, "paper, RQ-Kmeans": 0.8544}
    colours = ["#1f5fa8", "#7fa7d1", "#bbbbbb", "#bbbbbb"][-len(shares) :]
    bars = left.barh(list(shares), list(shares.values()), color=colours)
    left.bar_label(bars, labels=[f"{share:.2%}" for share in shares.values()], fontsize=8, padding=3)
    left.invert_yaxis()
    left.set_xlim(0, 1)
    left.set_title("ads that share their SID with another ad")
    if figures.lost:
        bars = right.bar(
            [f"{n} level{'s' * (n > 1)}" for n in range(len(figures.lost) + 1)], [1, *figures.lost]
        )
        right.bar_label(bars, labels=[f"{share:.2f}" for share in (1, *figures.lost)], fontsize=8)
        right.set_title("share of the vectors that the codes lose")
        right.set_ylim(0, 1.1)
    else:
        right.set_axis_off()
    return _svg(figure)


def icicle(tree: list[Node]) -> str:
    """Some codes of the first level, each with its largest children; widths are numbers of ads."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axis = figure.subplots()
    colours = mpl.colormaps["tab10"]
    left = 0.0
    for number, node in enumerate(tree):
        colour = colours(number % 10)
        _box(axis, left, 1.0, width=node.ads, colour=colour, text=_label(node))
        at = left
        for place, child in enumerate(node.children):
            shade = (
                tuple(0.35 * c + 0.65 for c in colour[:3])
                if place % 2
                else tuple(0.55 * c + 0.45 for c in colour[:3])
            )
            _box(axis, at, 0.0, width=child.ads, colour=shade, text=_label(child), small=True)
            at += child.ads
        rest = node.ads - sum(child.ads for child in node.children)
        if rest and node.children:
            _box(axis, at, 0.0, width=rest, colour="#eeeeee", text=f"{rest:,} ads\nin others", small=True)
        left += node.ads * 1.02
    axis.set_xlim(0, left)
    axis.set_ylim(0, 2)
    axis.set_yticks([1.5, 0.5], ["level 1", "level 2"])
    axis.set_xlabel("ads")
    return _svg(figure)


def ad_map(found: AdMap) -> str:
    """Texts in the plane, coloured by region, with its words."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axis = figure.subplots()
    colours = mpl.colormaps["tab20"]
    axis.scatter(
        found.places[:, 0],
        found.places[:, 1],
        c=[colours(r % 20) for r in found.regions],
        s=7,
        linewidths=0,
        rasterized=True,
    )
    for region, label in enumerate(found.labels):
        x, y = np.median(found.places[found.regions == region], axis=0)
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
        axis.text(float(x), float(y), label, ha="center", va="center", fontsize=9, bbox=box)
    axis.set_xticks([])
    axis.set_yticks([])
    return _svg(figure)


def _label(node: Node) -> str:
    words = "\n".join(node.words[:2]) or "(no words)"
    return f"{node.codes[-1]}\n{words}\n{node.ads:,}"


def _box(
    axis: Axes, left: float, bottom: float, *, width: float, colour: object, text: str, small: bool = False
) -> None:
    axis.bar(left, 1.0, width=width, bottom=bottom, align="edge", color=colour, edgecolor="white")
    axis.text(
        left + width / 2,
        bottom + 0.5,
        text,
        ha="center",
        va="center",
        fontsize=6 if small else 8,
        rotation=90 if small else 0,
        clip_on=True,
    )


def _panels(count: int, *, width: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count, 3.2), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """As an address; dates and random ids are left out, so that equal figures give equal pages."""
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "gr4ad"}):
        figure.savefig(out, format="svg", dpi=110, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()
