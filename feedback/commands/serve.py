"""`python -m feedback serve`: the service as a process."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from feedback.join.rules import JoinConfig
from feedback.service.config import KAFKA, REDIS, SERVED, FeedbackConfig
from feedback.service.service import Service
from feedback.store.layout import FeedbackStoreError
from indexer.commands.service import (
    add_address,
    add_streams,
    add_writer,
    kafka_of,
    map_size_of,
    redis_of,
    run_command,
    serve_until_stopped,
    writer_of,
)

TOKEN, REDIS_URL = "GR4AD_FEEDBACK_TOKEN", "GR4AD_FEEDBACK_REDIS_URL"

_DESCRIPTION = """Joins what was served with what came of it: training samples in order, histories of users.
Feedback comes over HTTP, Redis Streams and Kafka, served records from files or a Redis stream. Every event is
acknowledged after its commit. One process a store; Ctrl-C or SIGTERM ends it in order."""
_EPILOG = f"""examples:
  python -m feedback serve --store build/demo/feedback --served build/demo/served
  python -m feedback serve ... --redis-url redis://127.0.0.1:6379/0 --served-stream gr4ad:served
  python -m feedback serve ... --kafka-brokers 127.0.0.1:9092 --kafka-topic feedback
  python -m feedback serve ... --host 0.0.0.0 --token-file /run/secrets/feedback-token

environment: {TOKEN} (token of writers), {REDIS_URL} (keeps a password out of the process list)
pages: http://127.0.0.1:8020/docs (API), /readyz, /metrics
"""


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m feedback serve",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, times = made.add_argument, JoinConfig()
    add("--store", type=Path, required=True, help="folder of the store; one is made where there is none")
    add("--served", type=Path, help="folder of a served log (serving.served_log.sink: file)")
    add("--served-stream", help="Redis stream of served records (sink: redis), on --redis-url")
    add_address(made, port=8020, variable=TOKEN)
    add("--window-s", type=float, default=times.window_s, help=f"of a first sample [{times.window_s:g}]")
    add("--correct-s", type=float, default=times.correct_s, help=f"of corrections [{times.correct_s:g}]")
    add("--wait-s", type=float, default=times.wait_s, help=f"for a record [{times.wait_s:g}]")
    add("--skew-s", type=float, default=times.skew_s, help=f"between clocks [{times.skew_s:g}]")
    add(
        "--clock",
        choices=("wall", "served"),
        default=times.clock,
        help=f"served: windows go by the requests' own time, for what is played again [{times.clock}]",
    )
    add("--max-history", type=int, default=times.max_history, help=f"of a user [{times.max_history}]")
    add("--keep-samples", type=int, default=times.keep_samples, help=f"newest [{times.keep_samples}]")
    add_writer(made)
    add_streams(made, redis=REDIS, kafka=KAFKA, variable=REDIS_URL, keyed_by="request")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0 stopped, 1 failed, 2 wrong options)."""
    made = parser()
    options = made.parse_args(arguments)
    return run_command(lambda: _serve(options, made), refused=(FeedbackStoreError, ImportError, OSError))


def _serve(options: argparse.Namespace, made: argparse.ArgumentParser) -> int:
    from feedback.http.app import create_app  # FastAPI takes a second to import; --help need not wait for it
    from indexer.http.api import WriterApi
    from indexer.http.guard import Guard
    from web.server import bind
    from web.tokens import read_token

    try:
        token = read_token(options.token_file, variable=TOKEN)
        guard = Guard(options.host, token=token, variable=TOKEN)
        config = _config(options)
    except ValueError as error:
        made.error(str(error))
    with contextlib.closing(bind(options.host, options.port)) as listener:
        try:
            service = Service(config)
        except ValueError as error:
            made.error(str(error))
        api = WriterApi(worker=service.worker, metrics=service.metrics, guard=guard, ready=service.ready)

        def say(url: str) -> None:
            print(f"feedback ready to take events on {url} (pid {os.getpid()})", flush=True)

        return serve_until_stopped(service, create_app(api, service.joiner), listener, say=say)


def _config(options: argparse.Namespace) -> FeedbackConfig:
    served_redis = None
    if options.served_stream:
        if not options.redis_url:
            raise ValueError(f"--served-stream: expected --redis-url or {REDIS_URL}, got neither")
        if options.served_stream == options.redis_stream:
            raise ValueError(f"--served-stream: expected another than feedback's, got {options.redis_stream}")
        served_redis = dataclasses.replace(SERVED, url=options.redis_url, stream=options.served_stream)
    times = ("window_s", "correct_s", "wait_s", "skew_s", "clock", "max_history", "keep_samples")
    return FeedbackConfig(
        options.store,
        served=options.served,
        served_redis=served_redis,
        redis=redis_of(options),
        kafka=kafka_of(options),
        join=JoinConfig(**{name: getattr(options, name) for name in times}),
        worker=writer_of(options),
        map_size=map_size_of(options),
    )
