"""A manifest that holds together, of a model whose graphs nobody has."""

from __future__ import annotations

from typing import Any

from serving.model.features import FeatureSpec
from serving.model.manifest import FORMAT_VERSION


def manifest(
    version: int, tokenizer_id: str, *, features: FeatureSpec, level_sizes: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Content of manifest.json; every level has ten codes unless `level_sizes` says otherwise."""
    stems = ["prefix", *(f"tail_{level}" for level in range(2, features.levels + 2))]
    return {
        "format_version": FORMAT_VERSION,
        "model_version": version,
        "tokenizer_id": tokenizer_id,
        "level_sizes": level_sizes or [10] * features.levels,
        "features": features.to_json(),
        "value_means": [1.0],
        "value_edges": [],
        "profile_columns": {
            f"p{i}": [str(j) for j in range(1, size)] for i, size in enumerate(features.profile_sizes)
        },
        "precision": "fp32",
        "graphs": {stem: {"inputs": [], "outputs": []} for stem in stems},
        "sha256": {f"{stem}.onnx": "0" * 64 for stem in stems},
        "model": {},
        "step": 1,
        "parity_max_error": 0.0,
        "quality": {},
        "quality_precision": None,
        "config_hash": "",
        "git_commit": "",
        "export_seconds": 0.0,
    }
