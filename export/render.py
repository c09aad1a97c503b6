"""Fill a model repository: adapters, graphs of the last versions, and a checked config for every model.

Nothing is written before every config has been rendered and parsed.
"""

from __future__ import annotations

import itertools
import logging
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from string import Template
from typing import Literal, get_args

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.engines import Device, EngineFolder, EngineSpec
from export.graph_config import check_graph, graph_values, on_gpu
from export.profiles import profiles
from serving.backend.adapter import HOME
from serving.backend.settings import ServingConfig, width_policy
from serving.files import new_folder, write_file
from serving.model.bundle import (
    CURRENT,
    BundleFormatError,
    Manifest,
    current_version,
    read_manifest,
    versions,
)
from serving.model.features import EVENT_COLUMNS
from serving.search.beam_search import parse_normalise

logger = logging.getLogger(__name__)

Target = Literal["cpu", "onnxruntime", "tensorrt"]
TARGETS = get_args(Target)
SOURCE = HOME / "model_repository"
TEMPLATES = Path(__file__).parent / "templates"
ADAPTERS = ("request_features", "beam_scheduler", "ad_resolver")
ENGINES = "engines"  # folder beside the bundles
KEPT_VERSIONS = 2  # the one that serves and the one before, to roll back to

_PRECISIONS = {
    "cpu": ("fp32", "int8"),
    "onnxruntime": ("fp32", "fp16", "int8", "fp8"),
    "tensorrt": ("fp32", "fp16", "fp8"),
}


class RenderError(RuntimeError):
    """A config has an unfilled placeholder or is no Triton config."""


