"""What INT8 costs in quality on a trained model: the figures that the export's gate takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from export.gate import Gate
from export.gate_requests import held_out_requests
from export.graphs import export_graphs
from export.int8 import quantize_int8
from serving.search.widths import WidthPlan
from training.loop.checkpoint import load_checkpoint, weights_sha256
from training.loop.retention import find_checkpoint, has_checkpoint
from training.preset.preset import Preset


def int8_quality(run: Path, cache: Path, *, config: str) -> dict[str, Any] | None:
    """Gate figures of INT8 against FP32 for the model in `run`; None without a trained model.

    Measured once a checkpoint; kept in `cache`.
    """
    if not has_checkpoint(run / "model"):
        return None
    checkpoint = find_checkpoint(run / "model")
    stamp = {"weights": weights_sha256(checkpoint)}
    kept = cache / "quality.json"
    if kept.is_file() and (found := json.loads(kept.read_text()))["of"] == stamp:
        return found["figures"]
    torch.set_num_threads(1)
    loaded = load_checkpoint(checkpoint)
    for name in ("fp32", "int8"):
        (cache / name).mkdir(parents=True, exist_ok=True)
    export_graphs(loaded.model, cache / "fp32")
    quantize_int8(cache / "fp32", cache / "int8")
    preset = Preset.load(config)
    precision = preset.precision
    gate = Gate(
        held_out_requests(
            run, loaded.spec, preset=preset, count=precision.gate_requests, seed=precision.seed
        ),
        precision,
        WidthPlan.parse(preset.serving.widths, levels=len(loaded.spec.level_sizes)),
    )
    figures = gate.run(
        cache / "fp32",
        cache / "int8",
        precision="int8",
        value_table=loaded.spec.value_buckets.means,
    )
    kept.write_text(json.dumps({"of": stamp, "figures": figures}))
    return figures
