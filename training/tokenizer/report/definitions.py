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
    "five baskets or more before. Partners are in at least 2 baskets together after the training part, and "
    "10 times as often as chance would have it: without that, naming the best-seller would win",
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
    quality, found = figures.quality, _recall_rows(figures)
    floor = quality.collision_floor
    found += [
        Row(
            "collision",
            f"{100 * quality.collision:.2f} %",
            "85.44 % (RQ-Kmeans), 18.26 % (MGMR)",
            "share of ads that share their SID with at least one other ad",
        ),
        Row(
            "collision floor",
            "not known" if floor is None else f"{100 * floor:.2f} %",
            "",
            "the same if every distinct content had a prefix of its own: only a larger hash level removes it",
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
    sizes = quality.level_sizes
    for level, size in enumerate(sizes):
        hashed = level == len(sizes) - 1 and bool(figures.lost)
        found.append(
            Row(
                f"level {level + 1}" + (", hash" if hashed else ""),
                f"Gini {quality.gini[level]:.3f}, largest {quality.largest[level]:.2f}, used "
                f"{100 * (1 - quality.dead_codes[level] / size):.1f} %",
                "used: 92.13 % (RQ-VAE), 100 % (RQ-Kmeans), 99.36 % (RQ-Kmeans+)" if level == 0 else "",
                _LEVEL if level == 0 else "the same of this level",
            )
        )
    if figures.lost:
        found.append(
            Row(
                "reconstruction",
                ", ".join("not known" if share is None else f"{share:.3f}" for share in figures.lost),
                "",
                "after each level: sum |x - y|^2 / sum |x - mean|^2 over the ads, y what the codes so far "
                "stand for; 0 is exact",
            )
        )
    if quality.path_similarity is not None:
        found.append(
            Row(
                "path similarity",
                f"{quality.path_similarity:.3f}",
                ".985 (RQ-VAE), .986 (RQ-Kmeans), .992 (RQ-Kmeans+)",
                "mean over prefixes with two distinct contents or more of the mean cosine of their pairs",
            )
        )
    return found


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
