"""The client of a Redis URL: checked at the start, since a wrong option fails at every try alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool, parse_url
from redis.retry import Retry

_PLAIN = frozenset(
    {"db", "username", "password", "health_check_interval", "socket_keepalive", "max_connections"}
)
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_TLS = _PLAIN.union(_FILES, ("ssl_password", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers"))


def make_client(url: str, *, connect_timeout_s: float, timeout_s: float, name: str) -> Any:
    """A client that answers in bytes and tries once a call; it connects with its first command.

    What the caller depends on stays as it is, whatever the URL says. The error does not show the URL, which
    may hold a password.

    Args:
        url: redis://, rediss:// or unix://, with password, database and options of TLS and keep-alive.
        connect_timeout_s: longest wait for a connection.
        timeout_s: longest wait for an answer.
        name: of the client, for CLIENT LIST.

    Raises:
        ValueError: the URL is none of Redis, or has an option that is unknown, not for its scheme, malformed
            or a file that is not there.
    """
    own = {
        "decode_responses": False,
        "encoding": "utf-8",
        "encoding_errors": "strict",
        "protocol": 2,
        "legacy_responses": True,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": [],
        "socket_connect_timeout": connect_timeout_s,
        "socket_timeout": timeout_s,
        "client_name": name,
    }
    given, parts = parse_url(url), urlsplit(url)
    allowed = _TLS if parts.scheme == "rediss" else _PLAIN
    where = {"host", "port", "path", "connection_class"}
    options = {name for name in given if name not in where} | _query_names(parts.query)
    if unknown := sorted(options - allowed - own.keys()):
        raise ValueError(
            f"Redis URL: expected the options {', '.join(sorted(allowed))} for {parts.scheme}://, "
            f"got {', '.join(unknown)}"
        )
    if parts.scheme != "unix" and not (parts.path.strip("/") or "0").isdecimal():
        raise ValueError(f"Redis URL: expected the number of a database as path, got {parts.path!r}")
    for name in _FILES:
        if name in given and not Path(given[name]).exists():
            raise ValueError(f"Redis URL: {name}: expected a file, found nothing at {given[name]}")
    try:
        pool = ConnectionPool(**given | own)
        pool.connection_class(**pool.connection_kwargs)  # checks the values; connects to nothing
    except (TypeError, ValueError, redis.RedisError) as error:
        raise ValueError(f"Redis URL: {error}") from error
    return redis.Redis.from_pool(pool)


def _query_names(query: str) -> set[str]:
    """Names of a query; redis-py skips those without a value."""
    return {pair.partition("=")[0] for pair in query.split("&") if pair}
