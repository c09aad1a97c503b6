"""`python -m indexer serve`: the sidecar as a process."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

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
from indexer.sidecar.config import SidecarConfig
from indexer.sidecar.sidecar import Sidecar
from indexer.sources.config import KafkaConfig, RedisConfig
from serving.index.layout import IndexStoreError

log = logging.getLogger("gr4ad.indexer")

TOKEN, REDIS_URL = "GR4AD_INDEXER_TOKEN", "GR4AD_REDIS_URL"

_DESCRIPTION = """Takes ad events from HTTP, Redis Streams and Kafka, keeps the index that the servers read.
Every event is acknowledged after its commit. One process an index; Ctrl-C or SIGTERM ends it in order."""
_EPILOG = f"""examples:
  python -m indexer serve --index build/demo/index --bundles build/demo/bundles
  python -m indexer serve ... --redis-url redis://127.0.0.1:6379/0 --redis-stream gr4ad:ads
  python -m indexer serve ... --kafka-brokers 127.0.0.1:9092 --kafka-topic ads
  python -m indexer serve ... --host 0.0.0.0 --token-file /run/secrets/indexer-token

environment: {TOKEN} (token of writers), {REDIS_URL} (keeps a password out of the process list)
pages: http://127.0.0.1:8010/docs (API), /readyz, /metrics
"""


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m indexer serve",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add(
        "--index",
        type=Path,
        required=True,
        help="folder of the index; an empty one is made where there is none",
    )
    add(
        "--bundles",
        type=Path,
        required=True,
        help="folder of bundles: encoders of new ads, followed while running",
    )
    add_address(made, port=8010, variable=TOKEN)
    add(
        "--accounts",
        type=Path,
        help="file of known account ids, one a line; events of others are rejected [any]",
    )
    add(
        "--attributes",
        type=Path,
        help="file of the preset's serving.attributes as JSON, which audiences may name "
        "[BUNDLES/attributes.json, as `make export` writes it]",
    )
    add_writer(made)
    add_streams(
        made, redis=RedisConfig(""), kafka=KafkaConfig("", "gr4ad-ads"), variable=REDIS_URL, keyed_by="ad"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0 stopped, 1 failed, 2 wrong options)."""
    made = parser()
    options = made.parse_args(arguments)
    return run_command(lambda: _serve(options, made), refused=(IndexStoreError, ImportError, OSError))


def _serve(options: argparse.Namespace, made: argparse.ArgumentParser) -> int:
    began = time.monotonic()
    from indexer.http.api import Api  # FastAPI takes a second to import; --help need not wait for it
    from indexer.http.app import create_app
    from indexer.http.guard import Guard
    from web.server import bind
    from web.tokens import read_token

    try:
        guard = Guard(options.host, token=read_token(options.token_file, variable=TOKEN))
        config = _config(options)
    except ValueError as error:
        made.error(str(error))
    with contextlib.closing(bind(options.host, options.port)) as listener:
        try:
            sidecar = Sidecar(config)
        except ValueError as error:
            made.error(str(error))
        app = create_app(
            Api(
                store=sidecar.store,
                worker=sidecar.worker,
                metrics=sidecar.metrics,
                gaps=sidecar.gaps,
                guard=guard,
                ready=sidecar.ready,
            )
        )

        def say(url: str) -> None:
            print(f"indexer ready to take events on {url} (pid {os.getpid()})")
            print(f"  index {config.index}, version {sidecar.store.meta.sequence}", end=", ")
            print(f"up after {time.monotonic() - began:.1f} s", flush=True)

        return serve_until_stopped(sidecar, app, listener, say=say)


def _config(options: argparse.Namespace) -> SidecarConfig:
    return SidecarConfig(
        options.index,
        options.bundles,
        accounts=options.accounts,
        attributes=options.attributes,
        redis=redis_of(options),
        kafka=kafka_of(options),
        worker=writer_of(options),
        map_size=map_size_of(options),
    )
