"""Limits that a test is held to."""

from __future__ import annotations

from dataclasses import dataclass

LIMITS = {  # option: (figure of the summary, whether it is the most or the least)
    "max_p50_ms": ("p50_ms", "<="),
    "max_p95_ms": ("p95_ms", "<="),
    "max_p99_ms": ("p99_ms", "<="),
    "max_failures_pct": ("failures_pct", "<="),
    "max_rejected_pct": ("rejected_pct", "<="),
    "min_qps": ("ok_qps", ">="),
    "min_beam_rows": ("beam_rows", ">="),
    "max_memory_mb": ("memory_mb", "<="),
}


@dataclass(frozen=True)
class Verdict:
    """One threshold: `figure` should stand in `relation` to `expected`."""

    figure: str
    relation: str
    expected: float
    actual: float

    @property
    def met(self) -> bool:
        """False also where there is no figure (NaN)."""
        if self.relation == "<=":
            return self.actual <= self.expected
        return self.actual >= self.expected

    def __str__(self) -> str:
        """One line."""
        mark = "met   " if self.met else "MISSED"
        return f"{mark}  {self.figure}: expected {self.relation} {self.expected:g}, got {self.actual:.4g}"


def judge(figures: dict[str, float], limits: dict[str, float | None]) -> list[Verdict]:
    """Verdicts on the limits that were given, by the names of `LIMITS`."""
    return [
        Verdict(figure, relation, limit, figures.get(figure, float("nan")))
        for name, (figure, relation) in LIMITS.items()
        if (limit := limits.get(name)) is not None
    ]
