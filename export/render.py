"""Fill a model repository: adapters, graphs of the last versions, and a checked config for every model.

Nothing is written before every config has been rendered and parsed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from string import Template
from typing import Literal, get_args

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.config import ServingConfig
from serving.adapter import HOME
from serving.beam_search import parse_normalise
from serving.bundle import CURRENT, Manifest, current_version, read_manifest, versions
from serving.widths import WidthPlan

Target = Literal["cpu", "onnxruntime", "tensorrt"]
TARGETS = get_args(Target)
SOURCE = HOME / "model_repository"
TEMPLATES = Path(__file__).parent / "templates"
ADAPTERS = ("request_features", "beam_scheduler", "ad_resolver")
KEPT_VERSIONS = 2  # the one that serves and the one before, to roll back to

_ENGINE = {
    "cpu": 'backend: "python"',
    "onnxruntime": 'backend: "onnxruntime"',
    "tensorrt": 'backend: "tensorrt"',
}
_KIND = {"cpu": "KIND_CPU", "onnxruntime": "KIND_CPU", "tensorrt": "KIND_GPU"}
_TYPES = {"INT32": "TYPE_INT32", "INT64": "TYPE_INT64", "FLOAT": "TYPE_FP32"}


class RenderError(RuntimeError):
    """A config has an unfilled placeholder or is no Triton config."""


def render(
    bundles: Path, repository: Path, *, index: Path, config: ServingConfig, target: Target = "cpu"
) -> list[str]:
    """Render the repository for the newest versions of `bundles`.

    Args:
        bundles: folder of bundles; its last `KEPT_VERSIONS` complete versions, and the one CURRENT names,
            get into the repository.
        repository: folder to fill; the checkout's own, or any other (the adapters are copied there).
        index: folder of the index.
        config: serving settings.
        target: engine of the graphs.

    Returns:
        Names of the models.

    Raises:
        BundleError: no bundle, or a corrupted one.
        RenderError: a config cannot be rendered, or the target does not run a bundle's precision.
        ValueError: the width plan does not fit the model.
    """
    kept = versions(bundles)[-KEPT_VERSIONS:]
    if not kept:
        raise RenderError(f"{bundles}: expected at least one bundle, found none; run `make train export`")
    if (bundles / CURRENT).exists():  # after a rollback the version that serves may be an older one
        kept = sorted({*kept, current_version(bundles)})
    manifests = [read_manifest(bundles / str(v)) for v in kept]
    for manifest in manifests:
        check_precision(manifest.precision, target, where=f"{bundles / str(manifest.version)}: ")
    newest = manifests[-1]
    plan = WidthPlan.parse(config.widths, levels=newest.levels)
    widest = WidthPlan.parse(config.max_widths or config.widths, levels=newest.levels)
    if widest.narrower(plan):
        raise RenderError(f"serving.max_widths: expected at least serving.widths, {plan}, got {widest}")
    normalise: tuple[str, ...] = ("codebook",) * newest.levels
    if config.normalise is not None:
        normalise = parse_normalise(config.normalise, levels=newest.levels)
    values = {
        "max_batch_size": config.max_batch_size,
        "graph_calls": config.graph_calls,
        "threads": config.threads,
        "scheduler_instances": config.scheduler_instances,
        "queue_delay_us": config.queue_delay_us,
        "max_num_ads": config.max_num_ads,
        "max_exclude": config.max_exclude,
        "widths": str(plan),
        "max_widths": str(widest),
        "normalise": "-".join(normalise),
        "profile_columns": len(newest.features.profile_sizes),
        "slots": newest.features.slots,
        "slot_columns": newest.features.columns,
        "levels": newest.levels,
        "levels_and_value": newest.levels + 1,
        "bundles": _portable(bundles),
        "index": _portable(index),
    }
    configs = {name: _fill(name, values) for name in ("gr4ad", *ADAPTERS)}
    if config.graph_calls == "in_process" and target != "cpu":
        raise RenderError(f"serving.graph_calls: expected bls for target {target}, got in_process (cpu only)")
    stems = list(newest.content["graphs"]) if config.graph_calls == "bls" else []
    for stem in stems:
        configs[f"lazyar_{stem}"] = _graph_config(stem, newest, config=config, target=target)
    for name, text in configs.items():
        check_config(name, text)

    if target == "tensorrt":
        _require_plans(
            [bundles / str(m.version) / f"{stem}.plan" for m in manifests for stem in m.content["graphs"]]
        )

    for name in ADAPTERS:
        if repository.resolve() != SOURCE.resolve():
            _copy(SOURCE / name / "1" / "model.py", repository / name / "1" / "model.py")
    (repository / "gr4ad" / "1").mkdir(parents=True, exist_ok=True)
    for old in repository.glob("lazyar_*"):
        if old.name.removeprefix("lazyar_") not in stems:  # of other settings, or another number of levels
            shutil.rmtree(old)
    for stem in stems:
        _place_graph(stem, manifests, bundles=bundles, folder=repository / f"lazyar_{stem}", target=target)
    for name, text in configs.items():
        _write(repository / name / "config.pbtxt", text)
    return list(configs)


def check_config(name: str, text: str) -> model_config_pb2.ModelConfig:
    """Parse a rendered config as Triton's own protobuf.

    Raises:
        RenderError: a placeholder is left, it does not parse, or it names another model.
    """
    left = re.search(r"\$\{?\w+", text)
    if left:
        raise RenderError(f"{name}: config.pbtxt has the unfilled placeholder {left.group()}")
    try:
        parsed = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise RenderError(f"{name}: config.pbtxt is not a Triton model config: {error}") from error
    if parsed.name != name:
        raise RenderError(f"{name}: expected a config of that name, got {parsed.name!r}")
    return parsed


def check_precision(precision: str, target: Target, *, where: str = "") -> None:
    """Refuse a precision that the engine of a target does not run.

    Raises:
        RenderError: says what to do instead.
    """
    if target == "tensorrt" and precision == "int8":
        raise RenderError(
            f"{where}precision int8 is for CPUs (ONNX Runtime quantizes activations at run time), TensorRT "
            "does not run its graphs; use target cpu or onnxruntime, or export with --precision fp32"
        )


def _fill(template: str, values: dict) -> str:
    try:
        return Template((TEMPLATES / f"{template}.pbtxt").read_text()).substitute(values)
    except (KeyError, ValueError) as error:
        raise RenderError(f"{template}.pbtxt: placeholder {error} has no value") from error


def _graph_config(stem: str, manifest: Manifest, *, config: ServingConfig, target: Target) -> str:
    sides = {}
    for side, tensors in manifest.content["graphs"][stem].items():
        lines = []
        for name, dtype, dims in tensors:
            shape = ", ".join(str(d) if isinstance(d, int) else "-1" for d in dims[1:])  # without the batch
            lines.append(f'  {{ name: "{name}" data_type: {_TYPES[dtype]} dims: [ {shape} ] }}')
        sides[side] = ",\n".join(lines)
    key = {"cpu": "threads", "onnxruntime": "intra_op_thread_count"}.get(target)
    extra = f'parameters {{ key: "{key}" value {{ string_value: "{config.threads}" }} }}' if key else ""
    return _fill(
        "graph",
        {
            "name": f"lazyar_{stem}",
            "engine": _ENGINE[target],
            "kind": _KIND[target],
            "extra": extra,
            "max_batch_size": config.max_batch_size,
            **sides,
        },
    )


def _place_graph(
    stem: str, manifests: list[Manifest], *, bundles: Path, folder: Path, target: Target
) -> None:
    """Version folders appear whole or not at all, since a server may be looking."""
    for old in folder.glob("*"):
        if old.is_dir() and old.name not in {str(m.version) for m in manifests}:
            shutil.rmtree(old)
    for manifest in manifests:
        new = folder / f".{manifest.version}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        source = bundles / str(manifest.version)
        if target == "tensorrt":
            _copy(source / f"{stem}.plan", new / "model.plan")
        else:
            _copy(source / f"{stem}.onnx", new / "model.onnx")
        if target == "cpu":
            _copy(TEMPLATES / "graph_model.py", new / "model.py")
        final = folder / str(manifest.version)
        shutil.rmtree(final, ignore_errors=True)
        new.rename(final)


def _require_plans(plans: list[Path]) -> None:
    missing = [p for p in plans if not p.is_file()]
    if missing:
        raise RenderError(
            f"{missing[0]}: expected a TensorRT engine, found none ({len(missing)} of {len(plans)} are "
            "missing); build them with trtexec from the .onnx of the same name, on the GPU host and with "
            "the TensorRT version of its Triton"
        )


def _portable(path: Path) -> str:
    """Relative to the checkout where it lies inside, so that a mounted checkout works elsewhere too."""
    path = path.resolve()
    return str(path.relative_to(HOME.resolve())) if path.is_relative_to(HOME.resolve()) else str(path)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(".config.new")
    partial.write_text(text)
    os.replace(partial, path)
