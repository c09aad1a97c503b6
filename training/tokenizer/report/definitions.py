"""What each figure of a report means, and what the papers report under its name.

GR4AD (arXiv 2602.22732) and GPR publish figures without formulas, of data that nobody else has: the
definitions are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.tokenizer.report.figures import Figures


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
    quality, levels = figures.quality, figures.levels
    found = [*_recall_rows(figures)]
    floor = "unknown" if figures.floor is None else f"{figures.floor:.2%}"
    found += [
        Row(
            "collision",
            f"{quality.collision:.2%}",
            "85.44 % (RQ-Kmeans) to 18.26 % (MGMR)",
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
            "3.54 (RQ-Kmeans) to 1.07 (MGMR)",
            "ads per distinct SID; 1 where every ad has its own",
        ),
        Row(
            "utilisation",
            f"{quality.utilisation * 1000:.3f} permille",
            "0.10 (RQ-Kmeans) to 0.34 permille (MGMR)",
            "distinct SIDs / product of the level sizes",
        ),
    ]
    for number, level in enumerate(levels, start=1):
        used = 1 - level.dead / len(level.ads)
        found.append(
            Row(
                f"level {number}" + (" (hash)" if number == len(levels) and figures.lost else ""),
                f"Gini {level.gini:.3f}, largest {level.largest:.2f}, used {used:.1%}",
                "level 1 used: 92.13 % (RQ-VAE) to 100 % (RQ-Kmeans), GPR" if number == 1 else "",
                "Gini coefficient of the ads a code has (0: all equal); ads of the fullest code in units of "
                "the mean; share of the codes that an ad has",
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
    names = {
        "warm": "that learning saw in baskets",
        "kept out": "whose baskets a second embedder of the same settings was not shown",
        "few": "with fewer than five baskets before",
    }
    found = []
    for group, which in names.items():
        ratio = figures.recall.ratio(group)
        row = figures.recall.stages["learnt"][group]
        found.append(
            Row(
                f"R@1, {group}",
                f"{row[1]:.3f}" + (f" ({ratio:.2f} x words)" if ratio is not None else ""),
                ".541 (QARM), .769 (raw MLLM), .896 (UAE)" if group == "warm" else "",
                f"of the texts {which}, and that have a partner, the share whose nearest other text is one. "
                "Partners: in at least 2 baskets together after the training part, and 10 times as often as "
                "chance; without that lift, naming the best-seller would win",
            )
        )
    return found
