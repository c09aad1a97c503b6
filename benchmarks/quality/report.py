"""The table: a row a model, its figures by seed, what others report, and which row is ahead of which.

Letters: R users.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.quality.cells import Cells
from benchmarks.quality.generators import ITEM, ITEM_BEAMS, K0, LAZYAR, MTP
from benchmarks.quality.protocol import CUTOFFS, Asked, Figures
from benchmarks.trained_demo import interval

SASREC, CO_OCCURRENCE, POPULARITY = "sasrec", "co_occurrence", "popularity"
ROWS = {
    ITEM: "all items, by the item level",
    ITEM_BEAMS: "items of the beams, by the item level",
    LAZYAR: "SIDs",
    K0: "SIDs, K = 0",
    MTP: "SIDs, MTP decoder",
    SASREC: "SASRec, trained here",
    CO_OCCURRENCE: "item-to-item co-occurrence",
    POPULARITY: "popularity",
}
# Whether one row is ahead of another: ratio of the means, and the interval of the paired difference.
PAIRS = {
    "lazyar_vs_k0": (LAZYAR, K0),
    "lazyar_vs_mtp": (LAZYAR, MTP),
    "item_vs_sasrec": (ITEM, SASREC),
    "sid_vs_sasrec": (LAZYAR, SASREC),
}
SHOWN = tuple(f"{metric}{k}" for metric in ("recall", "ndcg") for k in CUTOFFS[:2])
KEYS = ("sid", "item", "sasrec")


def report_of(cells: Cells, asked: Asked, *, dataset: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Rows, and the figures that are asked for by name; what was not measured is None, and named.

    Args:
        cells: answers that are there.
        asked: users.
        dataset: of the published figures.
        seeds: those that count.
    """
    rows, figures = {}, {}
    for name, label in ROWS.items():
        row, of_seeds = _row(cells, asked, name=name, seeds=seeds)
        if row:
            rows[name], figures[name] = {"label": label, **row}, of_seeds
    pairs = {
        name: _compared(figures[one], figures[other])
        for name, (one, other) in PAIRS.items()
        if set(figures.get(one, ())) & set(figures.get(other, ()))
    }
    found: dict[str, Any] = {
        f"{name}_{metric}": rows[name][metric]["mean"] if name in rows else None
        for name in KEYS
        for metric in ("recall10", "ndcg10")
    }
    for name in ("lazyar_vs_k0", "lazyar_vs_mtp"):
        found[name] = pairs[name]["recall10"]["ratio"] if name in pairs else None
    found |= {
        "seeds": list(seeds),
        "parameters": rows[LAZYAR]["parameters"] if LAZYAR in rows else None,
        "outside_judge_difference": None,
        "dataset": dataset,
        "users": len(asked.users),
        "items": len(asked.item_ids),
        "rows": rows,
        "pairs": pairs,
        "published": published(dataset),
    }
    return found


def not_measured(report: dict[str, Any]) -> list[str]:
    """Figures that are None."""
    return [name for name, value in report.items() if value is None]


def published(dataset: str) -> list[dict[str, Any]]:
    """What others report of a data set, of which nothing may be known."""
    content = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))
    return content.get(dataset.lower(), [])


def table(report: dict[str, Any]) -> str:
    """As markdown: what was measured here, then what others report, each the best NDCG@10 first."""
    lines = [
        f"| {report['dataset']} | " + " | ".join(f"{m[: -len(k)]}@{k}" for m, k in map(_split, SHOWN)),
        "|---" * (len(SHOWN) + 1),
    ]
    lines[0] += " | parameters | CPU minutes | seeds |"
    lines[1] += "|---|---|---|"
    for row in _best_first(report["rows"].values(), lambda row: row["ndcg10"]["mean"]):
        cells = [_with_spread(row[metric]) for metric in SHOWN]
        size = f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] else ""
        spent = f"{row['cpu_minutes']:.1f}" if row["cpu_minutes"] else ""
        cells += [size, spent, str(len(row["seeds"]))]
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    for other in _best_first(report["published"], lambda row: row["ndcg10"]):
        cells = [f"{other[metric]:.4f}" if metric in other else "" for metric in SHOWN]
        size = f"{other['parameters']} M" if "parameters" in other else ""
        lines.append(
            f"| {other['name']} (reported: {other['source']}) | " + " | ".join([*cells, size, "", ""]) + " |"
        )
    return "\n".join(lines)


def _row(
    cells: Cells, asked: Asked, *, name: str, seeds: Sequence[int]
) -> tuple[dict[str, Any], dict[int, Figures]]:
    """Means and spread of the seeds that are there, and by seed the figures of every user; or nothing."""
    there = {seed: found for seed in seeds if (found := cells.found(name, seed))}
    if not there:
        return {}, {}
    figures = {seed: answers.figures(asked) for seed, (answers, _) in there.items()}
    row: dict[str, Any] = {"seeds": list(there)}
    for metric in next(iter(figures.values())):
        by_seed = [float(of_seed[metric].mean()) for of_seed in figures.values()]
        row[metric] = {
            "mean": float(np.mean(by_seed)),
            "spread": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
            "by_seed": by_seed,
        }
    noted = [about for _, about in there.values()]
    row["parameters"] = noted[0].get("parameters")
    spent = [about["cpu_minutes"] for about in noted if "cpu_minutes" in about]
    row["cpu_minutes"] = float(np.mean(spent)) if spent else None
    return row, figures


def _compared(mine: dict[int, Figures], others: dict[int, Figures]) -> dict[str, Any]:
    """Of the seeds that both have: ratio of the means, and the 95 % interval of the mean paired difference.

    The interval is that of users drawn anew.
    """
    pairs = [(mine[seed], others[seed]) for seed in mine if seed in others]
    found: dict[str, Any] = {}
    for metric in ("recall10", "ndcg10"):
        difference = np.mean([a[metric] - b[metric] for a, b in pairs], axis=0)  # [R]
        by_seed = [_ratio(a[metric].mean(), b[metric].mean()) for a, b in pairs]
        of_all = [np.mean([of_seed[metric].mean() for of_seed in side]) for side in zip(*pairs, strict=True)]
        found[metric] = {
            "ratio": _ratio(*of_all),
            "ratio_by_seed": by_seed,
            "difference_95": interval(difference),
        }
    return found


def _ratio(a: float, b: float) -> float | None:
    return float(a / b) if b else None


def _split(metric: str) -> tuple[str, str]:
    digits = "".join(c for c in metric if c.isdigit())
    return metric, digits


def _with_spread(cell: dict[str, Any]) -> str:
    return f"{cell['mean']:.4f}" + (f" ± {cell['spread']:.4f}" if cell["spread"] is not None else "")


def _best_first(rows: Any, key: Any) -> list[Any]:
    return sorted(rows, key=key, reverse=True)
