"""One look at a metrics page: its samples, and figures of one or two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """Samples of one page.

    Attributes:
        at: when it was read, unix seconds.
        samples: by name and labels.
    """

    at: float
    samples: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    @classmethod
    def parse(cls, page: str, *, at: float) -> Scrape:
        """Read a page in Prometheus' text format.

        Raises:
            ValueError: it is not in that format.
        """
        samples: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(page):
            # The parser gives every counter the ending that Triton's lack.
            renamed = family.type == "counter" and f"{family.name}_total" not in page
            for sample in family.samples:
                name = family.name if renamed else sample.name
                samples.setdefault(name, {})[frozenset(sample.labels.items())] = sample.value
        return cls(at, samples)

    def values(self, name: str, **labels: str) -> dict[Labels, float]:
        """Series of a name that have these labels; those that are no number are left out."""
        wanted = labels.items()
        found = self.samples.get(name, {}).items()
        return {key: value for key, value in found if wanted <= key and not math.isnan(value)}

    def total(self, name: str, **labels: str) -> float | None:
        """Sum of such series; None where there is none."""
        found = self.values(name, **labels)
        return sum(found.values()) if found else None

    def highest(self, name: str, **labels: str) -> float | None:
        """Largest of such series; None where there is none."""
        return max(self.values(name, **labels).values(), default=None)

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sums of such series by the value of one more label."""
        return _summed(self.values(name, **labels), label)


def increase(old: Scrape, new: Scrape, name: str, **labels: str) -> float | None:
    """How much counters have grown between two looks; None where the later one has no such series."""
    grown = _grown(old, new, name, labels)
    return sum(grown.values()) if grown else None


def increase_by(old: Scrape, new: Scrape, name: str, label: str, **labels: str) -> dict[str, float]:
    """The same by the value of a label."""
    return _summed(_grown(old, new, name, labels), label)


def quantile(q: float, counts: Mapping[str, float]) -> float | None:
    """Quantile of a histogram, on straight lines within its buckets as Prometheus has it.

    Args:
        q: in (0, 1).
        counts: by upper bound (label `le`), each with those below it.

    Returns:
        The highest finite bound where the quantile lies beyond it; None without observations or bounds.
    """
    bounds = sorted((float(le), count) for le, count in counts.items())
    if len(bounds) < 2 or not math.isinf(bounds[-1][0]) or bounds[-1][1] <= 0:
        return None
    rank, low, below = q * bounds[-1][1], 0.0, 0.0
    for bound, count in bounds[:-1]:
        if count >= rank:
            return low + (bound - low) * (rank - below) / (count - below) if count > below else bound
        low, below = bound, count
    return low


def _grown(old: Scrape, new: Scrape, name: str, labels: Mapping[str, str]) -> dict[Labels, float]:
    """Series by series: one that is lower than before began anew, with its process."""
    before = old.values(name, **labels)
    after = new.values(name, **labels)
    return {key: v - before.get(key, 0.0) if v >= before.get(key, 0.0) else v for key, v in after.items()}


def _summed(series: Mapping[Labels, float], label: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in series.items():
        name = dict(key).get(label, "")
        found[name] = found.get(name, 0.0) + value
    return found
