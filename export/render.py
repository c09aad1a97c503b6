"""Fill a model repository: adapters, graphs of the last versions, and a checked config for every model.

Nothing is written before every config has been rendered and parsed.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from export.engines import Device, EngineFolder, EngineSpec
from export.graph_config import check_graph, graph_values, on_gpu
from export.kept import Target, kept_bundles
from export.pbtxt import TEMPLATES, RenderError, check_config, fill, settings_parameter
from export.profiles import profiles
from export.rendered import RECORD, portable, rendered_for
from serving.backend.model_settings import HOME, ModelSettings
from serving.backend.served import context_length
from serving.backend.settings import ServingConfig
from serving.files import new_folder, sha256, write_file
from serving.model.features import EVENT_COLUMNS, FeatureSpec
from serving.model.manifest import Manifest
from serving.model.placed import DESCRIPTION, GRAPH, PLAN, graph_folder

SOURCE = HOME / "model_repository"
ADAPTERS = ("request_features", "beam_scheduler", "ad_resolver", "ad_keys")
ENGINES = "engines"  # folder beside the bundles


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
    prune: bool = True,
) -> list[str]:
    """Render the repository for the newest versions of `bundles`.

    What is there already and as it should be is left alone: Triton loads a file again that was written again.

    Args:
        bundles: folder of bundles; see `kept_bundles` for which of them get into the repository.
        repository: folder to fill; the checkout's own, or any other (the adapters are copied there).
        index: folder of the index.
        config: serving settings.
        target: engine of the graphs.
        engines: folder of engines for target tensorrt (default: `engines` beside the bundles).
        device: whose engines; None for the only ones there are.
        serving: version that serves; None for the one CURRENT names.
        prune: take away versions that are kept no longer.

    Returns:
        Names of the models.

    Raises:
        BundleError: the bundle that serves is corrupted.
        IndexStoreError: the index does not say which versions may be in use.
        RenderError: settings do not fit the model, a config cannot be rendered, or the target does not run a
            bundle's precision.
        GraphConfigError: a config does not fit its graph.
        EngineError: target tensorrt lacks an engine, or it is of another builder, version or device.
    """
    manifests = kept_bundles(bundles, target, index=index, serving=serving)
    newest = manifests[-1]
    if config.graph_calls == "in_process" and target != "cpu":
        raise RenderError(f"serving.graph_calls: expected bls for target {target}, got in_process (cpu only)")
    values = _values(newest, config, target=target, bundles=portable(bundles), index=portable(index))
    configs = {name: fill(name, values) for name in ("gr4ad", *ADAPTERS)}
    stems = list(newest.graphs) if config.graph_calls == "bls" else []
    for stem in stems:
        configs[f"lazyar_{stem}"] = fill(
            "graph",
            graph_values(stem, newest, config=config, target=target, bundles=portable(bundles)),
        )
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

    (repository / RECORD).unlink(missing_ok=True)
    for name in ADAPTERS:
        _write(repository / name / "1" / "model.py", (SOURCE / name / "1" / "model.py").read_bytes())
    (repository / "gr4ad" / "1").mkdir(parents=True, exist_ok=True)
    with ExitStack() as placed:  # all versions of all graphs are there before the first one gets its name
        for stem, manifest in itertools.product(stems, manifests):
            folder = graph_folder(repository, stem, manifest.version)
            files = {GRAPH: bundles / str(manifest.version) / f"{stem}.onnx"}
            if target == "tensorrt":
                plan = plans[manifest.version][stem]
                files = {PLAN: plan, DESCRIPTION: plan.with_suffix(".json")}
            elif target == "cpu":
                files["model.py"] = TEMPLATES / "graph_model.py"
            if _is_placed(folder, files):
                continue
            work = placed.enter_context(new_folder(folder, replace=True))
            for name, source in files.items():
                shutil.copyfile(source, work / name)
            # Where Python would put the compiled model.py at its first import: Triton would take that for a
            # change, and load every version again whenever one is added. A file keeps it away.
            if target == "cpu":
                (work / "__pycache__").touch()
    if prune:
        remove_others(repository, stems, versions={manifest.version for manifest in manifests})
    for name, text in configs.items():
        _write(repository / name / "config.pbtxt", text.encode())
    rendered_for(config, bundles=bundles, index=index).save(repository / RECORD)
    return list(configs)


def _values(
    manifest: Manifest, config: ServingConfig, *, target: Target, bundles: str, index: str
) -> dict[str, object]:
    """Values of the templates: what Triton itself reads, and the settings of the Python models."""
    try:
        settings = ModelSettings.of(
            config,
            bundles=bundles,
            index=index,
            features=manifest.features,
            profile_columns=manifest.profile_columns,
            ranker=manifest.ranker_kind,
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
        **_context_tensors(manifest.features),
        **_resolver_tensors(manifest, config),
        **_terms_tensors(config),
        "rows": manifest.features.rows,
        "event_columns": EVENT_COLUMNS,
        "levels": manifest.levels,
        "levels_and_value": manifest.levels + 1,
    }


def _context_tensors(features: FeatureSpec) -> dict[str, str]:
    """Lines of the templates that depend on the columns of a context: what a model lacks has no tensor."""
    inputs = {"profile": ("INT32", len(features.profile_sizes))} if features.profile_sizes else {}
    inputs |= {f.name: ("INT32" if f.size else "STRING", 1) for f in features.request_features}
    columns = len(features.column_sizes)
    codes = f'  {{ name: "profile_codes" data_type: TYPE_INT32 dims: [ {columns} ] }},' if columns else ""
    codes_map = 'key: "profile_codes" value: "profile_codes"' if columns else ""
    return {
        "context_inputs": "\n".join(
            f'  {{ name: "{name}" data_type: TYPE_{kind} dims: [ {width} ] optional: true }},'
            for name, (kind, width) in inputs.items()
        ),
        "context_map": "\n".join(f'      input_map {{ key: "{name}" value: "{name}" }}' for name in inputs),
        "profile_codes": codes,
        "profile_codes_out": f"      output_map {{ {codes_map} }}" if columns else "",
        "profile_codes_in": f"      input_map {{ {codes_map} }}" if columns else "",
    }


def _resolver_tensors(manifest: Manifest, config: ServingConfig) -> dict[str, str]:
    """Lines of the templates that hand a request on to the resolver.

    Its past goes to the ranking stage of bundles that have one, its context and plan to the served log.
    """
    columns, is_logged = len(manifest.features.column_sizes), config.served_log.sink != "off"
    past = {"past_ads": "INT64", "past_behaviors": "INT32", "past_times": "INT64"} if manifest.ranker else {}
    made = {name: (kind, "-1", " allow_ragged_batch: true") for name, kind in past.items()}
    made |= {"asked_at": ("INT64", "1", "")} if manifest.ranker else {}
    taken = made | ({"profile_codes": ("INT32", str(columns), "")} if manifest.ranker and columns else {})
    context = {"served_context": ("INT64", str(context_length(manifest.features)), "")} if is_logged else {}
    plan = {"served_plan": ("INT32", str(manifest.levels + 2), "")} if is_logged else {}
    made, taken = made | context, taken | context | plan
    return {
        "past_outputs": _tensors({name: (kind, dims, "") for name, (kind, dims, _) in made.items()}),
        "past_out": _map("output", made),
        "plan_outputs": _tensors(plan),
        "plan_out": _map("output", plan),
        "resolver_inputs": _tensors(taken),
        "resolver_in": _map("input", taken),
    }


def _terms_tensors(config: ServingConfig) -> dict[str, str]:
    """Lines of the templates for the terms of a request, see `serving.backend.terms`; none without."""
    if config.audience == "off":
        names = ("ensemble_terms_inputs", "terms_inputs", "terms_map", "terms_out", "terms_in")
        return dict.fromkeys((*names, "terms", "terms_ragged"), "")
    inputs = {"exclude_account_ids": ("STRING", "-1", " optional: true allow_ragged_batch: true")}
    if config.attributes:
        inputs["attributes"] = ("STRING", str(len(config.attributes)), " optional: true")
    terms = {"terms": ("INT64", "-1", "")}
    ragged = {"terms": ("INT64", "-1", " allow_ragged_batch: true")}
    return {
        "ensemble_terms_inputs": _tensors({n: (k, d, " optional: true") for n, (k, d, _) in inputs.items()}),
        "terms_inputs": _tensors(inputs),
        "terms_map": _map("input", inputs),
        "terms": _tensors(terms),
        "terms_ragged": _tensors(ragged),
        "terms_out": _map("output", terms),
        "terms_in": _map("input", terms),
    }


def _tensors(tensors: dict[str, tuple[str, str, str]]) -> str:
    """Of a model: type, dimensions, what else is said of each."""
    return "\n".join(
        f'  {{ name: "{name}" data_type: TYPE_{kind} dims: [ {dims} ]{more} }},'
        for name, (kind, dims, more) in tensors.items()
    )


def _map(direction: str, names: Iterable[str]) -> str:
    """Of a step of the ensemble."""
    return "\n".join(f'      {direction}_map {{ key: "{name}" value: "{name}" }}' for name in names)


def remove_others(repository: Path, stems: list[str], *, versions: set[int]) -> None:
    """Remove graphs of other settings or another number of levels, and versions that are kept no longer."""
    for folder in repository.glob("lazyar_*"):
        if folder.name.removeprefix("lazyar_") not in stems:
            shutil.rmtree(folder)
            continue
        for old in folder.iterdir():
            if old.is_dir() and old.name not in map(str, versions):
                shutil.rmtree(old)


def _is_placed(folder: Path, files: dict[str, Path]) -> bool:
    """Whether a folder holds copies of these files and nothing else."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {"__pycache__"} != files.keys():
        return False
    return all(sha256(folder / name) == sha256(source) for name, source in files.items())


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)


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
                graph_sha256=manifest.sha256[f"{stem}.onnx"],
                profile=ranges[stem],
                builder="tensorrt",
                version=device.version,
                capability=device.capability,
                device=device.name,
            )
        )
        for stem in manifest.graphs
    }
