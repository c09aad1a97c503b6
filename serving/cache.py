"""Result cache: the beams of a request that comes again within a minute (GR4AD, arXiv 2602.22732, serving).

It holds beams (SIDs and scores), never ads: ads are looked up live, so one that was paused a moment ago
cannot come out of it. Letters: n beams, T SID levels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

logger = logging.getLogger(__name__)

_MAGIC = b"gr4ad-beams-2"
_ARRAYS = (("sids", "<i4"), ("scores", "<f4"), ("expected_value", "<f4"), ("beam_widths", "<i4"))
_ENTRY_OVERHEAD = 600  # bytes of the Python objects around an entry's arrays


@dataclass(frozen=True)
class CachedBeams:
    """Beams of one request as the search found them.

    Attributes:
        sids: int32 [n, T], best first.
        scores: float32 [n].
        expected_value: float32 [n].
        beam_widths: int32 [T + 1], beams that each level really held.
        widths: widths of the plan, the value level last; whoever looks decides whether they are enough.
        index_version: version of the index that the search used.
    """

    sids: np.ndarray
    scores: np.ndarray
    expected_value: np.ndarray
    beam_widths: np.ndarray
    widths: tuple[int, ...]
    index_version: int

    @property
    def nbytes(self) -> int:
        """Memory of an entry."""
        return sum(getattr(self, name).nbytes for name, _ in _ARRAYS) + _ENTRY_OVERHEAD

    def encode(self) -> bytes:
        """Bytes for a shared cache."""
        shapes = [getattr(self, name).shape for name, _ in _ARRAYS]
        head = {"widths": self.widths, "index_version": self.index_version, "shapes": shapes}
        parts = [np.ascontiguousarray(getattr(self, name), dtype).tobytes() for name, dtype in _ARRAYS]
        return b"\n".join((_MAGIC, json.dumps(head).encode())) + b"\n" + b"".join(parts)

    @classmethod
    def decode(cls, raw: bytes) -> CachedBeams:
        """Inverse of `encode`.

        Raises:
            ValueError: not an entry of this format, or a part of it is missing.
        """
        magic, _, rest = raw.partition(b"\n")
        if magic != _MAGIC:
            raise ValueError(f"expected an entry that begins with {_MAGIC!r}, got {raw[:20]!r}")
        text, _, body = rest.partition(b"\n")
        arrays, at = {}, 0
        try:
            head = json.loads(text)
            for (name, dtype), shape in zip(_ARRAYS, head["shapes"], strict=True):
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                arrays[name] = np.frombuffer(body[at : at + size], dtype).reshape(shape)
                at += size
            widths, index_version = tuple(map(int, head["widths"])), int(head["index_version"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"unreadable entry: {error!r}") from error
        if at != len(body):
            raise ValueError(f"expected {at} bytes of arrays, got {len(body)}")
        return cls(**arrays, widths=widths, index_version=index_version)


def cache_key(
    *,
    model_version: int,
    slots: np.ndarray,
    profile: np.ndarray,
    num_ads: int,
    exclude: np.ndarray,
    settings: str,
    terms: str = "",
) -> bytes:
    """Digest of all that shapes the beams, but for the plan (an entry of a wider plan will do).

    Args:
        model_version: version of the graphs; it stands for tokenizer and weights.
        slots: int32 [S, T + 3], semantic IDs filled in.
        profile: int32 [P].
        num_ads: ads wanted.
        exclude: int64, ads that must not come back, in any order.
        settings: what else the server's configuration says of the search.
        terms: audiences that the request is in, and what it says of accounts; "" where nothing depends on it.
    """
    digest = hashlib.blake2b(digest_size=20)
    head = [model_version, num_ads, settings, slots.shape, profile.shape, *([terms] if terms else [])]
    digest.update(json.dumps(head).encode())
    for array in (slots, profile, np.unique(exclude)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


class BeamCache(Protocol):
    """Where entries are kept. A cache may forget anything at any time, and never raises."""

    def get(self, keys: Sequence[bytes]) -> list[CachedBeams | None]:
        """Entry of each key, None where there is none that is young enough."""
        ...

    def put(self, entries: Sequence[tuple[bytes, CachedBeams]]) -> None:
        """Keep entries for the time to live."""
        ...


class LocalCache:
    """In this process, least recently used out first."""

    def __init__(self, *, ttl_s: float, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Bounds; `clock` in seconds.

        Raises:
            ValueError: a bound is not positive.
        """
        if not ttl_s > 0 or max_bytes < 1:
            raise ValueError(f"cache: expected ttl_s > 0 and max_bytes >= 1, got {ttl_s} and {max_bytes}")
        self._ttl_s, self._max_bytes, self._clock = ttl_s, max_bytes, clock
        self._entries: OrderedDict[bytes, tuple[float, CachedBeams]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        """Entries held, old ones included."""
        return len(self._entries)

    def get(self, keys: Sequence[bytes]) -> list[CachedBeams | None]:
        """Entry of each key, None where there is none that is young enough."""
        return [self._get(key) for key in keys]

    def put(self, entries: Sequence[tuple[bytes, CachedBeams]]) -> None:
        """Keep entries for the time to live, or until there are too many newer ones."""
        until = self._clock() + self._ttl_s
        for key, entry in entries:
            self._drop(key)
            self._entries[key] = until, entry
            self.nbytes += entry.nbytes
        while self.nbytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _get(self, key: bytes) -> CachedBeams | None:
        until, entry = self._entries.get(key, (0.0, None))
        if entry is not None and until <= self._clock():
            self._drop(key)
            return None
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def _drop(self, key: bytes) -> None:
        _, entry = self._entries.pop(key, (0.0, None))
        self.nbytes -= entry.nbytes if entry else 0


class RedisCache:
    """In a Redis server that several replicas share. Redis that is slow or gone costs hits, never answers."""

    def __init__(
        self,
        url: str,
        *,
        ttl_s: float,
        timeout_s: float = 0.05,
        pause_s: float = 1.0,
        prefix: str = "gr4ad:beams:",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connects at the first use.

        Args:
            url: redis://host:port/db.
            ttl_s: time to live.
            timeout_s: longest wait for Redis in a batch.
            pause_s: how long Redis is left alone after it failed.
            prefix: of the keys.
            clock: seconds.

        Raises:
            ValueError: the URL is not Redis's or can never work, or a time is not positive.
        """
        import redis

        from serving.redis_client import make_client

        if not (ttl_s > 0 and timeout_s > 0):
            raise ValueError(f"cache: expected positive times, got ttl_s {ttl_s}, timeout_s {timeout_s}")
        self._client = make_client(url, connect_timeout_s=timeout_s, timeout_s=timeout_s, name="gr4ad-cache")
        self._errors = (redis.RedisError, OSError)
        self._ttl_ms, self._pause_s = max(int(ttl_s * 1000), 1), pause_s
        self._prefix, self._clock = prefix.encode(), clock
        self._not_before = -float("inf")
        self.failures = 0

    def get(self, keys: Sequence[bytes]) -> list[CachedBeams | None]:
        """Entry of each key, None where there is none, or no Redis."""
        found = self._ask(lambda: self._client.mget([self._prefix + k for k in keys])) if keys else None
        return [self._decode(raw) for raw in found] if found else [None] * len(keys)

    def put(self, entries: Sequence[tuple[bytes, CachedBeams]]) -> None:
        """Keep entries for the time to live."""
        if not entries:
            return

        def write() -> None:
            with self._client.pipeline(transaction=False) as pipeline:
                for key, entry in entries:
                    pipeline.set(self._prefix + key, entry.encode(), px=self._ttl_ms)
                pipeline.execute()

        self._ask(write)

    def _ask(self, call: Callable[[], Any]) -> Any:
        if self._clock() < self._not_before:
            return None
        try:
            return call()
        except self._errors as error:
            self.failures += 1
            self._not_before = self._clock() + self._pause_s
            logger.warning(
                "result cache: Redis does not answer, left alone for %s s: %s", self._pause_s, error
            )
            return None

    def _decode(self, raw: bytes | None) -> CachedBeams | None:
        try:
            return None if raw is None else CachedBeams.decode(raw)
        except ValueError as error:  # somebody else's key, or another release's: a miss
            logger.warning("result cache: %s", error)
            return None
