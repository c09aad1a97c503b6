"""Bundles and engines of preset bench (seeded weights) for the GPU of this machine."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from export.builder import Builder
from export.bundle import write_bundle
from export.engines import EngineFolder, EngineSpec
from export.gate import Gate
from export.gate_requests import GateRequests, random_requests
from export.lower import Lowering
from export.profiles import profiles
from export.seeded import seeded_checkpoint
from export.tensorrt import build_engines
from serving.model.bundle import read_manifest
from serving.model.manifest import Manifest
from serving.search.widths import WidthPlan
from training.preset.precision import PrecisionConfig
from training.preset.preset import Preset

CONFIG = "configs/bench.yaml"


@dataclass(frozen=True)
class Built:
    """A bundle and its engines."""

    precision: str
    bundle: Path
    manifest: Manifest
    plans: dict[str, Path]
    requests: GateRequests
    plan: WidthPlan


def _why_not() -> str | None:
    try:
        import cupy  # noqa: F401
        import tensorrt  # noqa: F401
    except ImportError as error:
        return f"no TensorRT on a GPU here: {error}; see deploy/gpu_check.sh"
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return None if "GPU 0" in found.stdout else "nvidia-smi lists no GPU"


@pytest.fixture(scope="session")
def gpu():
    """The modules tensorrt and cupy."""
    try:
        reason = _why_not()
    except OSError as error:
        reason = f"no GPU driver: {error}"
    if reason and os.environ.get("GR4AD_REQUIRE_GPU"):
        pytest.fail(reason)  # deploy/gpu_check.sh: skipped is not checked
    if reason:
        pytest.skip(reason)
    import cupy
    import tensorrt

    return tensorrt, cupy


@pytest.fixture(scope="session", params=["fp32", "fp16", "fp8"])
def built(request, gpu, tmp_path_factory) -> Built:
    """One precision."""
    torch.set_num_threads(4)
    builder = Builder("tensorrt")
    if request.param == "fp8" and tuple(map(int, builder.capability.split("."))) < (8, 9):
        pytest.skip(f"FP8 needs compute capability 8.9, this GPU has {builder.capability}")
    preset = Preset.load(CONFIG)
    checkpoint, serving = seeded_checkpoint(preset), preset.serving
    plan = WidthPlan.parse(serving.widths, levels=checkpoint.model.levels)
    requests = random_requests(checkpoint, count=32, seed=0)
    gate = Gate(requests, PrecisionConfig(), plan)
    lowering = None
    if request.param != "fp32":
        calibration = random_requests(checkpoint, count=32, seed=1) if request.param == "fp8" else None
        lowering = Lowering(request.param, gate, calibration)
    folder = tmp_path_factory.mktemp(request.param)
    bundle = write_bundle(checkpoint, folder / "bundles", tokenizer=None, lowering=lowering)
    manifest = read_manifest(bundle)
    engines, ranges = EngineFolder(folder / "engines"), profiles(manifest, serving)
    graphs = {stem: bundle / f"{stem}.onnx" for stem in manifest.graphs}
    build_engines(builder, graphs, ranges, folder=engines)
    hashes = manifest.sha256
    plans = {
        stem: engines.require(
            EngineSpec(
                stem,
                hashes[f"{stem}.onnx"],
                ranges[stem],
                "tensorrt",
                *builder.device,
            )
        )
        for stem in graphs
    }
    return Built(request.param, bundle, manifest, plans, requests, plan)
