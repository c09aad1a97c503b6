"""Malformed requests to a deployment, HTTP through the gateway and gRPC direct, with good ones in between."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.faults.deployment import Deployment
from benchmarks.faults.observer import differs
from tests.malformed import generate
from tests.malformed_run import run
from tests.malformed_sender import Outcome, Sender
from tests.malformed_tensors import Case

TIMEOUT_S = 10.0


def fuzz(deployment: Deployment, *, count: int, seed: int = 0) -> dict[str, Any]:
    """Send `count` malformed requests, half of them HTTP, while fifty clients send headers byte by byte.

    Returns:
        `fuzz_requests`, `fuzz_deaths` (of any process of the launcher), `fuzz_hangs`, `fuzz_wrong`
         (answers without a text, none at all, good requests answered otherwise), `kinds`, `texts`.
    """
    tensors = deployment.tensors
    expected = [deployment.ask(number) for number in range(len(tensors))]
    asked = iter(range(1_000_000))

    def processes() -> tuple[int, ...]:
        return tuple(sorted(p.pid for group in deployment.processes().values() for p in group))

    def check_good() -> None:
        number = next(asked)
        if difference := differs(deployment.ask(number), expected[number % len(expected)]):
            raise AssertionError(difference)

    def check(case: Case, outcome: Outcome) -> None:
        """An answer that is given holds live ads or padding, and numbers."""
        found = outcome.outputs
        if case.model != "gr4ad" or "ad_ids" not in found or "scores" not in found:
            return
        assert found["ad_ids"].shape == found["scores"].shape
        assert ((found["ad_ids"] >= 1) | (found["ad_ids"] == -1)).all()
        assert np.isfinite(found["scores"]).all()

    def good(number: int) -> dict[str, np.ndarray]:
        return tensors[number % len(tensors)]

    sender = Sender(grpc_url=deployment.grpc_url, http_url=deployment.http_url, timeout_s=TIMEOUT_S)
    found = run(
        generate(seed, count, good=good),
        sender,
        processes=processes,
        check=check,
        check_good=check_good,
        slow_to=("127.0.0.1", deployment.ports.http),
    )
    sender.close()
    return {
        "fuzz_requests": found.requests,
        "fuzz_deaths": len(found.deaths),
        "fuzz_hangs": len(found.hangs),
        "fuzz_wrong": len(found.wrong),
        "kinds": dict(found.kinds),
        "slowest_s": round(found.slowest_s[0], 2),
        "texts": [*found.deaths, *found.hangs, *found.wrong][:10],
    }
