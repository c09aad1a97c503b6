"""Write a model bundle: graphs, tokenizer and its encoder, manifest last; then point CURRENT at it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from export.encoder import write_encoder
from export.graphs import export_graphs
from export.lower import Lowering, lower
from export.parity import check_parity
from export.ranker import RankedBy, check_ranker, write_ranker
from export.skeleton import SKELETON, write_skeletons
from indexer.encode.settings import FOLDER as ENCODER
from serving.files import locked, new_folder, sha256
from serving.inputs import RECORD
from serving.model.bundle import MANIFEST, read_manifest, versions
from serving.model.current import point_current
from serving.model.manifest import FORMAT_VERSION, Manifest
from serving.search.cold_start import SEEN_SIDS
from training.loop.checkpoint import Checkpoint, require_finite
from training.preset.precision import Precision
from training.tokenizer import kinds

Fill = Callable[[Path, Path], dict[str, Any]]
"""Writes FP32 graphs of a model into the second folder, and into the first, that of the bundle, what does not
depend on their precision; returns what the manifest says of it."""


def write_bundle(
    checkpoint: Checkpoint,
    bundles: Path,
    *,
    tokenizer: Path | None,
    quality: dict[str, Any] | None = None,
    activate: bool = True,
    lowering: Lowering | None = None,
    ranker: RankedBy | None = None,
) -> Path:
    """Export, check parity, lower the precision, check quality, describe, publish as the next version.

    Args:
        checkpoint: trained model.
        bundles: folder of bundles.
        tokenizer: saved tokenizer; the bundle gets it and, for the indexer's new ads, its text encoder. None
            for a model without real SIDs.
        quality: figures to carry in the manifest.
        activate: point CURRENT at it.
        lowering: see `write_version`.
        ranker: what becomes the bundle's ranking stage, a reward model or a generator with an item level;
            None for a bundle without one.

    Returns:
        Folder of the new version.

    Raises:
        ParityError: the encoder does not compute what the tokenizer or the ranking stage what it was made
            from; nothing is published. See `write_version` for the graphs, and for all others.
        ValueError: the tokenizer is not the one that the model was trained with, or has no ONNX form.
    """

    def exported(work: Path, graphs: Path) -> dict[str, Any]:
        export_graphs(checkpoint.model, graphs)
        write_skeletons(graphs, work / SKELETON)
        if tokenizer is not None:
            loaded = kinds.load(tokenizer)
            found, wanted = loaded.tokenizer_id, checkpoint.spec.tokenizer_id
            if found != wanted:
                raise ValueError(
                    f"{tokenizer}: expected tokenizer {wanted} (the model's), got {found}; train again"
                )
            shutil.copytree(
                tokenizer, work / "tokenizer", ignore=shutil.ignore_patterns("*.parquet", RECORD, ".*")
            )
            # A folder of its own: graphs at the top are Triton's.
            write_encoder(loaded, work / ENCODER)
        return {} if ranker is None else {"ranker": write_ranker(ranker, work)}

    def check(work: Path, manifest: Manifest) -> None:
        if ranker is not None:
            check_ranker(ranker, work, manifest)

    target = write_version(checkpoint, bundles, exported, quality=quality, lowering=lowering, check=check)
    if activate:
        point_current(bundles, int(target.name))
    return target


def write_version(
    checkpoint: Checkpoint,
    bundles: Path,
    fill: Fill,
    *,
    quality: dict[str, Any] | None = None,
    lowering: Lowering | None = None,
    check: Callable[[Path, Manifest], None] = lambda work, manifest: None,
) -> Path:
    """Write the next version; it does not serve yet.

    Nothing carries a version number before it is whole: the work is done in a folder beside and renamed.

    Args:
        checkpoint: trained model.
        bundles: folder of bundles; one version at a time is written there.
        fill: see `Fill`.
        quality: figures to carry in the manifest.
        lowering: precision of the graphs and what it must pass; None for FP32. A bundle holds one precision,
            but for the ranking stage, which is FP32 always.
        check: looks at the bundle before it is one, and raises where it must not be.

    Returns:
        Folder of the version.

    Raises:
        NonFiniteError: a weight is infinite or not a number; nothing is published.
        ParityError: the graphs do not compute what the model computes; nothing is published.
        GateError: the lower precision does not find what FP32 finds; nothing is published.
        CalibrationError, QuantizeError: FP8 or INT8 cannot be made; nothing is published.
        BundleError: the manifest does not hold together; nothing is published.
        OSError: the disk is full or not writable; everything is as it was.
    """
    require_finite(checkpoint.model.state_dict(), step=checkpoint.step)
    precision: Precision = lowering.precision if lowering else "fp32"
    began = time.monotonic()
    bundles.mkdir(parents=True, exist_ok=True)
    with locked(bundles):
        version = max(versions(bundles), default=0) + 1
        target = bundles / str(version)
        with new_folder(target, replace=True) as work:  # without a manifest it is a leftover, not a bundle
            graphs = work / "fp32" if lowering else work
            graphs.mkdir(exist_ok=True)
            described = fill(work, graphs)
            error = check_parity(checkpoint.model, graphs)
            if checkpoint.seen_sids is not None:
                np.save(work / SEEN_SIDS, checkpoint.seen_sids, allow_pickle=False)
            figures = None
            if lowering:
                value_table = checkpoint.spec.value_buckets.means
                lower(graphs, work, lowering, model=checkpoint.model, value_table=value_table)
                figures = lowering.gate.run(graphs, work, precision=precision, value_table=value_table)
                figures["fine_tuned"] = lowering.fine_tuned is not None
                shutil.rmtree(graphs)
            spec = checkpoint.spec.to_json()
            files = sorted(p for p in work.rglob("*") if p.is_file())
            manifest = {
                "format_version": FORMAT_VERSION,
                "model_version": version,
                "tokenizer_id": spec.pop("tokenizer_id"),
                **spec,
                **described,
                "precision": precision,
                "step": checkpoint.step,
                "parity_max_error": error,  # of the FP32 graphs, whatever they become
                "quality_precision": figures,
                "config_hash": hashlib.sha256(
                    json.dumps([spec, checkpoint.settings], sort_keys=True).encode()
                ).hexdigest()[:16],
                "git_commit": _git_commit(),
                "quality": quality or {},
                "graphs": graph_shapes(work),
                "export_seconds": round(time.monotonic() - began, 1),
                "sha256": {str(p.relative_to(work)): sha256(p) for p in files},
            }
            (work / MANIFEST).write_text(json.dumps(manifest, indent=1))
            check(work, read_manifest(work))  # whoever serves it reads it like this
    return target


def graph_shapes(folder: Path) -> dict[str, dict[str, list]]:
    """Inputs and outputs of every graph: name -> [dtype, dims]; a string is a dynamic dimension."""
    import onnx

    shapes = {}
    for path in sorted(folder.glob("*.onnx")):
        graph = onnx.load(str(path), load_external_data=False).graph
        shapes[path.stem] = {
            side: [
                [
                    i.name,
                    onnx.TensorProto.DataType.Name(i.type.tensor_type.elem_type),
                    [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim],
                ]
                for i in values
            ]
            for side, values in (("inputs", graph.input), ("outputs", graph.output))
        }
    return shapes


def _git_commit() -> str:
    root = Path(__file__).parent
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
