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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from launcher import ServerError, TritonServer
from loadtest import report, summary
from loadtest.mix import Mix, build_mix
from loadtest.options import Load
from loadtest.processes import LoadTestError, Workers
from loadtest.sampler import Sampler
from loadtest.shapes import CURVES, Shape
from loadtest.thresholds import LIMITS, judge
from serving.model.bundle import BundleError

_CLIENT_BUSY_PCT = 80.0
_LATE_MS = 10.0
_EPILOG = """examples:
  python -m loadtest --qps 10 --duration 60                      a server that runs on 8001
  python -m loadtest --repository model_repository --shape spike --qps 5 --peak 4 --max-p99-ms 500
  python -m loadtest --protocol http --url 127.0.0.1:8000 --closed --users 8
"""


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    found = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument_group("load").add_argument
    add("--shape", choices=tuple(CURVES), default="steady", help="offered rate over time [steady]")
    add("--qps", type=float, default=10.0, help="base rate, requests a second [10]")
    add("--peak", type=float, default=4.0, help="highest rate, times the base rate [4]")
    add("--duration", type=float, default=60.0, help="seconds [60]")
    add("--closed", action="store_true", help="closed loop: --users send one request after the other")
    add("--users", type=int, default=8, help="users of the closed loop [8]")
    add("--workers", type=int, default=1, help="processes that make the load [1]")
    add("--max-outstanding", type=int, default=512, help="beyond it requests are client_saturated [512]")
    add("--deadline-ms", type=float, default=10_000.0, help="of a request [10000]")
    add("--drain", type=float, default=10.0, help="seconds that answers may come after the last request [10]")
    add("--seed", type=int, default=0)
    add = found.add_argument_group("requests").add_argument
    add("--run", type=Path, default=Path("build/demo"), help="run folder the server serves [build/demo]")
    add("--num-ads", type=int, default=10)
    add("--sample-users", type=int, default=500, help="users of the logs to take [500]")
    add("--synthetic-ads", type=int, metavar="N", help="made-up users who saw the ads 1 .. N")
    add("--repeats", type=float, default=0.278, help="share of requests sent again [0.278]")
    add("--repeat-window", type=float, default=60.0, help="... within seconds [60]")
    add("--widths", help='request parameter, e.g. "32-64-128:32"')
    add("--width-cap", type=int, help="request parameter")
    add("--parameter", action="append", default=[], metavar="NAME=VALUE", help="another one; repeat for more")
    add = found.add_argument_group("server").add_argument
    add("--protocol", choices=("grpc", "http"), default="grpc")
    add("--url", help="host:port of a server that runs [127.0.0.1:8001, for http 127.0.0.1:8000]")
    add("--metrics-url", help="its metrics page, or none [http://<host of --url>:8002/metrics]")
    add("--server-pid", type=int, help="its process here, for memory and CPU time")
    add("--repository", type=Path, help="start a server on this model repository instead, and stop it again")
    add = found.add_argument_group("thresholds (exit status 1 when one is missed)").add_argument
    for name, (figure, relation) in LIMITS.items():
        add(f"--{name.replace('_', '-')}", type=float, metavar="X", help=f"{figure} {relation} X")
    add = found.add_argument_group("report").add_argument
    add("--slo-ms", type=float, help="line in the picture, limit of the knee [--max-p99-ms]")
    add("--name", help="of the report [shape-time]")
    add("--out", type=Path, default=Path("build/loadtest"), help="folder of reports [build/loadtest]")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
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
        metrics, pid = _metrics_url(options, load), options.server_pid
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
        name,
        title_of(load, options),
        command,
        load.protocol,
        settings_of(load, mix, options),
        None if load.closed_users else load.shape,
        slo_ms,
        measured.notes + doubts(found.figures),
    )
    report.write(folder, test, measured.requests, measured.samples, found, verdicts)
    print("\n".join(report.lines(test, found, verdicts)))
    print(f"report: {folder / 'report.html'}", flush=True)
    if measured.stopped:
        return 130
    return 0 if all(v.met for v in verdicts) else 1


