"""config.pbtxt of one graph model, for every target."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import onnx
from tritonclient.grpc import model_config_pb2

from export.pbtxt import parameter, settings_parameter
from export.profiles import ShapeRange, profiles, sizes_of
from serving.backend.engine import shape_buckets
from serving.backend.model_settings import GraphSettings
from serving.backend.plans import SearchPlans
from serving.backend.settings import ServingConfig
from serving.model.manifest import Manifest

ENGINE = {
    "cpu": 'backend: "python"',
    "onnxruntime": 'backend: "onnxruntime"',
    "tensorrt": 'backend: "tensorrt"',
}
TYPES = {"INT32": "TYPE_INT32", "INT64": "TYPE_INT64", "FLOAT": "TYPE_FP32", "FLOAT16": "TYPE_FP16"}


class GraphConfigError(RuntimeError):
    """A config does not fit the graph that it is for."""


def on_gpu(config: ServingConfig, target: str) -> bool:
    """Whether the graphs run on a GPU."""
    return target == "tensorrt" or (target == "onnxruntime" and config.execution_provider != "cpu")


def graph_values(
    stem: str, manifest: Manifest, *, config: ServingConfig, target: str, bundles: str
) -> dict[str, object]:
    """Values of the template `graph.pbtxt`; `bundles` is where the models will find the bundles."""
    sides: dict[str, object] = {}
    for side, tensors in manifest.graphs[stem].items():
        lines = []
        for name, dtype, dims in tensors:
            shape = ", ".join(str(d) if isinstance(d, int) else "-1" for d in dims[1:])  # without the batch
            lines.append(f'  {{ name: "{name}" data_type: {TYPES[dtype]} dims: [ {shape} ] }}')
        sides[side] = ",\n".join(lines)
    gpu, extra = on_gpu(config, target), []
    if target == "cpu":
        extra.append(settings_parameter(GraphSettings(bundles=bundles, graph=stem, threads=config.threads)))
    elif target == "onnxruntime":
        extra += _onnxruntime(stem, manifest, config=config, gpu=gpu)
    else:
        extra.append("dynamic_batching { }")
        shapes = list(_fixed_shapes(stem, manifest, config))
        extra += [_warmup(i, s, stem=stem, manifest=manifest) for i, s in enumerate(shapes)]
        if config.cuda_graphs:
            specs = "\n".join(_graph_spec(s) for s in shapes)
            extra.append(f"optimization {{ cuda {{ graphs: true\n{specs}\n}} }}")
    return {
        "name": f"lazyar_{stem}",
        "engine": ENGINE[target],
        "kind": "KIND_GPU" if gpu else "KIND_CPU",
        "instances": config.graph_instances,
        "extra": "\n".join(extra),
        "max_batch_size": config.max_batch_size,
        **sides,
    }


def check_graph(
    parsed: model_config_pb2.ModelConfig, graph: Path, *, ranges: dict[str, ShapeRange] | None
) -> None:
    """Compare a config with the ONNX file of the graph.

    Args:
        parsed: the config.
        graph: ONNX file.
        ranges: profile of the engine, None where the target has none.

    Raises:
        GraphConfigError: an input or output is missing, or has another name, type or shape; or a CUDA graph
            has a shape outside the profile.
    """
    found = onnx.load(str(graph), load_external_data=False).graph
    for side, ours, theirs in (
        ("input", parsed.input, found.input),
        ("output", parsed.output, found.output),
    ):
        got = [(t.name, model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in ours]
        wanted = []
        for value in theirs:
            tensor = value.type.tensor_type
            kind = TYPES.get(onnx.TensorProto.DataType.Name(tensor.elem_type), "none that serving knows")
            wanted.append((value.name, kind, [d.dim_value or -1 for d in tensor.shape.dim][1:]))
        for name in sorted({n for n, *_ in got} | {n for n, *_ in wanted}):
            a, b = ([t[1:] for t in ts if t[0] == name] for ts in (wanted, got))
            if a != b:
                raise GraphConfigError(
                    f"{parsed.name}: {side} {name}: expected {a or 'none'} ({graph.name}), got {b or 'none'} "
                    "in config.pbtxt"
                )
    for spec in parsed.optimization.cuda.graph_spec:
        for name, shape in spec.input.items():
            full = (spec.batch_size, *shape.dim)
            if ranges is None or name not in ranges or not ranges[name].holds(full):
                where = ranges[name] if ranges and name in ranges else "no profile"
                raise GraphConfigError(
                    f"{parsed.name}: CUDA graph: input {name}: expected {where}, got {full}"
                )


def _fixed_shapes(
    stem: str, manifest: Manifest, config: ServingConfig
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Every shape that calls are padded to: input -> dims with the batch."""
    plans = SearchPlans.of(config, levels=manifest.levels).prepared
    buckets = shape_buckets(manifest, config)
    inputs = manifest.graphs[stem]["inputs"]
    seen = set()
    level = int(stem.removeprefix("tail_")) if stem.startswith("tail_") else 0
    for plan, batch in itertools.product(plans, buckets.batch):
        for children in buckets.children[level - 2] if level else (0,):
            sizes = sizes_of(level, plan, levels=manifest.levels)
            sizes |= {"batch": batch, "children": children, "ads": config.rerank_pool}
            shape = {
                name: tuple(d if isinstance(d, int) else sizes[d] for d in dims) for name, _, dims in inputs
            }
            key = tuple(shape.values())
            if key not in seen:
                seen.add(key)
                yield shape


