"""What commands of a service share: options of its address and its streams, its start and its end."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from indexer.sidecar.config import WorkerConfig
from indexer.sidecar.log_limit import LogLimit
from indexer.sidecar.writing import WritingService
from indexer.sources.config import KafkaConfig, RedisConfig


def add_address(parser: argparse.ArgumentParser, *, port: int, variable: str) -> None:
    """Options of where a service listens and who may write.

    Args:
        parser: of the command.
        port: default.
        variable: of the environment that may hold the token.
    """
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; others than loopback need a token [127.0.0.1]",
    )
    parser.add_argument("--port", type=int, default=port, help=f"0 for any free one [{port}]")
    parser.add_argument(
        "--token-file", type=Path, help=f"file with the token that writers send as Bearer [${variable}]"
    )


def add_writer(parser: argparse.ArgumentParser) -> None:
    """Options of the sizes of batches and of the store, the same for every service that writes."""
    add = parser.add_argument
    add("--batch-events", type=int, default=256, help="most events of one commit [256]")
    add("--batch-ms", type=float, default=10.0, help="wait for more events after the first [10]")
    add("--queue", type=int, default=4096, help="events that may wait; streams fill half of it [4096]")
    add("--map-size-gib", type=float, default=64.0, help="most that the store may take on disk [64]")


def writer_of(options: argparse.Namespace) -> WorkerConfig:
    """Batches that the options ask for.

    Raises:
        ValueError: out of range.
    """
    return WorkerConfig(options.batch_events, batch_ms=options.batch_ms, queue_events=options.queue)


def map_size_of(options: argparse.Namespace) -> int:
    """Bytes that the store may take."""
    return int(options.map_size_gib * (1 << 30))


def add_streams(
    parser: argparse.ArgumentParser, *, redis: RedisConfig, kafka: KafkaConfig, variable: str, keyed_by: str
) -> None:
    """Options of the streams that a service reads.

    Args:
        parser: of the command.
        redis: defaults.
        kafka: defaults.
        variable: of the environment that may hold the URL of Redis.
        keyed_by: what messages of a topic are keyed by.
    """
    group = parser.add_argument_group("Redis Streams")
    group.add_argument(
        "--redis-url",
        default=os.environ.get(variable),
        help=f"redis://, rediss:// or unix:// [${variable}]",
    )
    group.add_argument(
        "--redis-stream",
        default=redis.stream,
        help=f"entries have the event's JSON in field `{redis.field}` [{redis.stream}]",
    )
    group.add_argument(
        "--redis-group", default=redis.group, help=f"consumer group of its own [{redis.group}]"
    )
    group.add_argument(
        "--redis-consumer", default=redis.consumer, help=f"name in the group [{redis.consumer}]"
    )
    group = parser.add_argument_group("Kafka (needs confluent-kafka: make kafka-setup)")
    group.add_argument("--kafka-brokers", help="host:port, comma separated")
    group.add_argument(
        "--kafka-topic",
        default=kafka.topic,
        help=f"its messages are the events' JSON, keyed by {keyed_by} [{kafka.topic}]",
    )
    group.add_argument(
        "--kafka-group", default=kafka.group, help=f"group that offsets are reported for [{kafka.group}]"
    )
    group.add_argument(
        "--kafka-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="setting of librdkafka; repeat",
    )


def redis_of(options: argparse.Namespace) -> RedisConfig | None:
    """The stream that the options name; None for none."""
    if not options.redis_url:
        return None
    return RedisConfig(
        options.redis_url,
        stream=options.redis_stream,
        group=options.redis_group,
        consumer=options.redis_consumer,
    )


def kafka_of(options: argparse.Namespace) -> KafkaConfig | None:
    """The topic that the options name; None for none.

    Raises:
        ValueError: an option that is not NAME=VALUE.
    """
    if not options.kafka_brokers:
        return None
    settings = dict(_pair(text) for text in options.kafka_option)
    return KafkaConfig(
        options.kafka_brokers, topic=options.kafka_topic, group=options.kafka_group, options=settings
    )


def run_command(command: Callable[[], int], *, refused: tuple[type[Exception], ...]) -> int:
    """Run a service's command with logs on stderr; returns its exit status (0 stopped, 1 failed).

    Args:
        command: starts the service and returns when it has ended.
        refused: errors that are said in a line.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogLimit())
    # SIGTERM ends like Ctrl-C, so that it stops the service in order also while that is still starting.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command()
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0
    except refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def serve_until_stopped(
    service: WritingService, app: Any, listener: socket.socket, *, say: Callable[[str], None]
) -> int:
    """Serve, and stop in order whatever ends it; returns the exit status.

    Args:
        service: not started yet.
        app: its HTTP API, an ASGI application.
        listener: bound socket.
        say: is told the URL once others may connect.
    """
    from indexer.http.reads import HEALTH  # FastAPI takes a second to import; --help need not wait for it
    from web.answers import error_body
    from web.connections import ConnectionLimits, Connections
    from web.server import listen, serve

    clean = False
    try:
        service.start()
        say(listen(listener))
        serve(
            app,
            listener,
            connections=Connections(ConnectionLimits(), body_of=error_body, health=HEALTH),
            ended=lambda: service.worker.crash is not None,
        )
    finally:
        with _no_interrupts():
            clean = service.stop()
    if service.worker.crash is not None or not clean:
        print(f"error: the writer ended: {service.worker.crash or 'still busy'}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """A second Ctrl-C must not cut the last commit's acknowledgement; stopping is bounded in time."""
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--kafka-option: expected NAME=VALUE, got {text!r}")
    return name, value
