"""Build TensorRT engines of a bundle's graphs: `python -m export.tensorrt --config ... --run ...`.

Builder `tensorrt` builds for the GPU of this machine, inside the Triton container whose TensorRT will run the
engines; Triton's TensorRT backend serves them. Builder `tensorrt-rtx` builds on any machine, without a GPU,
for GPUs of the compute capabilities asked for; its engines prove that the graphs compile, Triton does not run
them. Everything but the builder is shared.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from export.engines import Device, EngineError, EngineFolder, EngineSpec, write_whole
from export.products import fp8_share, products
from export.profiles import ShapeRange, profiles
from export.render import ENGINES, RenderError, kept_bundles
from serving.backend.settings import ServingConfig
from serving.files import sha256
from serving.model.bundle import BundleError, Manifest, read_manifest
from training.preset import ConfigError, Preset, add_preset_arguments

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_HINTS = {
    "tensorrt": "deploy/tensorrt_setup.sh makes an environment with it inside a Triton container on a GPU "
    "host",
    "tensorrt-rtx": "run `make precision-setup`, or pip install -r requirements-precision.txt",
}


class BuildError(RuntimeError):
    """No builder, a device it does not build for, or a graph it refuses."""


class Builder:
    """One of the two builders, for one kind of device."""

    def __init__(self, name: str, *, capability: str | None = None, module: Any = None) -> None:
        """Open the library.

        Args:
            name: "tensorrt" or "tensorrt-rtx".
            capability: compute capability to build for; None for the GPU of this machine (tensorrt only).
            module: the library, where a test brings its own.

        Raises:
            BuildError: not installed, no GPU, or a capability that it does not build for.
        """
        self.name, self.trt = name, module or _import(name)
        self.version = str(self.trt.__version__)
        messages = self.messages = []  # type: list[str]

        class Log(self.trt.ILogger):  # type: ignore[name-defined]
            def log(self, severity: Any, message: str) -> None:
                if severity in (self_trt.ILogger.Severity.ERROR, self_trt.ILogger.Severity.INTERNAL_ERROR):
                    messages.append(message)

        self_trt = self.trt
        self._log = Log()
        if name == "tensorrt":
            model, found = _device()
            if capability not in (None, found):
                raise BuildError(
                    f"builder tensorrt builds for the GPU of this machine, {model}, compute capability "
                    f"{found}; expected {capability}: run it on such a GPU"
                )
            self.device = Device(self.version, found, model)
        else:
            self.device = Device(self.version, capability or "8.9")
            if not hasattr(self.trt.ComputeCapability, _sm(self.capability)):
                known = sorted(n for n in dir(self.trt.ComputeCapability) if n.startswith("SM"))
                raise BuildError(
                    f"builder tensorrt-rtx {self.version}: expected one of {', '.join(known)}, got "
                    f"{_sm(self.capability)}; build for that device with builder tensorrt on a host with it"
                )

    @property
    def capability(self) -> str:
        """Compute capability that it builds for."""
        return self.device.capability

    def build(
        self, graph: Path, profile: dict[str, ShapeRange], *, timing_cache: bytes = b""
    ) -> tuple[bytes, bytes, dict[str, Any]]:
        """Compile a graph.

        Args:
            graph: ONNX file.
            profile: ranges of its inputs.
            timing_cache: of earlier builds with the same builder and device.

        Returns:
            The plan, the timing cache as it is now, and what the network looked like.

        Raises:
            BuildError: says what the parser or the builder objects to.
        """
        trt = self.trt
        self.messages.clear()
        builder = trt.Builder(self._log)
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse_from_file(str(graph)):
            problems = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
            raise BuildError(f"{graph}: not accepted by {self.name} {self.version}: {'; '.join(problems)}")
        self._check_inputs(graph, network, profile)
        config = builder.create_builder_config()
        ranges = builder.create_optimization_profile()
        for name, shape in profile.items():
            try:
                ranges.set_shape(name, shape.least, shape.usual, shape.most)
            except RuntimeError as error:  # a size below 0
                raise BuildError(f"{graph}: input {name}: not a profile: {shape}: {error}") from error
        config.add_optimization_profile(ranges)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if hasattr(trt.BuilderFlag, "TF32"):
            config.clear_flag(trt.BuilderFlag.TF32)  # FP32 means what the gate saw
        if self.name == "tensorrt-rtx":
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, _sm(self.capability)), 0)
            cache = None
        else:
            # A cache that cannot be read, or is of another device, is as good as none.
            cache = config.create_timing_cache(timing_cache) or config.create_timing_cache(b"")
            if not config.set_timing_cache(cache, False):
                cache = config.create_timing_cache(b"")
                config.set_timing_cache(cache, False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BuildError(
                f"{graph}: {self.name} {self.version} could not build an engine for compute capability "
                f"{self.capability}: {'; '.join(self.messages) or 'no message'}"
            )
        return bytes(plan), bytes(cache.serialize()) if cache else b"", describe(trt, network)

    def _check_inputs(self, graph: Path, network: Any, profile: dict[str, ShapeRange]) -> None:
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            if tensor.name not in profile:
                raise BuildError(f"{graph}: input {tensor.name}: expected a profile, got none")
            if tensor.dtype == self.trt.int64:
                raise BuildError(f"{graph}: input {tensor.name}: expected int32, got int64")


def describe(trt: Any, network: Any) -> dict[str, Any]:
    """Kinds of layers, and of the products with constant weights how many read FP8."""
    kinds: Counter[str] = Counter()
    products = fp8 = 0
    made_by = {}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        kinds[str(layer.type).rpartition(".")[2]] += 1
        for j in range(layer.num_outputs):
            made_by[layer.get_output(j).name] = layer
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.MATRIX_MULTIPLY:
            root, dequantized = _root(trt, layer.get_input(1), made_by)
            if root == trt.LayerType.CONSTANT:
                products += 1
                fp8 += dequantized and _is_dequantized(trt, layer.get_input(0), made_by)
    return {"layers": dict(sorted(kinds.items())), "products": products, "fp8_products": fp8}


def build_engines(
    builder: Builder,
    graphs: dict[str, Path],
    ranges: dict[str, dict[str, ShapeRange]],
    *,
    folder: EngineFolder,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Build what the folder lacks; descriptions of all engines, in order of the graphs.

    Raises:
        BuildError, EngineError: see there.
    """
    timing = folder.folder / f"{builder.name}-{builder.version}-{_slug(builder.device)}.timing"
    found = []
    for stem, path in tqdm(
        graphs.items(), desc=f"{builder.name} {_sm(builder.capability)}", unit="graph", file=sys.stderr
    ):
        spec = EngineSpec(stem, sha256(path), ranges[stem], builder.name, *builder.device)
        description = folder.find(spec)
        if description is None:
            began = time.monotonic()
            cache = timing.read_bytes() if timing.is_file() else b""
            plan, cache, details = builder.build(path, ranges[stem], timing_cache=cache)
            graph = onnx.load(str(path)).graph
            share = fp8_share(graph)
            wanted = sum(root.data_type == onnx.TensorProto.FLOAT8E4M3FN for _, root, _ in products(graph))
            if details["fp8_products"] != wanted:
                raise BuildError(
                    f"{path}: expected {wanted} products in FP8, {builder.name} {builder.version} made "
                    f"{details['fp8_products']} of {details['products']}"
                )
            description = folder.save(
                spec,
                plan,
                details={
                    "seconds": round(time.monotonic() - began, 2),
                    "fp8_weight_share": share,
                    "network": details,
                },
            )
            if cache:
                write_whole(timing, cache)
            say(f"{stem}: {len(plan) / 1e6:.1f} MB in {description['seconds']} s")
        else:
            say(f"{stem}: there already")
        found.append(description)
    return found


