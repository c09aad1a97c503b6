"""The files of a test: requests.csv, timeline.csv, stats.csv, summary.json, report.png, report.html."""

from __future__ import annotations

import base64
import csv
import html
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from loadtest import machine, picture, summary
from loadtest.json_file import write_json
from loadtest.outcomes import OK
from loadtest.shapes import Shape
from loadtest.summary import QUANTILES, Summary
from loadtest.thresholds import Verdict

FILES = ("requests.csv", "timeline.csv", "stats.csv", "summary.json", "report.png", "report.html")
_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .5em 0 } img { max-width: 100% }
td, th { border: 1px solid #ccc; padding: .2em .7em; text-align: left }
.missed { color: #a03000; font-weight: bold } .met td:last-child { color: #006b4f }
.side { display: flex; gap: 2em; flex-wrap: wrap; align-items: flex-start }
code { background: #f3f3f3; padding: .1em .3em }
"""
_PACKAGES = ("locust", "tritonclient", "grpcio", "gevent")


@dataclass(frozen=True)
class Test:
    """What a report is of.

    Attributes:
        name: of the folder.
        title: one line, what was offered.
        command: how it was run.
        protocol: grpc or http.
        settings: what else a reader should know, by name.
        shape: of the offered rate; None: closed loop.
        slo_ms: limit to draw.
        notes: warnings, and whether it was stopped early.
    """

    name: str
    title: str
    command: str
    protocol: str
    settings: dict[str, str]
    shape: Shape | None
    slo_ms: float | None
    notes: list[str]


def environment() -> dict[str, str]:
    """Processor, cores, memory, versions and commit of the machine that made the load."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": machine.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "versions": ", ".join(f"{name} {version}" for name, version in machine.versions(_PACKAGES).items()),
        "commit": machine.commit(),
    }


def write(
    folder: Path,
    test: Test,
    *,
    requests: pl.DataFrame,
    samples: list[dict[str, Any]],
    found: Summary,
    verdicts: list[Verdict],
) -> None:
    """Write all `FILES` into the folder."""
    requests.write_csv(folder / "requests.csv")
    summary.timeline(requests, samples, shape=test.shape).write_csv(folder / "timeline.csv")
    _write_stats(folder / "stats.csv", test, requests, found)
    made_on = environment()
    content = {
        "name": test.name,
        "command": test.command,
        "title": test.title,
        "settings": test.settings,
        "environment": made_on,
        "seconds": found.seconds,
        "requests": found.requests,
        "outcomes": found.outcomes,
        "latency_ms": {f"{share:g}": value for share, value in found.latency_ms.items()},
        "figures": found.figures,
        "knee": found.knee,
        "thresholds": [
            {
                "figure": v.figure,
                "relation": v.relation,
                "expected": v.expected,
                "actual": v.actual,
                "met": v.met,
            }
            for v in verdicts
        ],
        "notes": test.notes,
    }
    write_json(folder / "summary.json", content)
    step = picture.step_for(found.requests, found.seconds)
    table = summary.timeline(requests, samples, shape=test.shape, step_s=step)
    image_path = folder / "report.png"
    picture.draw(table, image_path, title=test.title, step_s=step, shape=test.shape, slo_ms=test.slo_ms)
    image = base64.b64encode(image_path.read_bytes()).decode()
    (folder / "report.html").write_text(_page(test, found, verdicts=verdicts, made_on=made_on, image=image))


def lines(test: Test, found: Summary, verdicts: list[Verdict]) -> list[str]:
    """The same as text for a terminal."""
    f = found.figures
    counts = ", ".join(f"{name} {count}" for name, count in found.outcomes.items())
    said = [
        test.title,
        f"{found.requests} requests in {found.seconds:.1f} s: {counts}",
        f"arrived {f['offered_qps']:.1f} / s, ok {f['ok_qps']:.1f} / s, failures {f['failures_pct']:.2f} %",
        "latency ms: " + "  ".join(f"{n} {f[f'{n}_ms']:.1f}" for n in ("p50", "p95", "p99", "max")),
        f"beam rows {f['beam_rows']:.0f}, degraded {f['degraded_pct']:.1f} %, "
        f"repeats {f['repeats_pct']:.1f} %",
        f"client: {f['client_cpu_ms']:.2f} ms CPU a request, {f['client_cpu_pct']:.0f} % of a core each, "
        f"sends late by {f['client_late_p99_ms']:.1f} ms (p99)",
    ]
    if found.knee is not None:
        said.append(knee_text(found.knee))
    said += [f"  {outcome} x {count}: {text}" for outcome, text, count in found.errors[:5]]
    return said + [f"note: {note}" for note in test.notes] + [str(v) for v in verdicts]


def knee_text(knee: dict[str, Any]) -> str:
    """One line."""
    if knee["qps"] is None:
        return f"knee: none up to {knee['tested_qps']:.1f} / s (p95 within {knee['limit_ms']:.0f} ms)"
    return f"knee: at {knee['qps']:.1f} / s offered ({knee['reason']}; windows of {knee['window_s']:.1f} s)"


def _write_stats(path: Path, test: Test, requests: pl.DataFrame, found: Summary) -> None:
    """Columns as `locust --csv` names them, but with exact percentiles."""
    failures = found.requests - found.outcomes.get(OK, 0)
    latency = requests.filter(pl.col("outcome").is_in(summary.WAITED))["latency_ms"].to_numpy()
    row: dict[str, Any] = {
        "Type": test.protocol,
        "Name": "gr4ad",
        "Request Count": found.requests,
        "Failure Count": failures,
        "Median Response Time": found.latency_ms[0.5],
        "Average Response Time": float(latency.mean()) if len(latency) else math.nan,
        "Min Response Time": float(latency.min()) if len(latency) else math.nan,
        "Max Response Time": found.latency_ms[1.0],
        "Average Content Size": requests["response_bytes"].mean(),
        "Requests/s": found.requests / found.seconds,
        "Failures/s": failures / found.seconds,
    }
    row |= {f"{100 * share:g}%": found.latency_ms[share] for share in QUANTILES}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)


def _page(test: Test, found: Summary, *, verdicts: list[Verdict], made_on: dict[str, str], image: str) -> str:
    figures = {name: f"{value:.4g}" for name, value in found.figures.items() if not math.isnan(value)}
    latency = {f"p{100 * share:g}": f"{value:.1f} ms" for share, value in found.latency_ms.items()}
    outcomes = {n: f"{c} ({100 * c / max(found.requests, 1):.2f} %)" for n, c in found.outcomes.items()}
    judged = [(v.figure, f"{v.relation} {v.expected:g}", f"{v.actual:.4g}", v.met) for v in verdicts]
    blocks = [f"<h1>{html.escape(test.name)}</h1><p>{html.escape(test.title)}</p>"]
    blocks += [f"<p class=missed>{html.escape(note)}</p>" for note in test.notes]
    if found.knee is not None:
        blocks.append(f"<p>{html.escape(knee_text(found.knee))}</p>")
    if judged:
        blocks.append("<h2>Thresholds</h2><table><tr><th>figure<th>expected<th>actual<th>")
        blocks += [
            f"<tr class={'met' if met else 'missed'}><td>{html.escape(figure)}<td>{html.escape(limit)}"
            f"<td>{actual}<td>{'met' if met else 'MISSED'}"
            for figure, limit, actual, met in judged
        ]
        blocks.append("</table>")
    picture_text = "rate, latency, beams, queue and failures over time"
    blocks.append(f'<img alt="{picture_text}" src="data:image/png;base64,{image}">')
    blocks.append(f"<div class=side><div><h2>Figures</h2>{_table(figures)}</div>")
    blocks.append(f"<div><h2>Latency</h2>{_table(latency)}</div>")
    blocks.append(f"<div><h2>Outcomes</h2>{_table(outcomes)}</div></div>")
    if found.errors:
        blocks.append("<h2>Failures</h2><table><tr><th>outcome<th>count<th>text")
        blocks += [f"<tr><td>{o}<td>{n}<td>{html.escape(t or '')}" for o, t, n in found.errors]
        blocks.append("</table>")
    blocks.append(f"<h2>How</h2><p><code>{html.escape(test.command)}</code></p>")
    blocks.append(f"<div class=side>{_table(test.settings)}{_table(made_on)}</div>")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(test.name)}</title>"
    return f"{head}\n<style>{_STYLE}</style>\n" + "\n".join(blocks) + "\n</html>\n"


def _table(values: dict[str, str]) -> str:
    return (
        "<table>"
        + "".join(f"<tr><th>{html.escape(k)}<td>{html.escape(v)}" for k, v in values.items())
        + "</table>"
    )
