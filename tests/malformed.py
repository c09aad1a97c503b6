"""Seeded generator of malformed requests: `generate(seed, count, good=...)`. `malformed_sender` sends them.

A case is a good request with one or two faults, for gRPC (raw protobuf) or HTTP (raw bytes on a socket), so
that it can lie about what no client library would let it: shapes, lengths, encodings. Each is below 4 MB.

Left out on purpose, because a stub of the wheel's server (Triton 24.10) dies of it: over gRPC a shape whose
number of bytes overflows to that of the data (`overflows`). HTTP is for the gateway: Triton's own HTTP server
ends on several of `malformed_bodies`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from tests.malformed_bodies import BODY_FAULTS
from tests.malformed_http import RAW_FAULTS
from tests.malformed_tensors import TENSOR_FAULTS, Case, Tensor, overflows


def generate(seed: int, count: int, *, good: Callable[[int], dict[str, np.ndarray]]) -> Iterator[Case]:
    """`count` cases; the same for the same seed.

    Args:
        seed: of everything.
        count: cases.
        good: good request tensors for a seed; the faults are put into those.
    """
    random = np.random.default_rng(seed)
    faults = [*TENSOR_FAULTS.values(), *RAW_FAULTS.values(), *BODY_FAULTS.values()]
    for _ in range(count):
        fault = faults[random.integers(len(faults))]
        tensors = tuple(Tensor.of(n, v) for n, v in good(int(random.integers(2**31))).items())
        protocol = ("grpc", "http")[random.integers(2)]
        case = fault(random, Case(fault.__name__.strip("_"), protocol, tensors))
        if (
            case.protocol != "raw" and random.random() < 0.2
        ):  # faults together hide behind each other: also test that
            second = list(TENSOR_FAULTS.values())[random.integers(len(TENSOR_FAULTS))]
            case = replace(second(random, case), fault=f"{case.fault}+{second.__name__.strip('_')}")
        yield replace(
            case, tensors=tuple(replace(t, shape=(1, 7)) if overflows(t) else t for t in case.tensors)
        )
