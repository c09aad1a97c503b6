"""The command line of a load test, and what its options mean. See docs/loadtest.md."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loadtest.mix import Mix
from loadtest.options import Load
from loadtest.shapes import CURVES, Shape
from loadtest.thresholds import LIMITS

_EPILOG = """examples:
  python -m loadtest --qps 10 --duration 60                      a server that runs on 8001
  python -m loadtest --repository model_repository --shape spike --qps 5 --peak 4 --max-p99-ms 500
  python -m loadtest --protocol http --url 127.0.0.1:8000 --closed --users 8
"""


def parser(description: str) -> argparse.ArgumentParser:
    """Options of the command."""
    found = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=description,
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


def metrics_url_of(options: argparse.Namespace, load: Load) -> str | None:
    """The server's metrics page; None where it is not to be read."""
    if options.metrics_url == "none":
        return None
    return options.metrics_url or f"http://{load.url.rsplit(':', 1)[0]}:8002/metrics"