def build_bundles(
    builder: Builder, bundles: Path, chosen: list[Manifest], *, config: ServingConfig, folder: EngineFolder
) -> int:
    """Build what the folder lacks for some bundles; returns how many engines they have.

    Raises:
        BuildError: see there, or a bundle is INT8.
        EngineError, BundleError, ProfileError: see there.
    """
    count = 0
    for manifest in chosen:
        bundle = bundles / str(manifest.version)
        if manifest.precision == "int8":
            raise BuildError(
                f"{bundle}: precision int8 is for CPUs; export with --precision fp8, fp16 or fp32"
            )
        graphs = {stem: bundle / f"{stem}.onnx" for stem in manifest.content["graphs"]}
        ranges = profiles(manifest, config)
        count += len(build_engines(builder, graphs, ranges, folder=folder, say=tqdm.write))
    return count


def _root(trt: Any, tensor: Any, made_by: dict[str, Any]) -> tuple[Any, bool]:
    """Kind of the layer that a tensor comes from through views, and whether it was dequantized from FP8."""
    views = {trt.LayerType.SHUFFLE, trt.LayerType.CAST, trt.LayerType.IDENTITY, trt.LayerType.DEQUANTIZE}
    dequantized = False
    while (layer := made_by.get(tensor.name)) is not None and layer.type in views:
        if layer.type == trt.LayerType.DEQUANTIZE:
            dequantized = layer.get_input(0).dtype == trt.fp8
        tensor = layer.get_input(0)
    return (layer.type if layer is not None else None), dequantized