def _graph_spec(shape: dict[str, tuple[int, ...]]) -> str:
    inputs = " ".join(
        f'input {{ key: "{name}" value {{ dim: [ {_numbers(dims[1:])} ] }} }}' for name, dims in shape.items()
    )
    batch = next(iter(shape.values()))[0]
    return f"  graph_spec {{ batch_size: {batch} {inputs} }}"


def _warmup(number: int, shape: dict[str, tuple[int, ...]], *, stem: str, manifest: Manifest) -> str:
    kinds = {name: TYPES[dtype] for name, dtype, _ in manifest.graphs[stem]["inputs"]}
    inputs = " ".join(
        f'inputs {{ key: "{name}" value {{ data_type: {kinds[name]} dims: [ {_numbers(dims[1:])} ] '
        "zero_data: true } }"
        for name, dims in shape.items()
    )
    batch = next(iter(shape.values()))[0]
    return f'model_warmup {{ name: "shape_{number}" batch_size: {batch} {inputs} }}'


def _onnxruntime(stem: str, manifest: Manifest, *, config: ServingConfig, gpu: bool) -> list[str]:
    lines = [parameter("intra_op_thread_count", config.threads)]
    if not gpu:
        if manifest.precision == "fp8":
            # Fused, ONNX Runtime's CPU provider refuses FP8; -1 is its "basic".
            lines.append("optimization { graph { level: -1 } }")
        return lines
    if config.execution_provider == "tensorrt":
        ranges = profiles(manifest, config)[stem]
        half = manifest.precision in ("fp16", "fp8")
        values = {
            "precision_mode": "FP16" if half else "FP32",
            "trt_engine_cache_enable": "1",
            "trt_timing_cache_enable": "1",
            "trt_profile_min_shapes": ",".join(_shape(n, r.least) for n, r in ranges.items()),
            "trt_profile_opt_shapes": ",".join(_shape(n, r.usual) for n, r in ranges.items()),
            "trt_profile_max_shapes": ",".join(_shape(n, r.most) for n, r in ranges.items()),
        }
        inside = "\n".join(f'    parameters {{ key: "{k}" value: "{v}" }}' for k, v in values.items())
        lines.append(
            "optimization { execution_accelerators { gpu_execution_accelerator [ {\n"
            f'    name: "tensorrt"\n{inside}\n}} ] }} }}'
        )
    return lines


def _shape(name: str, dims: tuple[int, ...]) -> str:
    return f"{name}:{'x'.join(map(str, dims))}"


def _numbers(dims: tuple[int, ...]) -> str:
    return ", ".join(map(str, dims))
