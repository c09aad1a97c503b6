"""Runs a load test without a browser, writes its report, and judges it. See docs/loadtest.md.

Exit status: 0 all thresholds met (or none given), 1 one was missed, 2 the test could not be run, 130 stopped
by Ctrl-C (the report of what ran is there).
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import polars as pl

from launcher.server_files import ServerError
from launcher.triton_server import TritonServer
from loadtest import report, summary
from loadtest.arguments import load_of, metrics_url_of, parser, settings_of, title_of
from loadtest.measure import measure
from loadtest.mix import build_mix
from loadtest.processes import LoadTestError
from loadtest.thresholds import LIMITS, judge
from serving.model.bundle import BundleError

_CLIENT_BUSY_PCT = 80.0
_LATE_MS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser(__doc__).parse_args(arguments)
    command = shlex.join(["python", "-m", "loadtest", *(sys.argv[1:] if arguments is None else arguments)])
    # Both end a test early. SIGINT explicitly: a shell starts what runs in its background with it ignored.
    previous = {s: signal.signal(s, signal.default_int_handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        return run(options, command=command)
    except KeyboardInterrupt:
        print("stopped before there was anything to report", file=sys.stderr)
        return 130
    except (
        LoadTestError,
        ServerError,
        BundleError,
        OSError,
        ValueError,
        RuntimeError,
        pl.exceptions.PolarsError,
    ) as e:
        print(f"error: could not run: {e}", file=sys.stderr)
        return 2
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(options: argparse.Namespace, *, command: str) -> int:
    """One test with parsed options; returns the exit status (0, 1 or 130).

    Raises:
        LoadTestError, ServerError, BundleError, OSError, ValueError: it could not be run.
    """
    load = load_of(options)
    mix = build_mix(
        options.run,
        users=options.sample_users,
        num_ads=options.num_ads,
        repeats=options.repeats,
        window_s=options.repeat_window,
        seed=options.seed,
        synthetic_ads=options.synthetic_ads,
    )
    kind = "closed" if options.closed else options.shape
    name = options.name or f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = options.out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        metrics, pid = metrics_url_of(options, load), options.server_pid
        server = None
        if options.repository is not None:
            server = stack.enter_context(TritonServer(options.repository, log_file=folder / "server.log"))
            url = server.grpc_url if options.protocol == "grpc" else server.http_url
            load, metrics, pid = replace(load, url=url), server.metrics_url, server.pid
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gr4ad-loadtest-")))
        measured = measure(load, mix, work, metrics_url=metrics, pid=pid)
        if server is not None and server.poll() is not None:
            measured.notes.append(f"the server ended with status {server.poll()}, see server.log")
    found = summary.summarise(
        measured.requests,
        measured.samples,
        seconds=measured.seconds,
        cpu_s=measured.cpu_s,
        workers=load.workers,
    )
    slo_ms = options.slo_ms if options.slo_ms is not None else options.max_p99_ms
    if load.shape.kind == "ramp" and not load.closed_users:
        found = replace(found, knee=summary.find_knee(measured.requests, load.shape, slo_ms=slo_ms))
    verdicts = judge(found.figures, {name: getattr(options, name) for name in LIMITS})
    test = report.Test(
        name=name,
        title=title_of(load, options),
        command=command,
        protocol=load.protocol,
        settings=settings_of(load, mix, options),
        shape=None if load.closed_users else load.shape,
        slo_ms=slo_ms,
        notes=measured.notes + doubts(found.figures),
    )
    report.write(
        folder, test, requests=measured.requests, samples=measured.samples, found=found, verdicts=verdicts
    )
    print("\n".join(report.lines(test, found, verdicts)))
    print(f"report: {folder / 'report.html'}", flush=True)
    if measured.stopped:
        return 130
    return 0 if all(v.met for v in verdicts) else 1


def doubts(figures: dict[str, float]) -> list[str]:
    """Notes where the client itself may have been what was measured."""
    found = []
    if figures["client_cpu_pct"] > _CLIENT_BUSY_PCT:
        found.append(
            f"the client used {figures['client_cpu_pct']:.0f} % of a core: latencies hold its own waiting; "
            "use more --workers"
        )
    if figures["client_late_p99_ms"] > _LATE_MS:
        found.append(
            f"1 % of the requests were sent {figures['client_late_p99_ms']:.0f} ms late or more "
            "(it is part of their latency): the client lacked CPU time"
        )
    return found
