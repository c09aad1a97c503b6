"""Which addresses are this machine's own, and which names in Host are taken for it."""

from __future__ import annotations

import ipaddress

from web.errors import HttpError


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_own_host(host: str) -> None:
    """Only addresses and `localhost` as Host.

    A page on the web can point its own name at 127.0.0.1, and the browser then lets it talk to us.

    Raises:
        HttpError: 421.
    """
    name = host[1 : host.find("]")] if host.startswith("[") else host.rsplit(":", 1)[0]
    if name.lower() == "localhost":
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise HttpError(
            421, "wrong_host", f"expected an address or localhost as Host, got {ascii(host[:100])}"
        ) from None
