"""Build TensorRT engines of a bundle's graphs: `python -m export.tensorrt --config ... --run ...`.

Builder `tensorrt` builds for the GPU of this machine, inside the Triton container whose TensorRT will run the
engines; Triton's TensorRT backend serves them. Builder `tensorrt-rtx` builds on any machine, without a GPU,
for GPUs of the compute capabilities asked for; its engines prove that the graphs compile, Triton does not run
them. Everything but the builder is shared.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from export.builder import MODULES, Builder, BuildError, sm
from export.engines import Device, EngineError, EngineFolder, EngineSpec, write_whole
from export.kept import kept_bundles
from export.pbtxt import RenderError
from export.products import fp8_share, products
from export.profiles import ShapeRange, profiles
from export.render import ENGINES
from serving.backend.settings import ServingConfig
from serving.files import sha256
from serving.model.bundle import BundleError, read_manifest
from serving.model.manifest import Manifest
from training.preset.preset import ConfigError, Preset, add_preset_arguments


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
        graphs.items(), desc=f"{builder.name} {sm(builder.capability)}", unit="graph", file=sys.stderr
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
        graphs = {stem: bundle / f"{stem}.onnx" for stem in manifest.graphs}
        ranges = profiles(manifest, config)
        count += len(build_engines(builder, graphs, ranges, folder=folder, say=tqdm.write))
    return count


def _slug(device: Device) -> str:
    return re.sub(r"\W+", "-", f"{sm(device.capability)} {device.name}".strip())


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
    parser.add_argument("--index", type=Path, help="index that will be served (default: RUN/index)")
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
            else kept_bundles(bundles, "tensorrt", index=arguments.index or arguments.run / "index")
        )
        builder = Builder(arguments.builder, capability=arguments.capability)
        folder = EngineFolder(arguments.engines or arguments.run / ENGINES)
        count = build_bundles(builder, bundles, chosen, config=config, folder=folder)
    except (BuildError, BundleError, ConfigError, EngineError, RenderError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; engines that were complete stay") from None
    print(f"{folder.folder}: {count} engines, {builder.name} {builder.version}, {sm(builder.capability)}")


if __name__ == "__main__":
    main()
