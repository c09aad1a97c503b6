"""The log as a Redis stream: an entry a record, its JSON in the field `event`, as events of ads lie there."""

from __future__ import annotations

from collections.abc import Sequence

import redis

from serving.redis_client import make_client

FIELD = "event"
_CONNECT_S, _ANSWER_S = 2.0, 5.0


class RedisStreamWriter:
    """Appends to one stream; for one thread."""

    def __init__(self, url: str, *, stream: str, max_length: int) -> None:
        """Connects with the first write.

        Raises:
            ValueError: see `make_client`.
        """
        self._client = make_client(
            url, connect_timeout_s=_CONNECT_S, timeout_s=_ANSWER_S, name="gr4ad-served-log"
        )
        self._stream, self._max_length = stream, max_length

    def write(self, lines: Sequence[bytes]) -> None:
        """Append entries. After an error some may be there, and come again: readers know them by their ids.

        Raises:
            OSError: Redis is not there, or does not take them.
        """
        pipeline = self._client.pipeline(transaction=False)
        for line in lines:
            pipeline.xadd(self._stream, {FIELD: line}, maxlen=self._max_length, approximate=True)
        try:
            pipeline.execute()
        except redis.RedisError as error:
            raise OSError(f"Redis stream {self._stream}: {error}") from error

    def close(self) -> None:
        """Disconnect."""
        self._client.close()
