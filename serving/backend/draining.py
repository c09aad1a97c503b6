"""A server that is about to stop takes no new requests: the launcher says from when on."""

from __future__ import annotations

from serving.backend.shared_files import shared_file
from serving.load.policy import OverloadError


class Draining:
    """The launcher's word: a file with a time of the monotonic clock (`launcher.drain` writes it)."""

    def __init__(self) -> None:
        """Of this server."""
        self._path = shared_file("draining")

    def check(self, now: float) -> None:
        """Let a request in.

        Raises:
            OverloadError: the server is stopping; another one may take it.
        """
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return
        if now >= float(text):
            raise OverloadError("the server is stopping and takes no new requests")
