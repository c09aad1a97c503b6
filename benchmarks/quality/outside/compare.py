"""Our figures beside those of an evaluator that is not ours, of the same answers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

JUDGED = ("recall10", "ndcg10")


def compare_to_outside(
    sequences: Path, answers: Sequence[Path], report: dict[str, Any], *, python: Path
) -> dict[str, Any]:
    """What RecTools finds for each row and seed, and the largest difference to a report.

    Args:
        sequences: the file of the data set, which the judge reads itself.
        answers: files ROW-seedS.npz, of the report's rows and seeds.
        report: of `benchmarks.quality.report`.
        python: of the judge's virtual environment; without it the difference is None.

    Raises:
        ValueError: the judge refuses an answer.
    """
    if not python.exists() or not answers:
        return {"outside_judge_difference": None}
    out = answers[0].parent / "outside.json"
    command = [str(python), "-m", "benchmarks.quality.outside.judge"]
    command += ["--sequences", str(sequences), "--out", str(out), *map(str, answers)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"the outside judge failed: {done.stderr.strip().splitlines()[-1:]}")
    judged = json.loads(out.read_text())
    difference = largest_difference(report, judged["figures"])
    return {"outside_judge_difference": difference, "outside_judge": judged}


def largest_difference(report: dict[str, Any], judged: dict[str, dict[str, float]]) -> float:
    """Over all rows, seeds and metrics, absolute."""
    return max(
        abs(judged[f"{name}-seed{seed}"][metric] - value)
        for name, row in report["rows"].items()
        for metric in JUDGED
        for seed, value in zip(row["seeds"], row[metric]["by_seed"], strict=True)
    )
