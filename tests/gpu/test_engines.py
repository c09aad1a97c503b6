"""Engines on a real GPU: same numbers as ONNX, same beams, and how long they take."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from export.compare import compare, search
from serving.backend.engine import shape_buckets
from serving.backend.settings import ServingConfig
from serving.engines.ort import OrtExecutor
from serving.engines.padding import PaddedExecutor
from serving.search.beam_search import beam_search
from tests.gpu.conftest import CONFIG
from tests.gpu.trt_executor import TrtExecutor
from training.config import load_section

# Largest difference of a log-probability between TensorRT and ONNX Runtime running the same file.
TOLERANCE = {"fp32": 1e-2, "fp16": 5e-2, "fp8": 2e-1}
OVERLAP50 = {"fp32": 0.99, "fp16": 0.97, "fp8": 0.9}
LATENCY = Path("build/gpu/latency.json")


@pytest.fixture
def executors(gpu, built):
    """TensorRT, and ONNX Runtime on the CPU with the same graphs."""
    levels = built.manifest.levels
    reference = OrtExecutor(built.bundle, levels=levels, threads=4, fuse=built.precision != "fp8")
    return TrtExecutor(*gpu, built.plans, levels=levels), reference


def test_prefix_gives_the_numbers_of_the_onnx_graph(built, executors):
    slots, profile = built.requests.slots[:4], built.requests.profile[:4]
    got, wanted = (executor.prefix(slots, profile)[0] for executor in executors)
    assert np.abs(got - wanted).max() < TOLERANCE[built.precision]


def test_beams_are_those_of_the_onnx_graphs(built, executors):
    found = [
        search(
            executor,
            built.requests,
            plan=built.plan,
            normalise=None,
            batch_size=8,
            value_table=built.manifest.value_table,
            title=name,
        )
        for name, executor in zip(("tensorrt", "onnx"), executors, strict=True)
    ]
    figures = compare(found[1], found[0])
    assert figures["log_prob_error"]["max"] < TOLERANCE[built.precision]
    # Seeded weights barely prefer one beam to another, so a precision is only asked for most of them.
    assert figures["overlap"]["50"] >= OVERLAP50[built.precision]


def test_padding_does_not_change_beams(gpu, built, executors):
    """Padded to the shapes of the CUDA graphs, as the scheduler calls the engines."""
    buckets = shape_buckets(built.manifest, load_section(CONFIG, "serving", ServingConfig))
    slots, profile = built.requests.slots[:3], built.requests.profile[:3]
    plain, padded = (
        beam_search(
            executor,
            built.requests.snapshot.trie,
            slots,
            profile,
            plan=built.plan,
            num_results=np.full(3, 50),
            value_table=built.manifest.value_table,
        )
        for executor in (executors[0], PaddedExecutor(executors[0], buckets))
    )
    # Other shapes may take other kernels, so scores agree to a tolerance, and beams but for near ties.
    same = [np.isin(a[:50], b[:50]).mean() for a, b in zip(plain.leaves, padded.leaves, strict=True)]
    assert np.mean(same) >= OVERLAP50[built.precision]
    assert np.abs(plain.scores[:, :10] - padded.scores[:, :10]).max() < TOLERANCE[built.precision]


def test_latency_table(gpu, built, executors):
    """Measures, demands nothing: build/gpu/latency.json is the result."""
    engine, _ = executors
    name = gpu[1].cuda.runtime.getDeviceProperties(0)["name"].decode()
    rows = []
    for batch in (1, 4, 8):
        slots, profile = built.requests.slots[:batch], built.requests.profile[:batch]
        seconds = []
        for _ in range(60):
            began = time.perf_counter()
            beam_search(
                engine,
                built.requests.snapshot.trie,
                slots,
                profile,
                plan=built.plan,
                num_results=np.full(batch, 50),
                value_table=built.manifest.value_table,
            )
            seconds.append(time.perf_counter() - began)
        rows.append(
            {
                "precision": built.precision,
                "batch": batch,
                "median_ms": float(np.median(seconds[10:]) * 1e3),
                "p95_ms": float(np.percentile(seconds[10:], 95) * 1e3),
            }
        )
    LATENCY.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(LATENCY.read_text()) if LATENCY.is_file() else {}
    same = (known.get("device"), known.get("widths")) == (name, str(built.plan))
    kept = [r for r in known["rows"] if r["precision"] != built.precision] if same else []
    LATENCY.write_text(json.dumps({"device": name, "widths": str(built.plan), "rows": kept + rows}, indent=1))
    assert all(r["median_ms"] > 0 for r in rows)
