"""What each figure of a report means, and what the papers report under its name.

GR4AD (arXiv 2602.22732) and GPR publish figures without formulas, of data that nobody else has: the
definitions are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.tokenizer.report.figures import Figures
from training.tokenizer.report.stages import LEARNT

_GROUPS = {
    "warm": "share of the texts whose nearest other text is a partner, among those that have one and were in "
    "five baskets or more before. Partners are in at least 2 baskets together after the training part, and 10 "
    "times as often as chance would have it: without that, naming the best-seller would win",
    "kept out": "the same of texts whose baskets a second embedder of the same settings was not shown",
    "few": "the same of texts in fewer than five baskets before",
}
_LEVEL = (
    "Gini coefficient of the ads a code has, 0 where all are equal; ads of the fullest code in units of the "
    "mean; share of the codes that an ad has"
)


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
    quality, levels, found = figures.quality, figures.levels, _recall_rows(figures)
    floor = "unknown" if figures.floor is None else f"{100 * figures.floor:.2f} %"
    found += [
        Row(
            "collision",
            f"{100 * quality.collision:.2f} %",
            "85.44 % (RQ-Kmeans), 18.26 % (MGMR)",
            "share of ads that share their SID with at least one other ad",
        ),
        Row(
            "collision floor",
            floor,
            "",
            "the same if every distinct text had a prefix of its own: what only a larger hash level removes",
        ),
        Row(
            "compression",
            f"{quality.compression:.3f}",
            "3.54 (RQ-Kmeans), 1.07 (MGMR)",
            "ads per distinct SID; 1 where every ad has its own",
        ),
        Row(
            "utilisation",
            f"{quality.utilisation * 1000:.3f} permille",
            "0.10 (RQ-Kmeans), 0.34 permille (MGMR)",
            "distinct SIDs / product of the level sizes",
        ),
    ]
    for number, level in enumerate(levels, start=1):
        used = 1 - level.dead / len(level.ads)
        hashed = number == len(levels) and bool(figures.lost)
        found.append(
            Row(
                f"level {number}" + (", hash" if hashed else ""),
                f"Gini {level.gini:.3f}, largest {level.largest:.2f}, used {100 * used:.1f} %",
                "used: 92.13 % (RQ-VAE), 100 % (RQ-Kmeans), 99.36 % (RQ-Kmeans+)" if number == 1 else "",
                _LEVEL if number == 1 else "the same of this level",
            )
        )
    if figures.lost:
        found.append(
            Row(
                "lost after each level",
                ", ".join(f"{share:.3f}" for share in figures.lost),
                "",
                "sum |x - y|^2 / sum |x|^2 over the ads, y the sum of the centroids of the codes so far",
            )
        )
    return found


def _recall_rows(figures: Figures) -> list[Row]:
    if figures.recall is None:
        return []
    found = []
    for group, definition in _GROUPS.items():
        ratio, row = figures.recall.ratio(group), figures.recall.stages[LEARNT][group]
        found.append(
            Row(
                f"R@1, {group}",
                f"{row[1]:.3f}" + (f" ({ratio:.2f} x words)" if ratio is not None else ""),
                ".541 (QARM), .769 (raw MLLM), .896 (UAE)" if group == "warm" else "",
                definition,
            )
        )
    return found
