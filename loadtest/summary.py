"""Figures of a test, exact from its requests: percentiles, outcomes, a row a second, the knee of a ramp."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from loadtest.outcomes import OK, OUTCOMES, REJECTED, SATURATED, WAITED
from loadtest.shapes import Shape

QUANTILES = (0.5, 0.66, 0.75, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
_SECONDS = ("intended_s", "late_ms", "latency_ms")
_TEXT = ("outcome", "beam_widths", "error")
_KNEE_REQUESTS = 20  # fewer in a window say nothing
_KNEE_FAILED = 0.01
_KNEE_SLOWER = 3.0  # times the median of the ramp's first window, where no limit is given


def percentile(latencies: np.ndarray, share: float) -> float:
    """The smallest latency that at least this share of requests does not exceed; NaN without requests."""
    if not len(latencies):
        return float("nan")
    return float(np.quantile(latencies, share, method="inverted_cdf"))


def read_requests(paths: list[Path]) -> pl.DataFrame:
    """Requests of all workers by intended start; a last line that was cut off is left out."""
    tables = []
    for path in paths:
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        tables.append(pl.read_csv(whole, infer_schema=False))
    table = pl.concat(tables)
    whole_numbers = [name for name in table.columns if name not in (*_TEXT, *_SECONDS)]
    casts = pl.col(_SECONDS).cast(pl.Float64), pl.col(whole_numbers).cast(pl.Int64)
    return table.with_columns(*casts).sort("intended_s")


@dataclass(frozen=True)
class Summary:
    """Figures of a test.

    Attributes:
        seconds: from the start to the end of the offered load (where it was stopped, to there).
        requests: all of them, sent or not.
        outcomes: how many of each.
        latency_ms: exact quantiles over `outcomes.WAITED` by their share.
        figures: everything that a threshold may look at, and more, by name.
        errors: (outcome, text, count), the most frequent first.
        knee: of a ramp, else None.
    """

    seconds: float
    requests: int
    outcomes: dict[str, int]
    latency_ms: dict[float, float]
    figures: dict[str, float]
    errors: list[tuple[str, str, int]] = field(default_factory=list)
    knee: dict[str, Any] | None = None


def summarise(
    requests: pl.DataFrame,
    samples: list[dict[str, Any]],
    *,
    seconds: float,
    cpu_s: float = float("nan"),
    workers: int = 1,
) -> Summary:
    """Summary of requests of `read_requests` and samples of `Sampler`.

    Args:
        requests: a row a request.
        samples: metrics.
        seconds: how long load was offered.
        cpu_s: CPU time that the client used.
        workers: its processes.
    """
    counts = dict(requests["outcome"].value_counts().iter_rows())
    outcomes = {name: counts[name] for name in OUTCOMES if name in counts}
    waited = requests.filter(pl.col("outcome").is_in(WAITED))["latency_ms"].to_numpy()
    latency = {share: percentile(waited, share) for share in QUANTILES}
    total, ok = requests.height, outcomes.get(OK, 0)
    sent = total - outcomes.get(SATURATED, 0)
    late = requests["late_ms"].to_numpy()
    rows = requests.filter(pl.col("beam_rows").is_not_null())
    share = 100.0 / max(total, 1)
    memory = [s["server_rss_mb"] for s in samples if "server_rss_mb" in s]
    figures = {
        "offered_qps": total / seconds,
        "ok_qps": ok / seconds,
        "failures_pct": (total - ok) * share,
        "rejected_pct": outcomes.get(REJECTED, 0) * share,
        "p50_ms": latency[0.5],
        "p95_ms": latency[0.95],
        "p99_ms": latency[0.99],
        "max_ms": latency[1.0],
        "client_late_p99_ms": percentile(late, 0.99),
        "client_cpu_ms": cpu_s * 1e3 / max(sent, 1),
        "client_cpu_pct": 100.0 * cpu_s / seconds / workers,
        "repeats_pct": 100.0 * float(requests["repeat"].mean() or 0.0),  # type: ignore[arg-type]
        "beam_rows": _mean(rows["beam_rows"]),
        "degraded_pct": 100.0 * _mean(rows["degraded"]),
        "memory_mb": max(memory, default=float("nan")),
        "pending_max": max((s["pending"] for s in samples if "pending" in s), default=float("nan")),
    }
    failed = requests.filter(pl.col("outcome") != OK)
    errors = failed.group_by("outcome", "error").len().sort("len", descending=True).head(20)
    return Summary(
        seconds=seconds,
        requests=total,
        outcomes=outcomes,
        latency_ms=latency,
        figures=figures,
        errors=list(errors.iter_rows()),
    )


def timeline(
    requests: pl.DataFrame, samples: list[dict[str, Any]], *, shape: Shape | None, step_s: float = 1.0
) -> pl.DataFrame:
    """A row a step.

    Rates, latencies and failures belong to the step in which a request should have started, `completed_qps`
    to the one in which its answer came.

    Args:
        requests: of `read_requests`.
        samples: of `Sampler`; the last one of a step counts.
        shape: the offered rate of an open loop; None: closed loop.
        step_s: seconds a row.
    """
    ends = requests["intended_s"] + requests["latency_ms"] / 1e3
    last = max([float(ends.max() or 0.0), *(s["second"] for s in samples)])  # type: ignore[arg-type]
    steps = max(1, int(np.ceil(max(last, 1e-9) / step_s)))
    edges = np.arange(steps + 1) * step_s
    found: dict[str, Any] = {"second": edges[:-1]}
    if shape is not None:
        found["offered_qps"] = np.diff(shape.expected(edges)) / step_s
    start = (requests["intended_s"].to_numpy() / step_s).astype(int).clip(0, steps - 1)
    outcome = requests["outcome"].to_numpy()
    found["arrived_qps"] = np.bincount(start, minlength=steps) / step_s
    done = np.minimum(ends.to_numpy()[outcome == OK] / step_s, steps - 1).astype(int)
    found["completed_qps"] = np.bincount(done, minlength=steps) / step_s
    waited, latency = np.isin(outcome, WAITED), requests["latency_ms"].to_numpy()
    order = np.argsort(start[waited], kind="stable")
    parts = np.split(latency[waited][order], np.searchsorted(start[waited][order], np.arange(1, steps)))
    for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        found[name] = [percentile(part, share) for part in parts]
    for name, column in (("beam_rows", "beam_rows"), ("degraded_share", "degraded")):
        values = requests[column].cast(pl.Float64).to_numpy()
        there = ~np.isnan(values)
        total = np.bincount(start[there], weights=values[there], minlength=steps)
        counted = np.bincount(start[there], minlength=steps)
        found[name] = np.divide(total, counted, out=np.full(steps, np.nan), where=counted > 0)
    for name in OUTCOMES[1:]:
        found[name] = np.bincount(start[outcome == name], minlength=steps)
    for name in sorted({key for s in samples for key in s if key != "second"}):
        sampled = np.full(steps, np.nan)
        for sample in samples:
            if name in sample and 0 <= sample["second"] < steps * step_s:
                sampled[int(sample["second"] / step_s)] = sample[name]
        found[name] = sampled
    return pl.DataFrame(found).with_columns(pl.col(pl.Float64).fill_nan(None))


def find_knee(requests: pl.DataFrame, shape: Shape, *, slo_ms: float | None) -> dict[str, Any] | None:
    """Where a ramp bends: the offered rate from which on windows of the test fail and do not recover.

    A window is bad when more than 1 % of its requests failed, or its p95 is beyond the limit: `slo_ms`, or
    three times the median of the first window. The knee is the rate at the start of the first of the bad
    windows that last to the end. None: the test has fewer than three windows.

    Returns:
        qps (None: no knee within the ramp), reason, limit_ms, window_s, and tested_qps, the highest rate.
    """
    last = float(requests["intended_s"].max() or 0.0)  # type: ignore[arg-type]
    count = min(40, requests.height // _KNEE_REQUESTS)
    if count < 3:
        return None
    edges = np.linspace(0, last, count + 1)
    start, outcome = requests["intended_s"].to_numpy(), requests["outcome"].to_numpy()
    latency, waited = requests["latency_ms"].to_numpy(), np.isin(outcome, WAITED)
    at = np.clip(np.searchsorted(edges, start, side="right") - 1, 0, count - 1)
    limit = slo_ms if slo_ms is not None else _KNEE_SLOWER * percentile(latency[(at == 0) & waited], 0.5)
    reasons: list[str] = []
    for window in range(count):
        inside = at == window
        failed = float((outcome[inside] != OK).mean()) if inside.any() else 0.0
        p95 = percentile(latency[inside & waited], 0.95)
        if failed > _KNEE_FAILED:
            reasons.append(f"{failed:.0%} failed")
        else:
            reasons.append(f"p95 {p95:.0f} ms > {limit:.0f} ms" if p95 > limit else "")
    good = [window for window, reason in enumerate(reasons) if not reason]
    first = good[-1] + 1 if good else 0
    found = first < count
    return {
        "qps": float(shape.rate(edges[first])) if found else None,
        "reason": reasons[first] if found else "none within the ramp",
        "limit_ms": limit,
        "window_s": float(edges[1]),
        "tested_qps": float(shape.rate(min(last, shape.duration_s * (1 - 1e-9)))),
    }


def _mean(column: pl.Series) -> float:
    found = column.mean()
    return float("nan") if found is None else float(found)  # type: ignore[arg-type]
