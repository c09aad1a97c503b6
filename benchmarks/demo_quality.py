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
from serving.backend.settings import ServingConfig
from serving.search.widths import WidthPlan
from training.checkpoint import load_checkpoint
from training.config import load_section
from training.precision import PrecisionConfig


def int8_quality(run: Path, cache: Path, *, config: str) -> dict[str, Any] | None:
    """Gate figures of INT8 against FP32 for the model in `run`; None without a trained model.

    Measured once a checkpoint; kept in `cache`.
    """
    checkpoint = run / "model" / "checkpoint"
    if not checkpoint.exists():
        return None
    stamp = {"checkpoint": max(p.stat().st_mtime for p in [checkpoint, *checkpoint.glob("*")])}
    kept = cache / "quality.json"
    if kept.is_file() and (found := json.loads(kept.read_text()))["of"] == stamp:
        return found["figures"]
    torch.set_num_threads(1)
    loaded = load_checkpoint(checkpoint)
    for name in ("fp32", "int8"):
        (cache / name).mkdir(parents=True, exist_ok=True)
    export_graphs(loaded.model, cache / "fp32")
    quantize_int8(cache / "fp32", cache / "int8")
    precision = load_section(config, "precision", PrecisionConfig)
    serving = load_section(config, "serving", ServingConfig)
    gate = Gate(
        held_out_requests(
            run, loaded.spec, preset=config, count=precision.gate_requests, seed=precision.seed
        ),
        precision,
        WidthPlan.parse(serving.widths, levels=len(loaded.spec.level_sizes)),
    )
    figures = gate.run(
        cache / "fp32",
        cache / "int8",
        precision="int8",
        value_table=loaded.spec.value_buckets.means,
    )
    kept.write_text(json.dumps({"of": stamp, "figures": figures}))
    return figures
