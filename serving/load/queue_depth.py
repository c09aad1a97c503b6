"""How many requests wait for the scheduler, and their time elsewhere: from Triton's metrics, in a thread."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

logger = logging.getLogger(__name__)

PENDING = "nv_inference_pending_request_count"
FINISHED = ("nv_inference_request_success", "nv_inference_request_failure")
DURATION_US = "nv_inference_request_duration_us"
MAX_BYTES = 4 << 20  # a metrics page of Triton is some tens of kilobytes


class QueueReading(NamedTuple):
    """State of the queue at one moment.

    Attributes:
        pending: requests waiting for an instance of the model.
        total: requests that ever came: finished, failed and pending ones of the model where they come in;
            None where the page lacks them.
        at: `time.monotonic()` of the reading.
        outside_s: mean time of a request, of late, in the models before and after this one; None where that
            is not known.
    """

    pending: int
    total: int | None
    at: float
    outside_s: float | None = None


class MeanTime:
    """Mean of a model's times over the last seconds, from counters of all times and of all requests."""

    def __init__(self, *, over_s: float = 1.0) -> None:
        """Of the last `over_s`, or of as many more as it takes for a request to come."""
        self._over_s = over_s
        self._seen: deque[tuple[float, float, float]] = deque()  # at, seconds, requests
        self.value: float | None = None

    def update(self, at: float, seconds: float, count: float) -> None:
        """Counters at one moment; a server that was started again begins anew."""
        seen = self._seen
        if seen and (count < seen[-1][2] or seconds < seen[-1][1]):
            seen.clear()
        seen.append((at, seconds, count))
        while len(seen) > 2 and at - seen[1][0] >= self._over_s:
            seen.popleft()
        if count > seen[0][2]:
            self.value = (seconds - seen[0][1]) / (count - seen[0][2])


def spent(text: str, *, model: str) -> tuple[float, float] | None:
    """Seconds in a model and requests, of all that it has answered; None where the page lacks them.

    The page is in the Prometheus text format.
    """
    microseconds, count = _sum(text, DURATION_US, model), _sum(text, FINISHED[0], model)
    return None if microseconds is None or count is None else (microseconds / 1e6, count)


def parse_metrics(text: str, *, model: str, at: float, entry: str | None = None) -> QueueReading | None:
    """Read a page in the Prometheus text format; None where it has no such count for the model.

    `entry` is the model where requests come in, None for `model` itself: what the entry turns away never
    reaches the queue, but is load that a wider plan would have to carry.

    Counts of several versions of the model add up. Triton counts failures by reason, which add up too.
    """
    pending = _sum(text, PENDING, model)
    if pending is None:
        return None
    success, failure, coming = (_sum(text, name, entry or model) for name in (*FINISHED, PENDING))
    total = None if success is None else int(success + (failure or 0.0) + (coming or 0.0))
    return QueueReading(int(pending), total, at)


class QueueDepth:
    """The last reading, never older than `stale_s`, and never waited for."""

    def __init__(
        self,
        url: str,
        *,
        model: str = "beam_scheduler",
        entry: str | None = None,
        outside: Sequence[str] = (),
        every_s: float = 0.1,
        timeout_s: float = 0.25,
        stale_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start reading.

        Args:
            url: Triton's metrics page, e.g. http://127.0.0.1:8002/metrics.
            model: whose queue.
            entry: model where requests come in, see `parse_metrics`.
            outside: models before and after it, whose times are `QueueReading.outside_s`.
            every_s: pause between two readings.
            timeout_s: a page that takes longer counts as gone.
            stale_s: age at which a reading is worth nothing.
            clock: of `QueueReading.at`.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"metrics url: expected http:// or https://, got {url!r}")
        self._url, self._model, self._entry, self._clock = url, model, entry, clock
        self._every, self._timeout, self._stale = every_s, timeout_s, stale_s
        self._opener = build_opener(
            ProxyHandler({})
        )  # the server is this host's: no proxy of the environment
        self._outside = {name: MeanTime() for name in outside}
        self._last: QueueReading | None = None
        self._failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="queue-depth", daemon=True)
        self._thread.start()

    def read(self) -> QueueReading | None:
        """The last reading; None where there is none younger than `stale_s`."""
        last = self._last
        return last if last is not None and self._clock() - last.at <= self._stale else None

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(timeout=5 * self._timeout + self._every)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._last, problem = self._fetch(), None
            except (OSError, HTTPException, ValueError) as error:
                problem = error
            if (problem is not None) != self._failing:  # say it once, not ten times a second
                self._failing = problem is not None
                if self._failing:
                    logger.warning("queue depth: %s is of no use, going on without: %s", self._url, problem)
                else:
                    logger.info("queue depth: %s is back", self._url)
            self._stop.wait(self._every)

    def _fetch(self) -> QueueReading:
        at = self._clock()  # the page is at least as new
        request = Request(self._url, headers={"Accept": "text/plain"})
        deadline = at + self._timeout
        page = b""
        with self._opener.open(request, timeout=self._timeout) as answer:
            # The timeout of a socket is one of each read: a page that drips would never end.
            while chunk := answer.read1(1 << 16):
                page += chunk
                if len(page) > MAX_BYTES:
                    raise ValueError(f"expected a metrics page of at most {MAX_BYTES} bytes")
                if self._clock() > deadline:
                    raise TimeoutError(f"expected the metrics page within {self._timeout} s")
        text = page.decode("utf-8", "replace")
        reading = parse_metrics(text, model=self._model, at=at, entry=self._entry)
        if reading is None:
            raise ValueError(f"expected {PENDING} of model {self._model} on the page, got none")
        return reading._replace(outside_s=self._outside_s(text, at))

    def _outside_s(self, text: str, at: float) -> float | None:
        for model, mean in self._outside.items():
            if (found := spent(text, model=model)) is not None:
                mean.update(at, *found)
        known = [mean.value for mean in self._outside.values() if mean.value is not None]
        return sum(known) if known else None


def _sum(text: str, name: str, model: str) -> float | None:
    """Sum of a metric over its lines of one model; None where there is no line."""
    label = re.compile(r'[{,]\s*model="' + re.escape(model) + '"')
    found = None
    for line in text.splitlines():
        if not line.startswith(name + "{"):
            continue
        labels, brace, rest = line[len(name) :].rpartition("}")
        words = rest.split()
        if not brace or not words or not label.search(labels):
            continue
        try:
            value = float(words[0])
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0:
            found = (found or 0.0) + value
    return found