def render(
    bundles: Path,
    repository: Path,
    *,
    index: Path,
    config: ServingConfig,
    target: Target = "cpu",
    engines: Path | None = None,
    device: Device | None = None,
    serving: int | None = None,
) -> list[str]:
    """Render the repository for the newest versions of `bundles`.

    Args:
        bundles: folder of bundles; see `kept_bundles` for which of them get into the repository.
        repository: folder to fill; the checkout's own, or any other (the adapters are copied there).
        index: folder of the index.
        config: serving settings.
        target: engine of the graphs.
        engines: folder of engines for target tensorrt (default: `engines` beside the bundles).
        device: whose engines; None for the only ones there are.
        serving: version that serves; None for the one CURRENT names.

    Returns:
        Names of the models.

    Raises:
        BundleError: no bundle, or a corrupted one.
        RenderError: a config cannot be rendered, or the target does not run a bundle's precision.
        GraphConfigError: a config does not fit its graph.
        EngineError: target tensorrt lacks an engine, or it is of another builder, version or device.
        ValueError: the width plan does not fit the model.
    """
    manifests = kept_bundles(bundles, target, serving=serving)
    newest = manifests[-1]
    try:
        ladder, widest = width_policy(config, levels=newest.levels)
    except ValueError as error:
        raise RenderError(str(error)) from error
    plan = ladder.plans[ladder.base]
    normalise: tuple[str, ...] = ("codebook",) * newest.levels
    if config.normalise is not None:
        normalise = parse_normalise(config.normalise, levels=newest.levels)
    values = {
        "max_batch_size": config.max_batch_size,
        "graph_calls": config.graph_calls,
        "graph_memory": "device" if on_gpu(config, target) else "host",
        "pad_shapes": str(target == "tensorrt" and config.cuda_graphs).lower(),
        "threads": config.threads,
        "scheduler_instances": config.scheduler_instances,
        "queue_delay_us": config.queue_delay_us,
        "max_num_ads": config.max_num_ads,
        "max_exclude": config.max_exclude,
        "widths": str(plan),
        "ladder": str(ladder),
        "load_control": config.load_control,
        "slo_ms": config.slo_ms,
        "max_queue": config.max_queue,
        "cache": config.cache,
        "cache_ttl_s": config.cache_ttl_s,
        "cache_mb": config.cache_mb,
        "cache_url": config.cache_url,
        "max_widths": str(widest),
        "normalise": "-".join(normalise),
        "cold_start": str(config.cold_start),
        "profile_columns": len(newest.features.profile_sizes),
        "slots": newest.features.slots,
        "event_columns": EVENT_COLUMNS,
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
        configs[f"lazyar_{stem}"] = _fill("graph", graph_values(stem, newest, config=config, target=target))
    parsed = {name: check_config(name, text) for name, text in configs.items()}
    for manifest in manifests:
        ranges = profiles(manifest, config) if target == "tensorrt" else {}
        for stem in stems:
            graph = bundles / str(manifest.version) / f"{stem}.onnx"
            check_graph(parsed[f"lazyar_{stem}"], graph, ranges=ranges.get(stem))
    plans = (
        {m.version: _plans(m, bundles, engines, config=config, device=device) for m in manifests}
        if target == "tensorrt"
        else {}
    )

    for name in ADAPTERS:
        if repository.resolve() != SOURCE.resolve():
            _copy(SOURCE / name / "1" / "model.py", repository / name / "1" / "model.py")
    (repository / "gr4ad" / "1").mkdir(parents=True, exist_ok=True)
    with ExitStack() as placed:  # all versions of all graphs are there before the first one gets its name
        for stem, manifest in itertools.product(stems, manifests):
            work = placed.enter_context(
                new_folder(repository / f"lazyar_{stem}" / str(manifest.version), replace=True)
            )
            if target == "tensorrt":
                shutil.copyfile(plans[manifest.version][stem], work / "model.plan")
            else:
                shutil.copyfile(bundles / str(manifest.version) / f"{stem}.onnx", work / "model.onnx")
            if target == "cpu":
                shutil.copyfile(TEMPLATES / "graph_model.py", work / "model.py")
    _remove_others(repository, stems, versions={str(manifest.version) for manifest in manifests})
    for name, text in configs.items():
        (repository / name).mkdir(parents=True, exist_ok=True)
        write_file(repository / name / "config.pbtxt", text)
    return list(configs)


def kept_bundles(bundles: Path, target: Target, *, serving: int | None = None) -> list[Manifest]:
    """Bundles that get into a repository, oldest first.

    They are the last `KEPT_VERSIONS` and the one that serves. All versions of a graph share one config, so
    those whose tensors differ from the serving one's (FP16 keys and values beside FP32 ones), or whose
    precision the target does not run, or that another release made, are left out with a line in the log;
    going back to them takes a repository of their own.

    Args:
        bundles: folder of bundles.
        target: engine of the graphs.
        serving: version that serves; None for the one CURRENT names.

    Raises:
        RenderError: there is none, or the target does not run the precision of the one that serves.
        BundleError: a bundle is corrupted.
    """
    kept = versions(bundles)[-KEPT_VERSIONS:]
    if not kept:
        raise RenderError(f"{bundles}: expected at least one bundle, found none; run `make train export`")
    if serving is None:  # after a rollback it may be an older one
        serving = current_version(bundles) if (bundles / CURRENT).exists() else kept[-1]
    manifests = []
    for version in sorted({*kept, serving}):
        try:
            manifests.append(read_manifest(bundles / str(version)))
        except BundleFormatError as error:
            if version == serving:
                raise
            logger.warning("model version %d is left out: %s", version, error)
    reference = next(m for m in manifests if m.version == serving)
    check_precision(reference.precision, target, where=f"{bundles / str(serving)}: ")
    fitting = []
    for manifest in manifests:
        same = manifest.content["graphs"] == reference.content["graphs"]
        if same and manifest.precision in _PRECISIONS[target]:
            fitting.append(manifest)
        else:
            logger.warning(
                "model version %d (%s) is left out: its tensors are not those of version %d (%s)",
                *(manifest.version, manifest.precision, serving, reference.precision),
            )
    return fitting


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
    if precision not in _PRECISIONS[target]:
        targets = [t for t, known in _PRECISIONS.items() if precision in known]
        raise RenderError(
            f"{where}expected a precision that target {target} runs ({', '.join(_PRECISIONS[target])}), got "
            f"{precision} (targets: {', '.join(targets)}); use such a target, or export with another "
            "--precision"
        )


def _fill(template: str, values: dict) -> str:
    try:
        return Template((TEMPLATES / f"{template}.pbtxt").read_text()).substitute(values)
    except (KeyError, ValueError) as error:
        raise RenderError(f"{template}.pbtxt: placeholder {error} has no value") from error


def _remove_others(repository: Path, stems: list[str], *, versions: set[str]) -> None:
    """Remove graphs of other settings or another number of levels, and versions that are kept no longer."""
    for folder in repository.glob("lazyar_*"):
        if folder.name.removeprefix("lazyar_") not in stems:
            shutil.rmtree(folder)
            continue
        for old in folder.iterdir():
            if old.is_dir() and old.name not in versions:
                shutil.rmtree(old)


def _plans(
    manifest: Manifest, bundles: Path, engines: Path | None, *, config: ServingConfig, device: Device | None
) -> dict[str, Path]:
    """Engine of every graph of a bundle."""
    folder = EngineFolder(engines or bundles.parent / ENGINES)
    device = device or folder.only("tensorrt")
    ranges = profiles(manifest, config)
    return {
        stem: folder.require(
            EngineSpec(
                stem,
                manifest.content["sha256"][f"{stem}.onnx"],
                ranges[stem],
                "tensorrt",
                *device,
            )
        )
        for stem in manifest.content["graphs"]
    }


def _portable(path: Path) -> str:
    """Relative to the checkout where it lies inside, so that a mounted checkout works elsewhere too."""
    path = path.resolve()
    return str(path.relative_to(HOME.resolve())) if path.is_relative_to(HOME.resolve()) else str(path)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
