"""Ports of a server: those that were asked for, if they are free, and any free ones."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

from launcher.server_files import ServerError


def choose_ports(wanted: Mapping[str, int | None], *, hosts: Mapping[str, str]) -> dict[str, int]:
    """Checks the numbers that were asked for and fills in free ones; all are held until all are known.

    Args:
        wanted: port of each service, None for any free one.
        hosts: address of each service.

    Raises:
        ServerError: a port is not free.
    """
    with contextlib.ExitStack() as stack:
        chosen = {}
        # Numbers first, so that no free choice takes one of them.
        for service, port in sorted(wanted.items(), key=lambda item: item[1] is None):
            probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # A port with connections in TIME_WAIT only is free for Triton, too.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            host = hosts[service]
            try:
                probe.bind((host, port or 0))
            except OSError as error:
                raise ServerError(f"{service} port {port} on {host} is not free: {error.strerror}") from error
            chosen[service] = probe.getsockname()[1]
        return {service: chosen[service] for service in wanted}


def reachable(host: str) -> str:
    """Address at which this machine reaches a server that listens on `host`."""
    return "127.0.0.1" if host == "0.0.0.0" else host
