"""The command `python -m launcher`: serves a model repository until Ctrl-C, or detached."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.server_files import ServerError, prepare_server
from launcher.server_process import stop_pid
from launcher.triton_server import DEFAULT_CACHE, HOME, TritonServer

_EPILOG = """examples:
  python -m launcher                                  serve model_repository on 8000, 8001, 8002
  python -m launcher --http-port 0 --grpc-port 0 --metrics-port 0          any free ports
  python -m launcher --detach --pid-file build/triton/server.pid           return once ready ...
  python -m launcher --stop --pid-file build/triton/server.pid             ... and stop it again
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launcher",
        description="Starts Triton with a model repository, waits until all are ready, stops on Ctrl-C.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--repository", type=Path, default=HOME / "model_repository", help="model folder [model_repository]")
    add("--model", action="append", help="load only this model; repeat for several [every model]")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all [127.0.0.1]")
    for service, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        add(f"--{service}-port", type=int, default=port, help=f"must be free; 0 for any free one [{port}]")
    log = DEFAULT_CACHE / "server.log"
    add("--log", type=Path, default=log, help="the server's log [build/triton/server.log]")
    add("--tritonserver", help="an installed server (path or name in PATH) instead of the wheel's")
    add("--timeout", type=float, default=120.0, help="seconds it may take to be ready [120]")
    add("--pid-file", type=Path, help="where to write, or for --stop to read, the server's process id")
    add("--detach", action="store_true", help="leave the server running once it is ready (needs --pid-file)")
    add("--stop", action="store_true", help="stop the server of --pid-file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0 fine, 1 the server failed, 2 wrong options)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.detach or options.stop) and options.pid_file is None:
        parser.error("--detach and --stop need --pid-file")
    # SIGTERM ends like Ctrl-C, so that it stops the server also while that is still starting.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _stop(options.pid_file) if options.stop else _serve(options)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def _serve(options: argparse.Namespace) -> int:
    started = time.monotonic()
    with TritonServer(
        options.repository,
        models=options.model,
        http_port=options.http_port or None,
        grpc_port=options.grpc_port or None,
        metrics_port=options.metrics_port or None,
        host=options.host,
        files=prepare_server(DEFAULT_CACHE, tritonserver=options.tritonserver),
        log_file=options.log,
        startup_timeout_s=options.timeout,
    ) as server:
        print(f"Triton is ready after {time.monotonic() - started:.1f} s, pid {server.pid}")
        print(f"  log      {server.log_file}")
        print(f"  HTTP     {server.http_url}\n  gRPC     {server.grpc_url}\n  metrics  {server.metrics_url}")
        print(f"try: make request   (or: python -m examples.request --url {server.grpc_url})", flush=True)
        if options.pid_file is not None:
            options.pid_file.parent.mkdir(parents=True, exist_ok=True)
            options.pid_file.write_text(f"{server.pid}\n")
        if options.detach:
            server.detach()
            return 0
        try:
            while (exit_code := server.poll()) is None:
                time.sleep(0.2)
        finally:
            if options.pid_file is not None:
                options.pid_file.unlink(missing_ok=True)
        raise ServerError(f"the Triton server ended by itself with status {exit_code}\n{server.log_tail()}")


def _stop(pid_file: Path) -> int:
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError) as error:
        raise ServerError(f"no process id of a server in {pid_file}: {error}") from error
    was_running = stop_pid(pid)
    pid_file.unlink(missing_ok=True)
    print(f"pid {pid}: {'stopped' if was_running else 'no Triton server of ours any more'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
