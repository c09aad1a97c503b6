"""Settings of a load, as the command hands them to its worker processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest.arrivals import poisson_arrivals
from loadtest.mix import Key, Mix
from loadtest.shapes import Shape


@dataclass(frozen=True)
class Load:
    """What is offered to which server.

    Attributes:
        url: host:port.
        protocol: grpc or http.
        shape: offered rate; a closed loop takes only its duration.
        closed_users: users of a closed loop, all processes together; 0: open loop.
        workers: processes that share the load.
        deadline_s: of one request.
        max_outstanding: of all processes together.
        drain_s: how long answers may come after the last request.
        seed: of arrivals and of the request mix.
        parameters: request parameters.
    """

    url: str
    protocol: str
    shape: Shape
    closed_users: int = 0
    workers: int = 1
    deadline_s: float = 10.0
    max_outstanding: int = 512
    drain_s: float = 10.0
    seed: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Reject what cannot be run."""
        if self.protocol not in ("grpc", "http"):
            raise ValueError(f"protocol: expected grpc or http, got {self.protocol!r}")
        for name in ("deadline_s", "drain_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected seconds above 0, got {getattr(self, name)}")
        for name, least in (("workers", 1), ("max_outstanding", self.workers), ("closed_users", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        if 0 < self.closed_users < self.workers:
            raise ValueError(
                f"closed_users: expected {self.workers} or more (workers), got {self.closed_users}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Load:
        """Inverse of `to_json`."""
        return cls(**values | {"shape": Shape(**values["shape"])})

    @property
    def max_outstanding_of_each(self) -> int:
        """Bound of one worker."""
        return max(1, self.max_outstanding // self.workers)

    def closed_users_of(self, worker: int) -> int:
        """Users of the closed loop that this worker runs."""
        return self.closed_users // self.workers + (worker < self.closed_users % self.workers)

    def open_plan(self, mix: Mix, worker: int) -> Iterator[tuple[float, Key, bool]]:
        """Requests of a worker's dispatcher, at their times."""
        times = poisson_arrivals(self.shape, seed=self.seed, worker=worker, workers=self.workers)
        return mix.draw(map(float, times), seed=self.seed, stream=worker, streams=self.workers)

    def closed_plan(self, mix: Mix, stream: int, *, start: float) -> Iterator[tuple[float, Key, bool]]:
        """Requests of one user of the closed loop, as soon as it asks for them, until the time is over."""
        streams = max(self.closed_users, 1)
        return mix.draw(self._elapsed(start), seed=self.seed, stream=stream, streams=streams)

    def _elapsed(self, start: float) -> Iterator[float]:
        while (elapsed := max(0.0, time.monotonic() - start)) < self.shape.duration_s:
            yield elapsed
