"""`python -m indexer serve`: the sidecar as a process."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from indexer.sidecar.config import SidecarConfig, WorkerConfig
from indexer.sidecar.log_limit import LogLimit
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
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; others than loopback need a token [127.0.0.1]",
    )
    add("--port", type=int, default=8010, help="0 for any free one [8010]")
    add("--token-file", type=Path, help=f"file with the token that writers send as Bearer [${TOKEN}]")
    add(
        "--accounts",
        type=Path,
        help="file of known account ids, one a line; events of others are rejected [any]",
    )
    add("--batch-events", type=int, default=256, help="most events of one commit [256]")
    add("--batch-ms", type=float, default=10.0, help="wait for more events after the first [10]")
    add("--queue", type=int, default=4096, help="events that may wait; streams fill half of it [4096]")
    add("--map-size-gib", type=float, default=64.0, help="most that the store may take on disk [64]")
    redis = made.add_argument_group("Redis Streams")
    add = redis.add_argument
    add(
        "--redis-url",
        default=os.environ.get(REDIS_URL),
        help=f"redis://, rediss:// or unix:// [${REDIS_URL}]",
    )
    add(
        "--redis-stream",
        default="gr4ad:ads",
        help="entries have the event's JSON in field `event` [gr4ad:ads]",
    )
    add("--redis-group", default="gr4ad-indexer", help="consumer group, one an index [gr4ad-indexer]")
    add("--redis-consumer", default="indexer", help="name in the group [indexer]")
    kafka = made.add_argument_group("Kafka (needs confluent-kafka: make kafka-setup)")
    add = kafka.add_argument
    add("--kafka-brokers", help="host:port, comma separated")
    add(
        "--kafka-topic",
        default="gr4ad-ads",
        help="its messages are the events' JSON, keyed by ad [gr4ad-ads]",
    )
    add("--kafka-group", default="gr4ad-indexer", help="group that offsets are reported for [gr4ad-indexer]")
    add(
        "--kafka-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="setting of librdkafka; repeat",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0 stopped, 1 failed, 2 wrong options)."""
    made = parser()
    options = made.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogLimit())
    # SIGTERM ends like Ctrl-C, so that it stops the service in order also while that is still starting.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _serve(options, made)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0
    except (IndexStoreError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def _serve(options: argparse.Namespace, made: argparse.ArgumentParser) -> int:
    began = time.monotonic()
    from indexer.http.api import Api  # FastAPI takes a second to import; --help need not wait for it
    from indexer.http.app import create_app
    from indexer.http.guard import Guard
    from indexer.http.reads import HEALTH
    from web.answers import error_body
    from web.connections import ConnectionLimits, Connections
    from web.server import bind, listen, serve
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
        clean = False
        try:
            sidecar.start()
            url = listen(listener)  # whoever reads the line below may connect
            print(f"indexer ready to take events on {url} (pid {os.getpid()})")
            print(f"  index {config.index}, version {sidecar.store.meta.sequence}", end=", ")
            print(f"up after {time.monotonic() - began:.1f} s", flush=True)
            serve(
                app,
                listener,
                connections=Connections(ConnectionLimits(), body_of=error_body, health=HEALTH),
                ended=lambda: sidecar.worker.crash is not None,
            )
        finally:
            with _no_interrupts():
                clean = sidecar.stop()
    if sidecar.worker.crash is not None or not clean:
        print(f"error: the writer ended: {sidecar.worker.crash or 'still busy'}", file=sys.stderr)
        return 1
    return 0


def _config(options: argparse.Namespace) -> SidecarConfig:
    redis = kafka = None
    if options.redis_url:
        redis = RedisConfig(
            options.redis_url,
            stream=options.redis_stream,
            group=options.redis_group,
            consumer=options.redis_consumer,
        )
    if options.kafka_brokers:
        settings = dict(_pair(text) for text in options.kafka_option)
        kafka = KafkaConfig(
            options.kafka_brokers, topic=options.kafka_topic, group=options.kafka_group, options=settings
        )
    return SidecarConfig(
        options.index,
        options.bundles,
        accounts=options.accounts,
        redis=redis,
        kafka=kafka,
        worker=WorkerConfig(options.batch_events, batch_ms=options.batch_ms, queue_events=options.queue),
        map_size=int(options.map_size_gib * (1 << 30)),
    )


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--kafka-option: expected NAME=VALUE, got {text!r}")
    return name, value


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """A second Ctrl-C must not cut the last commit's acknowledgement; stopping is bounded in time."""
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
