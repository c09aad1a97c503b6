"""Fill a model repository: adapters, graphs of the last versions, and a checked config for every model.

Nothing is written before every config has been rendered and parsed.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, get_args

from export.engines import Device, EngineFolder, EngineSpec
from export.graph_config import check_graph, graph_values, on_gpu
from export.pbtxt import TEMPLATES, RenderError, check_config, fill, settings_parameter
from export.profiles import profiles
from serving.backend.model_settings import HOME, ModelSettings
from serving.backend.settings import ServingConfig
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

logger = logging.getLogger(__name__)

Target = Literal["cpu", "onnxruntime", "tensorrt"]
TARGETS = get_args(Target)
SOURCE = HOME / "model_repository"
ADAPTERS = ("request_features", "beam_scheduler", "ad_resolver")
ENGINES = "engines"  # folder beside the bundles
KEPT_VERSIONS = 2  # the one that serves and the one before, to roll back to

_PRECISIONS = {
    "cpu": ("fp32", "int8"),
    "onnxruntime": ("fp32", "fp16", "int8", "fp8"),
    "tensorrt": ("fp32", "fp16", "fp8"),
}


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
        RenderError: settings do not fit the model, a config cannot be rendered, or the target does not run a
            bundle's precision.
        GraphConfigError: a config does not fit its graph.
        EngineError: target tensorrt lacks an engine, or it is of another builder, version or device.
    """
    manifests = kept_bundles(bundles, target, serving=serving)
    newest = manifests[-1]
    if config.graph_calls == "in_process" and target != "cpu":
        raise RenderError(f"serving.graph_calls: expected bls for target {target}, got in_process (cpu only)")
    values = _values(newest, config, target=target, bundles=_portable(bundles), index=_portable(index))
    configs = {name: fill(name, values) for name in ("gr4ad", *ADAPTERS)}
    stems = list(newest.content["graphs"]) if config.graph_calls == "bls" else []
    for stem in stems:
        configs[f"lazyar_{stem}"] = fill("graph", graph_values(stem, newest, config=config, target=target))
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


def _values(
    manifest: Manifest, config: ServingConfig, *, target: Target, bundles: str, index: str
) -> dict[str, object]:
    """Values of the templates: what Triton itself reads, and the settings of the Python models."""
    try:
        settings = ModelSettings.of(
            config,
            levels=manifest.levels,
            bundles=bundles,
            index=index,
            graph_memory="device" if on_gpu(config, target) else "host",
            pad_shapes=target == "tensorrt" and config.cuda_graphs,
        )
    except ValueError as error:
        raise RenderError(str(error)) from error
    return {
        "settings": settings_parameter(settings),
        "max_batch_size": config.max_batch_size,
        "scheduler_instances": config.scheduler_instances,
        "queue_delay_us": config.queue_delay_us,
        "max_queue": config.max_queue,
        "profile_columns": len(manifest.features.profile_sizes),
        "slots": manifest.features.slots,
        "event_columns": EVENT_COLUMNS,
        "levels": manifest.levels,
        "levels_and_value": manifest.levels + 1,
    }


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
                stem=stem,
                graph_sha256=manifest.content["sha256"][f"{stem}.onnx"],
                profile=ranges[stem],
                builder="tensorrt",
                version=device.version,
                capability=device.capability,
                device=device.name,
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
