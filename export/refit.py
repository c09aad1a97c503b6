"""A version that serves with other weights: its graphs are filled anew, nothing is traced.

All that does not come from its weights (tokenizer, its encoder, a reward model that ranks) goes along as
it is; an item level that ranks is made anew.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from export.bundle import write_version
from export.lower import Lowering
from export.ranker import check_ranker, write_ranker
from export.refit_gate import RefitGate
from export.skeleton import SKELETON, fill_skeletons
from serving.inputs import changes, named, summary
from serving.model.bundle import MANIFEST, read_manifest
from serving.model.manifest import AD_RANKER, Manifest
from serving.ranking.tables import FOLDER as RANKER
from serving.search.cold_start import SEEN_SIDS
from training.loop.checkpoint import Checkpoint
from training.preset.model import ModelConfig
from training.spec import ModelSpec

PRECISIONS = ("fp32", "fp16", "int8")  # FP8 has ranges to calibrate, which takes its minutes


class RefitError(RuntimeError):
    """Weights are not those of the model that serves, or its version cannot take others."""


def refit(
    checkpoint: Checkpoint,
    bundles: Path,
    *,
    base: int,
    gate: RefitGate | None = None,
    lowering: Lowering | None = None,
) -> Path:
    """Write the next version: version `base` with the weights of a checkpoint. It does not serve yet.

    Args:
        checkpoint: of the same architecture and tokenizer.
        bundles: folder of bundles.
        base: version that the graphs are taken from, and that the weights are compared with.
        gate: what the weights must keep of it; None for nothing.
        lowering: where the version has a precision below FP32, see `write_version`.

    Returns:
        Folder of the new version.

    Raises:
        RefitError: the checkpoint is of another model, or the version is of FP8.
        SkeletonError: the version brings no graphs to fill.
        NonFiniteError, ParityError, GateError, QuantizeError, BundleError, OSError: see `write_version`.
        In all cases everything is as it was.
    """
    folder = bundles / str(base)
    manifest = read_manifest(folder)
    require_same_model(checkpoint.spec, manifest)
    if manifest.precision not in PRECISIONS:
        raise RefitError(
            f"model version {base}: expected a precision of {', '.join(PRECISIONS)}, got "
            f"{manifest.precision}: make export"
        )

    by_item = manifest.ranker_kind == "item"

    def filled(work: Path, graphs: Path) -> dict[str, Any]:
        _copy_what_stays(folder, work, manifest, ranker=not by_item)
        fill_skeletons(work / SKELETON, checkpoint.model, graphs)
        figures = {}
        if gate is not None:
            value_table = checkpoint.spec.value_buckets.means
            figures = gate.run(folder, graphs, manifest=manifest, value_table=value_table)
        return {"refit": {"base": base} | figures, **_ranker(work)}

    def _ranker(work: Path) -> dict[str, Any]:
        if by_item:
            return {"ranker": write_ranker(checkpoint.model, work)}
        return {} if manifest.ranker is None else {"ranker": manifest.ranker.model_dump(mode="json")}

    def check(work: Path, made: Manifest) -> None:
        if by_item:
            check_ranker(checkpoint.model, work, made)

    return write_version(checkpoint, bundles, filled, lowering=lowering, check=check)


def require_same_model(spec: ModelSpec, manifest: Manifest) -> None:
    """Refuse a checkpoint whose weights do not go into the graphs of a version.

    Raises:
        RefitError: says what is different, expected and actual.
    """
    where = f"model version {manifest.version}"
    if spec.tokenizer_id != manifest.tokenizer_id:
        raise RefitError(
            f"{where}: expected weights of tokenizer {manifest.tokenizer_id}, got {spec.tokenizer_id}: make "
            "export index"
        )
    config = ModelConfig.model_validate(manifest.model)
    for section, expected, got in (
        ("model", config.model_dump(mode="json"), spec.model.model_dump(mode="json")),
        ("features", manifest.features.to_json(), spec.features.to_json()),
        ("spec", _shape_of(manifest), _shape_of(spec)),
    ):
        changed = changes(named(section, expected), named(section, got))
        if changed:
            raise RefitError(
                f"{where}: expected weights of the same architecture, got others (serves -> got): "
                f"{summary(changed)}: make export"
            )


def _shape_of(model: Manifest | ModelSpec) -> dict[str, Any]:
    means = model.value_means if isinstance(model, Manifest) else model.value_buckets.means
    columns = {name: list(categories) for name, categories in model.profile_columns.items()}
    return {
        "level_sizes": list(model.level_sizes),
        "value_buckets": len(means),
        "profile_columns": columns,
    }


def _copy_what_stays(folder: Path, work: Path, manifest: Manifest, *, ranker: bool) -> None:
    searched = {f"{stem}.onnx" for stem in manifest.graphs if stem != AD_RANKER}
    for name in manifest.sha256.keys() - searched - {SEEN_SIDS, MANIFEST}:
        if not ranker and name.startswith((f"{RANKER}/", f"{AD_RANKER}.")):
            continue
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, work / name)
