"""Which versions a model repository holds: the newest, the one to serve, and all that may be in use.

A server stays at an older version as long as it cannot use the one that CURRENT names. Which one that is, the
publisher is not told. But it is the newest usable one of those that CURRENT has named, so everything back to
that one is kept.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Literal, get_args

import onnx

from export.pbtxt import RenderError
from export.ranker_graph import TREES
from serving.index.layout import ready_generations
from serving.model.bundle import BundleError, read_manifest, versions
from serving.model.current import CURRENT, current_version, named_versions
from serving.model.manifest import AD_RANKER, Manifest

logger = logging.getLogger(__name__)

Target = Literal["cpu", "onnxruntime", "tensorrt"]
TARGETS = get_args(Target)
KEPT_VERSIONS = 2  # the one that serves and the one before, to roll back to

_PRECISIONS = {
    "cpu": ("fp32", "int8"),
    "onnxruntime": ("fp32", "fp16", "int8", "fp8"),
    "tensorrt": ("fp32", "fp16", "fp8"),
}


def kept_bundles(bundles: Path, target: Target, *, index: Path, serving: int | None = None) -> list[Manifest]:
    """Bundles that get into a repository, oldest first.

    They are the last `KEPT_VERSIONS`, the one to serve, and those that may be in use. All versions of a graph
    share one config, so those whose tensors or features differ from the serving one's (FP16 keys and values
    beside FP32 ones), or whose precision the target does not run, or that are damaged or another release's,
    are left out with a line in the log; going back to them takes a repository of their own.

    Args:
        bundles: folder of bundles.
        target: engine of the graphs.
        index: folder of the index, which says of which tokenizers a version can be in use.
        serving: version that serves; None for the one CURRENT names.

    Raises:
        RenderError: there is none, or the target does not run the precision or the ranker of the one that
            serves.
        BundleError: the bundle of the one that serves is corrupted.
        IndexStoreError: there is an index, but it does not say which tokenizers it holds.
    """
    newest = versions(bundles)[-KEPT_VERSIONS:]
    if not newest:
        raise RenderError(f"{bundles}: expected at least one bundle, found none; run `make train export`")
    if serving is None:  # after a rollback it may be an older one
        serving = current_version(bundles) if (bundles / CURRENT).exists() else newest[-1]
    reference = read_manifest(bundles / str(serving))
    check_precision(reference.precision, target, where=f"{bundles / str(serving)}: ")
    check_ranker(_has_trees(bundles, reference), target, where=f"{bundles / str(serving)}: ")
    fitting = functools.cache(functools.partial(_fitting, bundles, reference=reference, target=target))
    kept = {*newest, serving}
    ready = ready_generations(index)
    for version in named_versions(bundles) if ready else ():
        kept.add(version)
        manifest = fitting(version)
        if manifest is not None and manifest.tokenizer_id in ready:
            break
    return [manifest for version in sorted(kept) if (manifest := fitting(version)) is not None]


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


def check_ranker(trees: bool, target: Target, *, where: str) -> None:
    """Refuse a ranking stage that the engine of a target does not run: TensorRT has no trees.

    Raises:
        RenderError: says what to do instead.
    """
    if trees and target == "tensorrt":
        raise RenderError(
            f"{where}expected a ranker that target tensorrt runs (reward.model: neural), got one of trees; "
            "set it, then make reward export, or use target onnxruntime"
        )


def _has_trees(bundles: Path, manifest: Manifest) -> bool:
    if manifest.ranker is None:
        return False
    graph = onnx.load(str(bundles / str(manifest.version) / f"{AD_RANKER}.onnx"), load_external_data=False)
    return any(opset.domain == TREES for opset in graph.opset_import)


def _fitting(bundles: Path, version: int, *, reference: Manifest, target: Target) -> Manifest | None:
    """A version that can lie beside the one that serves, None for another."""
    try:
        manifest = read_manifest(bundles / str(version))
    except BundleError as error:
        logger.warning("model version %d is left out: %s", version, error)
        return None
    if manifest.precision not in _PRECISIONS[target] or manifest.graphs != reference.graphs:
        logger.warning(
            "model version %d (%s) is left out: its tensors are not those of version %d (%s)",
            *(version, manifest.precision, reference.version, reference.precision),
        )
        return None
    if target == "tensorrt" and _has_trees(bundles, manifest):
        logger.warning("model version %d is left out: its ranker is of trees", version)
        return None
    if manifest.features != reference.features:
        logger.warning(
            "model version %d is left out: its features are not those of version %d",
            *(version, reference.version),
        )
        return None
    return manifest
