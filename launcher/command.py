"""The command `python -m launcher`: serves a model repository until Ctrl-C, or detached."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.paths import DEFAULT_CACHE, HOME
from launcher.processes import raise_file_limit
from launcher.run_file import DEFAULT_RUN_FILE, RunFile, start_time
from launcher.server_files import ServerError, prepare_server
from launcher.supervisor import Supervisor
from launcher.triton_server import TritonServer

_EPILOG = """examples:
  python -m launcher                                  serve model_repository on 8000, 8001, 8002
  python -m launcher --http-port 0 --grpc-port 0 --metrics-port 0          any free ports
  python -m launcher --detach                         return once it is ready ...
  python -m launcher --stop                           ... and stop it again
  python -m launcher.admin load                       load the new versions of all models
"""


def parser() -> argparse.ArgumentParser:
    """Its options."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher",
        description="Serves a model repository, starts again what dies, stops on Ctrl-C.",
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
    add("--log", default=str(log), help="the server's log, - for standard output [build/triton/server.log]")
    add("--tritonserver", help="an installed server (path or name in PATH) instead of the wheel's")
    add("--timeout", type=float, default=120.0, help="seconds it may take to be ready [120]")
    add("--lame-duck", type=float, default=1.0, help="seconds at a stop with health no, requests yes [1]")
    add("--grace", type=float, default=30.0, help="seconds after that for requests in hand [30]")
    add("--run-file", type=Path, default=DEFAULT_RUN_FILE, help="process id, address and key [%(default)s]")
    add("--detach", action="store_true", help="leave the launcher running once the server is ready")
    add("--stop", action="store_true", help="stop the launcher of --run-file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0 fine, 1 the server failed).

    Raises:
        KeyboardInterrupt: it was stopped, and what it started is.
        SystemExit: wrong options.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(arguments)
    try:
        if options.stop:
            return _stop(options.run_file)
        return _detach(options, arguments) if options.detach else _serve(options)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _serve(options: argparse.Namespace) -> int:
    started = time.monotonic()
    raise_file_limit()
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
        lame_duck_s=options.lame_duck,
        grace_s=options.grace,
    ) as server:
        _log_to(server)
        own_start = start_time(os.getpid())
        assert own_start is not None
        run = RunFile(pid=os.getpid(), started=own_start, grpc_url=server.grpc_url, key=server.key)
        run.write(options.run_file)
        try:
            print(f"Triton is ready after {time.monotonic() - started:.1f} s, pid {server.pid}")
            print(f"  log      {options.log}")
            print(
                f"  HTTP     {server.http_url}\n  gRPC     {server.grpc_url}\n  metrics  {server.metrics_url}"
            )
            print(f"try: make request   (or: python -m examples.request --url {server.grpc_url})", flush=True)
            Supervisor(server).run()
        finally:
            options.run_file.unlink(missing_ok=True)
    return 0


def _log_to(server: TritonServer) -> None:
    """What the launcher has to say goes into the server's log, which is bounded."""
    handlers: list[logging.Handler] = [logging.StreamHandler(server.log.stream)]
    if sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
    logging.basicConfig(level=logging.INFO, format="launcher %(asctime)s %(message)s", handlers=handlers)


def _detach(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Starts another launcher in a session of its own, and waits until it serves."""
    output = options.run_file.with_name(f"{options.run_file.name}.out")
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "launcher", *(a for a in arguments if a != "--detach")]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=HOME, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        while process.poll() is None:
            text = output.read_text()
            if "try: " in text:
                print(text, end="", flush=True)
                return 0
            time.sleep(0.1)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    raise ServerError(output.read_text().strip().removeprefix("error: "))


def _stop(run_file: Path) -> int:
    run = RunFile.read(run_file)
    was_running = run.runs
    if was_running:
        os.kill(run.pid, signal.SIGTERM)
    while run.runs:
        time.sleep(0.1)
    run_file.unlink(missing_ok=True)
    print(f"pid {run.pid}: {'stopped' if was_running else 'no launcher of ours any more'}")
    return 0