def _is_dequantized(trt: Any, tensor: Any, made_by: dict[str, Any]) -> bool:
    layer = made_by.get(tensor.name)
    while layer is not None and layer.type in (trt.LayerType.SHUFFLE, trt.LayerType.CAST):
        layer = made_by.get(layer.get_input(0).name)
    return (
        layer is not None and layer.type == trt.LayerType.DEQUANTIZE and layer.get_input(0).dtype == trt.fp8
    )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:  # OSError: its shared libraries
        raise BuildError(f"builder {name} is not installed ({error}): {_HINTS[name]}") from error


def _slug(device: Device) -> str:
    return re.sub(r"\W+", "-", f"{_sm(device.capability)} {device.name}".strip())


def _sm(capability: str) -> str:
    return f"SM{capability.replace('.', '')}"


def _device() -> tuple[str, str]:
    """Model and compute capability of the GPU that CUDA will call device 0."""
    # In the order of nvidia-smi; without it CUDA puts the fastest first.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = ["nvidia-smi", f"--id={visible}", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(
            f"builder tensorrt: expected a GPU on this machine, found none ({error}); builder tensorrt-rtx "
            "compiles without one"
        ) from error
    name, _, capability = found.strip().partition("\n")[0].rpartition(", ")
    if not name:
        raise BuildError(
            f"builder tensorrt: expected a GPU on this machine, nvidia-smi said {found.strip()!r}"
        )
    return name, capability


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export.tensorrt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_preset_arguments(parser)
    parser.add_argument("--run", required=True, type=Path, help="run folder with bundles/")
    parser.add_argument(
        "--bundle", type=int, metavar="VERSION", help="bundle (default: those that get rendered)"
    )
    parser.add_argument("--builder", choices=MODULES, default="tensorrt")
    parser.add_argument(
        "--capability", help='compute capability, e.g. "8.9" (L20, L4, L40); tensorrt: that of this GPU'
    )
    parser.add_argument("--engines", type=Path, help=f"folder to fill (default: RUN/{ENGINES})")
    arguments = parser.parse_args()
    try:
        config = Preset.load(arguments.config, arguments.overrides).serving
        bundles = arguments.run / "bundles"
        chosen = (
            [read_manifest(bundles / str(arguments.bundle))]
            if arguments.bundle
            else kept_bundles(bundles, "tensorrt")
        )
        builder = Builder(arguments.builder, capability=arguments.capability)
        folder = EngineFolder(arguments.engines or arguments.run / ENGINES)
        count = build_bundles(builder, bundles, chosen, config=config, folder=folder)
    except (BuildError, BundleError, ConfigError, EngineError, RenderError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; engines that were complete stay") from None
    print(f"{folder.folder}: {count} engines, {builder.name} {builder.version}, {_sm(builder.capability)}")


if __name__ == "__main__":
    main()
