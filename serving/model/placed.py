"""Graphs as they lie in a model repository, which Triton loads: copies, or engines built from them."""

from __future__ import annotations

from pathlib import Path

from serving.files import read_object
from serving.model.bundle import BundleError
from serving.model.manifest import Manifest

GRAPH, PLAN = "model.onnx", "model.plan"  # names that Triton's backends look for
DESCRIPTION = "engine.json"  # beside a plan: what it was built from, as its builder recorded it


def graph_folder(repository: Path, stem: str, version: int) -> Path:
    """Where one version of a graph lies."""
    return repository / f"lazyar_{stem}" / str(version)


def placed_files(repository: Path, manifest: Manifest) -> dict[Path, str]:
    """Graph files of a version and the sha256 that each must have.

    Raises:
        BundleError: an engine is of another graph, or nothing says of which.
    """
    found = {}
    for stem in manifest.graphs:
        folder, digest = graph_folder(repository, stem, manifest.version), manifest.sha256[f"{stem}.onnx"]
        if (folder / PLAN).exists():
            found[folder / PLAN] = _plan_digest(folder / DESCRIPTION, graph=digest)
        else:
            found[folder / GRAPH] = digest
    return found


def _plan_digest(path: Path, *, graph: str) -> str:
    try:
        content = read_object(path)
        built_from, digest = content["graph_sha256"], content["plan_sha256"]
    except (OSError, KeyError, ValueError) as error:
        raise BundleError(f"{path}: expected the description of the engine beside it: {error!r}") from error
    if built_from != graph or not isinstance(digest, str):
        got = str(built_from)[:16]
        raise BundleError(f"{path}: expected the engine of graph {graph[:16]}…, got one of {got}…")
    return digest