@dataclass
class Measured:
    """What a test left behind.

    Attributes:
        requests: of `summary.read_requests`.
        samples: of `Sampler`.
        seconds: how long load was offered.
        cpu_s: CPU seconds of the client's processes.
        stopped: by Ctrl-C.
        notes: what a reader of the report must know.
    """

    requests: pl.DataFrame
    samples: list[dict[str, Any]]
    seconds: float
    cpu_s: float
    stopped: bool
    notes: list[str]


def measure(load: Load, mix: Mix, folder: Path, *, metrics_url: str | None, pid: int | None) -> Measured:
    """Make the load and collect what came of it; Ctrl-C ends it early, a second one ends everything.

    Raises:
        LoadTestError: no answer to the first request, a worker that failed, or not one request.
    """
    stopped, notes = False, []
    with Workers(load, mix, folder) as workers:
        start = workers.go()
        sampler = Sampler(metrics_url=metrics_url, pid=pid, start=start)
        sampler.start()
        seconds = load.shape.duration_s
        try:
            try:
                workers.wait()
            except KeyboardInterrupt:
                seconds = min(seconds, max(time.monotonic() - start, 1e-3))
                stopped = True
                notes.append(f"stopped after {seconds:.1f} of {load.shape.duration_s:g} s")
                workers.stop()
                workers.wait()
        finally:
            samples = sampler.stop()
        if metrics_url is not None and not any("success_total" in s for s in samples):
            notes.append(f"no metrics of gr4ad from {metrics_url}")
        requests = summary.read_requests(workers.files())
        if not requests.height:
            raise LoadTestError(
                f"expected requests within {seconds:g} s, got none: raise --qps or --duration"
            )
        return Measured(requests, samples, seconds, workers.cpu_s(), stopped, notes)


def load_of(options: argparse.Namespace) -> Load:
    """Settings of the load.

    Raises:
        ValueError: one is out of range.
    """
    parameters: dict[str, Any] = {}
    for text in options.parameter:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"--parameter: expected NAME=VALUE, got {text!r}")
        parameters[name] = int(value) if value.lstrip("-").isdigit() else value
    parameters |= {k: v for k in ("widths", "width_cap") if (v := getattr(options, k)) is not None}
    if options.closed and options.users < 1:
        raise ValueError(f"--users: expected 1 or more, got {options.users}")
    return Load(
        url=options.url or ("127.0.0.1:8001" if options.protocol == "grpc" else "127.0.0.1:8000"),
        protocol=options.protocol,
        shape=Shape(options.shape, options.qps, options.duration, options.peak),
        closed_users=options.users if options.closed else 0,
        workers=options.workers,
        deadline_s=options.deadline_ms / 1e3,
        max_outstanding=options.max_outstanding,
        drain_s=options.drain,
        seed=options.seed,
        parameters=parameters,
    )


def title_of(load: Load, options: argparse.Namespace) -> str:
    """One line for report and picture."""
    if load.closed_users:
        offered = f"closed loop of {load.closed_users} users"
    elif load.shape.kind == "steady":
        offered = f"open loop, steady {load.shape.qps:g} requests / s"
    else:
        highest = load.shape.qps * load.shape.peak
        offered = f"open loop, {load.shape.kind} between {load.shape.qps:g} and {highest:g} requests / s"
    return f"{offered}, {load.shape.duration_s:g} s, {load.protocol}, {options.num_ads} ads a request"


def settings_of(load: Load, mix: Mix, options: argparse.Namespace) -> dict[str, str]:
    """What else a reader of the report should know."""
    found = {
        "requests": mix.source,
        "asked again": f"{mix.repeats:.1%} within {mix.window_s:g} s",
        "deadline": f"{load.deadline_s * 1e3:g} ms",
        "outstanding at most": str(load.max_outstanding),
        "client processes": str(load.workers),
        "seed": str(load.seed),
        "server": f"started from {options.repository}" if options.repository else load.url,
    }
    if load.parameters:
        found["parameters"] = ", ".join(f"{k}={v}" for k, v in load.parameters.items())
    return found


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


def _metrics_url(options: argparse.Namespace, load: Load) -> str | None:
    if options.metrics_url == "none":
        return None
    return options.metrics_url or f"http://{load.url.rsplit(':', 1)[0]}:8002/metrics"
