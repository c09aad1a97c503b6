"""The command `python -m gateway`: KServe v2 over HTTP in front of a Triton that only speaks gRPC."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_EPILOG = """examples:
  python -m gateway                           listens on 8000 (HTTP) and 8002 (metrics), Triton's gRPC on 8001
  python -m gateway --port 0 --metrics-port 0 --triton 127.0.0.1:9001 --model gr4ad --model other
  curl http://127.0.0.1:8000/v2/health/ready
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gateway",
        description="Takes inferences over HTTP (KServe v2), checks them within bounds, and forwards them to "
        "Triton over gRPC. Ready is said only while a real request is answered. SIGTERM ends it once the "
        "requests in hand are answered.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all [127.0.0.1]")
    add("--port", type=int, default=8000, help="inference, metadata and health; 0 for any free port [8000]")
    add(
        "--metrics-port",
        type=int,
        default=8002,
        help="Prometheus metrics and health; 0 for any free port [8002]",
    )
    add("--triton", default="127.0.0.1:8001", metavar="HOST:PORT", help="Triton's gRPC port [127.0.0.1:8001]")
    add(
        "--triton-metrics", metavar="URL", help="Triton's metrics page, shown behind the gateway's own [none]"
    )
    add("--draining", type=Path, metavar="FILE", help="not ready while that file exists [none]")
    add("--model", action="append", help="model that may be asked for; repeat for several [gr4ad]")
    limits = parser.add_argument_group("bounds")
    add = limits.add_argument
    add("--body-mib", type=float, default=16, help="MiB of a body, packed and unpacked [16]")
    add(
        "--json-mib",
        type=float,
        default=2,
        help="MiB of a request's JSON; tensors go behind it in binary [2]",
    )
    add("--pending-mib", type=float, default=256, help="MiB of all bodies at once [256]")
    add("--connections", type=int, default=1000, help="open connections in all [1000]")
    add("--per-address", type=int, default=800, help="open connections of one client address [800]")
    add("--header-s", type=float, default=10, help="seconds to send a header [10]")
    add("--body-s", type=float, default=30, help="seconds to send a body [30]")
    add("--idle-s", type=float, default=75, help="seconds between two requests of a connection [75]")
    add("--request-s", type=float, default=30, help="seconds Triton has for a request [30]")
    add("--grace-s", type=float, default=20, help="seconds for requests in hand after SIGTERM [20]")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0 stopped, 1 failed, 2 wrong options)."""
    stopped: list[int] = []
    # Noted, not raised: an exception in the middle of an import would come out as another one.
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda got, _: stopped.append(got)) for number in numbers}
    try:
        _serve(_parser().parse_args(arguments), stopped)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    print("stopped", flush=True)
    return 0


def _serve(options: argparse.Namespace, stopped: list[int]) -> None:
    from gateway.app import HEALTH, Gateway  # gRPC takes a moment to import; --help need not wait for it
    from gateway.errors import error_body
    from gateway.limits import Limits
    from gateway.metrics import Metrics
    from gateway.scrape import Scrape
    from gateway.triton import Triton
    from web.connections import ConnectionLimits, Connections
    from web.hosts import is_loopback
    from web.server import bind, listen, serve

    metrics = Metrics()
    connections = Connections(
        ConnectionLimits(
            connections=options.connections,
            per_address=options.per_address,
            header_s=options.header_s,
            body_s=options.body_s,
            idle_s=options.idle_s,
        ),
        body_of=error_body,
        health=HEALTH,
        refused=metrics.refused,
    )
    metrics.count_connections(lambda: len(connections.open))
    with bind(options.host, options.port) as listener, bind(options.host, options.metrics_port) as page:
        app = Gateway(
            Triton(options.triton, timeout_s=options.request_s),
            options.model or ["gr4ad"],
            limits=Limits(
                body_bytes=int(options.body_mib * (1 << 20)),
                json_bytes=int(options.json_mib * (1 << 20)),
                pending_bytes=int(options.pending_mib * (1 << 20)),
            ),
            metrics=metrics,
            scrape=Scrape(options.triton_metrics) if options.triton_metrics else None,
            metrics_port=page.getsockname()[1],
            own_host=is_loopback(options.host),
            stopping=lambda: (
                connections.draining_since is not None
                or (options.draining is not None and options.draining.exists())
            ),
        )
        url, metrics_url = listen(listener), listen(page)  # whoever reads the line below may connect
        print(
            f"gateway on {url}, metrics on {metrics_url}, Triton at {options.triton} (pid {os.getpid()})",
            flush=True,
        )
        serve(
            app,
            *(listener, page),
            connections=connections,
            grace_s=options.grace_s,
            ended=lambda: bool(stopped),  # a signal before the server listened for it
        )


if __name__ == "__main__":
    sys.exit(main())
