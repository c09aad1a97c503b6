"""Figures of a simulated run. N requests, M searches, W windows of time."""

from __future__ import annotations

import numpy as np

from loadtest.simulator import DONE, IN_FLIGHT, REFUSED, TURNED_AWAY, Run

WARM_UP_S = 5.0  # a policy starts without a cost; counted in everything but the changes of plan


def summary(run: Run, *, slo_s: float, base_rows: float, since: float = 0.0) -> dict[str, float]:
    """Figures of the requests that arrived after `since`; times in milliseconds, rates a second."""
    counted = run.arrived >= since
    time = run.duration_s - since
    status, arrived = run.status[counted], run.arrived[counted]
    done = status == DONE
    latency = (run.finished[counted] - arrived)[done]
    inside = int((latency <= slo_s).sum())
    refused = (status == REFUSED) | (status == TURNED_AWAY)
    waited = (run.finished[counted] - arrived)[status == REFUSED]
    return {
        "arrived": int(counted.sum()),
        "completed": int(done.sum()),
        "rejected": int(refused.sum()),
        "turned_away": int((status == TURNED_AWAY).sum()),
        "in_flight": int((status == IN_FLIGHT).sum()),
        "offered_qps": len(arrived) / time,
        "completed_qps": done.sum() / time,
        "goodput_qps": inside / time,
        "inside_slo": inside / max(len(arrived), 1),
        "p50_ms": 1e3 * quantile(latency, 0.5),
        "p99_ms": 1e3 * quantile(latency, 0.99),
        "refused_after_ms": 1e3 * quantile(waited, 0.5),
        "rows": float(run.rows[counted][done].mean() / base_rows) if done.any() else float("nan"),
        "changes_per_s": plan_changes(run, since=max(since, WARM_UP_S)),
    }


def quantile(values: np.ndarray, q: float) -> float:
    """Quantile, NaN of nothing."""
    return float(np.quantile(values, q)) if len(values) else float("nan")


def plan_changes(run: Run, *, since: float, until: float = np.inf) -> float:
    """Changes of plan a second, mean of the instances."""
    s = run.searches[(run.searches[:, 0] >= since) & (run.searches[:, 0] < until)]
    time = min(until, run.duration_s) - since
    instances = np.unique(run.searches[:, 1])
    if time <= 0 or not len(s):
        return 0.0
    changes = sum(int((np.diff(s[s[:, 1] == i, 3]) != 0).sum()) for i in instances)
    return changes / time / len(instances)


def settle_time(run: Run, *, start: float, end: float, window_s: float = 0.25, within: float = 0.15) -> float:
    """Seconds from `start` until mean rows stay within 15 % of where they end up (last 40 % of the phase)."""
    edges = np.arange(start, end + window_s / 2, window_s)
    rows = mean_rows(run, edges)
    settled = np.nanmean(rows[int(0.6 * len(rows)) :])
    # Windows without a search say nothing.
    off = np.flatnonzero(np.abs(np.nan_to_num(rows, nan=settled) / settled - 1) > within)
    return float(edges[off[-1] + 1] - start) if len(off) else 0.0


def mean_rows(run: Run, edges: np.ndarray) -> np.ndarray:
    """Rows of the requests searched in each window, float [W]; NaN where there were none."""
    at, requests, rows = run.searches[:, 0], run.searches[:, 2], run.searches[:, 3]
    weight = np.histogram(at, edges, weights=requests)[0]
    total = np.histogram(at, edges, weights=requests * rows)[0]
    return np.divide(total, weight, out=np.full(len(weight), np.nan), where=weight > 0)


def timeline(run: Run, *, slo_s: float, base_rows: float, window_s: float) -> dict[str, list[float]]:
    """Requests a second, rows over base, waiting requests and p99 in ms: a value a window."""
    edges = np.arange(0.0, run.duration_s + window_s / 2, window_s)
    done = run.status == DONE
    refused = (run.status == REFUSED) | (run.status == TURNED_AWAY)
    latency = run.finished - run.arrived
    window = np.digitize(run.finished, edges) - 1
    order = np.argsort(window[done], kind="stable")
    ends = np.searchsorted(window[done][order], np.arange(len(edges)))
    sorted_latency = latency[done][order]
    p99 = [1e3 * quantile(sorted_latency[a:b], 0.99) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    waiting = np.histogram(run.queue[:, 0], edges, weights=run.queue[:, 1])[0]
    polls = np.maximum(np.histogram(run.queue[:, 0], edges)[0], 1)

    def rate(times: np.ndarray) -> list[float]:
        return (np.histogram(times, edges)[0] / window_s).tolist()

    return {
        "time": edges[:-1].tolist(),
        "offered": rate(run.arrived),
        "completed": rate(run.finished[done]),
        "inside": rate(run.finished[done & (latency <= slo_s)]),
        "rejected": rate(run.finished[refused]),
        "rows": (mean_rows(run, edges) / base_rows).tolist(),
        "queue": (waiting / polls).tolist(),
        "p99_ms": p99,
    }
