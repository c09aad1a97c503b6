"""The table of a report: each figure with what it means and what the papers report under its name."""

from __future__ import annotations

from dataclasses import dataclass

from training.tokenizer.definitions import DEFINITIONS
from training.tokenizer.report.figures import Figures
from training.tokenizer.report.stages import LEARNT

_GROUPS = {
    "warm": "share of the texts whose nearest other text is a partner, among those that have one and were in "
    "five baskets or more before. Partners are in at least 2 baskets together after the training part, and "
    "10 times as often as chance would have it: without that, naming the best-seller would win",
    "kept out": "the same of texts whose baskets a second embedder of the same settings was not shown",
    "few": "the same of texts in fewer than five baskets before",
}
_OF_A_LEVEL = ("Gini", "largest", "level use")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: of the figure.
        value: of this tokenizer.
        paper: what is reported, or nothing.
        definition: in words.
    """

    name: str
    value: str
    paper: str
    definition: str


def rows(figures: Figures) -> list[Row]:
    """All figures of the table, in the order of the page."""
    quality, found = figures.quality, _recall_rows(figures)
    floor, similarity = quality.collision_floor, quality.path_similarity
    found += [
        _row("collision", f"{100 * quality.collision:.2f} %"),
        _row("collision floor", "not known" if floor is None else f"{100 * floor:.2f} %"),
        _row("compression", f"{quality.compression:.3f}"),
        _row("utilisation", f"{quality.utilisation * 1000:.3f} permille"),
    ]
    levels = zip(quality.gini, quality.largest, quality.level_use, strict=True)
    for level, (gini, largest, use) in enumerate(levels, start=1):
        hashed = ", hash" if level == len(quality.level_sizes) and figures.lost else ""
        value = f"Gini {gini:.3f}, largest {largest:.2f}, used {100 * use:.1f} %"
        paper, definition = "", "the same of this level"
        if level == 1:
            paper = DEFINITIONS["level use"].papers
            definition = "; ".join(f"{name}: {DEFINITIONS[name].meaning}" for name in _OF_A_LEVEL)
        found.append(Row(f"level {level}{hashed}", value, paper, definition))
    if figures.lost:
        shares = ", ".join("not known" if share is None else f"{share:.3f}" for share in figures.lost)
        found.append(_row("reconstruction", shares, more="; after each level"))
    if similarity is not None:
        found.append(_row("path similarity", f"{similarity:.3f}"))
    return found


def _row(name: str, value: str, *, more: str = "") -> Row:
    return Row(name, value, DEFINITIONS[name].papers, DEFINITIONS[name].meaning + more)


def _recall_rows(figures: Figures) -> list[Row]:
    if figures.recall is None:
        return []
    found = []
    for group, definition in _GROUPS.items():
        ratio, row = figures.recall.ratio(group), figures.recall.stages[LEARNT].get(group)
        value = "not known" if row is None else f"{row[1]:.3f}"
        found.append(
            Row(
                f"R@1, {group}",
                value + (f" ({ratio:.2f} x words)" if ratio is not None else ""),
                ".541 (QARM), .769 (raw MLLM), .896 (UAE)" if group == "warm" else "",
                definition,
            )
        )
    return found
