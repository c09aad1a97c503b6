"""Reading another service's page, within bounds."""

from __future__ import annotations

import urllib.request

_MOST_BYTES = 8 << 20


def read_page(url: str, *, timeout_s: float) -> bytes:
    """The page of a service near by: no proxy is asked.

    Raises:
        OSError: it cannot be had.
        ValueError: it has more than 8 MiB, or the URL is none.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=timeout_s) as response:
        page: bytes = response.read(_MOST_BYTES + 1)
    if len(page) > _MOST_BYTES:
        raise ValueError(f"{url}: expected at most {_MOST_BYTES:,} bytes, got more")
    return page
