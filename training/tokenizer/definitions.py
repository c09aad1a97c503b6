"""What each figure of SIDs means, and what the papers report under its name.

GR4AD (arXiv 2602.22732) and GPR (arXiv 2511.10138) publish figures without formulas, of data that nobody else
has: the definitions are ours.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """Of one figure.

    Attributes:
        meaning: in words.
        papers: what is reported under the name, or nothing.
    """

    meaning: str
    papers: str = ""


DEFINITIONS = {
    "compression": Definition(
        "ads per distinct SID; 1 where every ad has its own", "GR4AD: 3.54 (RQ-Kmeans), 1.07 (MGMR)"
    ),
    "collision": Definition(
        "share of ads that share their SID with at least one other ad",
        "GR4AD: 85.44 % (RQ-Kmeans), 18.26 % (MGMR); GPR: 23.21 % (RQ-VAE), 21.40 % (RQ-Kmeans), 20.60 % "
        "(RQ-Kmeans+)",
    ),
    "collision floor": Definition(
        "collision if every distinct content had a prefix of its own: only a larger hash level removes it"
    ),
    "utilisation": Definition(
        "distinct SIDs / product of the level sizes", "GR4AD: 0.10 (RQ-Kmeans), 0.34 permille (MGMR)"
    ),
    "level use": Definition(
        "share of a level's codes that at least one ad has; the others are dead",
        "GPR, first level: 92.13 % (RQ-VAE), 100 % (RQ-Kmeans), 99.36 % (RQ-Kmeans+)",
    ),
    "Gini": Definition(
        "coefficient of the ads of a level's codes: 0 where all have as many, 1 where one has all"
    ),
    "largest": Definition("ads of a level's fullest code in units of the mean over its codes"),
    "reconstruction": Definition(
        "sum |x - y|^2 / sum |x - mean|^2 over the ads, y what the codes stand for; 0 is exact"
    ),
    "path similarity": Definition(
        "mean over prefixes with two distinct contents or more of the mean cosine of their pairs",
        "GPR: .985 (RQ-VAE), .986 (RQ-Kmeans), .992 (RQ-Kmeans+)",
    ),
}


def format_definitions() -> str:
    """The definitions as a text of lines below 110 characters, names on the left."""
    found = []
    for name, definition in DEFINITIONS.items():
        said = definition.meaning + (f" ({definition.papers})" if definition.papers else "")
        found.append(textwrap.fill(said, 108, initial_indent=f"{name:17}", subsequent_indent=" " * 17))
    return "\n".join([*found, "(The papers report such figures without formulas: these are ours.)"])
