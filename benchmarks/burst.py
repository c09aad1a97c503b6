"""Closed loop: `concurrency` requests outstanding, the next one is sent when an answer is there."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc.aio

from examples.client import infer_inputs

CHECKED = ("ad_ids", "scores", "expected_value", "sids")
"""Outputs that are kept of an answer."""

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Burst:
    """What a closed loop saw.

    Attributes:
        completed: requests answered; one that ran when the time was over counts by the share that had passed.
        total: requests answered, those too.
        seconds: from the first request on.
        latencies: seconds of each request answered within the time.
        failures: texts of the errors.
        answers: first answer to each of the tensors that were sent, by their position.
        client_share: of one core, what the client used.
    """

    completed: float
    total: int
    seconds: float
    latencies: list[float]
    failures: list[str]
    answers: dict[int, Tensors]
    client_share: float


def burst(
    url: str,
    tensors: list[Tensors],
    *,
    concurrency: int,
    seconds: float | None = None,
    requests: int | None = None,
    timeout_s: float = 30.0,
) -> Burst:
    """Send `tensors` in turn, `concurrency` at a time, for some seconds or a number of requests."""
    if (seconds is None) == (requests is None):
        raise ValueError(f"expected either seconds or requests, got {seconds} and {requests}")
    return asyncio.run(
        _burst(
            url,
            tensors,
            concurrency=concurrency,
            seconds=seconds,
            requests=requests,
            timeout_s=timeout_s,
        )
    )


async def _burst(
    url: str,
    tensors: list[Tensors],
    *,
    concurrency: int,
    seconds: float | None,
    requests: int | None,
    timeout_s: float,
) -> Burst:
    inputs = [infer_inputs(t) for t in tensors]
    numbers = iter(range(requests)) if requests is not None else itertools.count()
    spans: list[tuple[float, float]] = []
    failures: list[str] = []
    answers: dict[int, Tensors] = {}
    async with tritonclient.grpc.aio.InferenceServerClient(url) as client:
        await client.is_server_ready()  # so that the first request does not wait for the connection
        cpu, start = time.process_time(), time.perf_counter()
        end = float("inf") if seconds is None else start + seconds

        async def loop() -> None:
            for number in numbers:
                began = time.perf_counter()
                if began >= end:
                    return
                at = number % len(inputs)
                try:
                    result = await client.infer("gr4ad", inputs[at], client_timeout=timeout_s)
                except Exception as error:  # whatever it is, it counts
                    failures.append(f"{type(error).__name__}: {error}")
                    continue
                spans.append((began, time.perf_counter()))
                if at not in answers:
                    answers[at] = {name: result.as_numpy(name) for name in CHECKED}

        await asyncio.gather(*(loop() for _ in range(concurrency)))
        now = time.perf_counter()
        share = (time.process_time() - cpu) / (now - start)
    completed = sum(1.0 if done <= end else (end - began) / (done - began) for began, done in spans)
    latencies = [done - began for began, done in spans if done <= end]
    return Burst(
        completed=completed,
        total=len(spans),
        seconds=min(end, now) - start,
        latencies=latencies,
        failures=failures,
        answers=answers,
        client_share=share,
    )
