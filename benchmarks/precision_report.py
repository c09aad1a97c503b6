"""Precisions of the graphs, proven without a GPU: `python -m benchmarks.precision_report`.

Two parts. Compiled: every graph of the presets in FP32, FP16 and FP8 through TensorRT-RTX for several compute
capabilities. Compared: beams, recall and expected values of the trained demo model in INT8, FP16 and FP8
(after calibration, and after fine-tuning) with those in FP32, and how sensitive each layer is. Writes
build/precision/report.json and sensitivity.png. No speed is measured: no GPU runs anything here.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import torch

from benchmarks.precision_quality import quality, sensitivity
from benchmarks.report import stamp
from export.bundle import graph_shapes
from export.calibrate import calibrate
from export.fp8 import quantize_fp8
from export.gate_requests import random_requests
from export.graphs import export_graphs
from export.half import convert_to_fp16
from export.parity import check_parity
from export.products import fp8_share, product_bytes, weight_bytes
from export.profiles import graph_profiles
from export.seeded import seeded_checkpoint
from export.tensorrt import Builder, BuildError
from serving.backend.settings import ServingConfig
from serving.search.widths import WidthPlan
from training.loop.checkpoint import Checkpoint
from training.loop.retention import has_checkpoint, open_checkpoint
from training.preset import Preset

PRESETS = ("demo", "bench", "gr4ad-160m")
PRECISIONS = ("fp32", "fp16", "fp8")
CAPABILITIES = ("8.9", "9.0", "12.0")  # L4, L20, L40; H100; RTX 50
QUICK_PRESETS = ("demo", "bench")


def compile_preset(
    name: str, run: Path, out: Path, *, capabilities: tuple[str, ...], requests: int
) -> list[dict[str, Any]]:
    """Rows of one preset: a graph, a precision and a capability each.

    The demo's checkpoint is used where there is one, seeded weights where there is none.
    """
    preset = Preset.load(f"configs/{name}.yaml")
    trained = has_checkpoint(run / "model")
    checkpoint = open_checkpoint(run / "model") if trained else seeded_checkpoint(preset)
    serving = preset.serving
    folders = _graphs(checkpoint, out / name, serving=serving, requests=requests)
    rows = []
    fp32 = {p.stem: onnx.load(str(p)).graph for p in sorted(folders["fp32"].glob("*.onnx"))}
    for precision, folder in folders.items():
        graphs = {p.stem: p for p in sorted(folder.glob("*.onnx"))}
        ranges = graph_profiles(
            graph_shapes(folder),
            level_sizes=checkpoint.spec.level_sizes,
            value_buckets=len(checkpoint.spec.value_buckets.means),
            config=serving,
        )
        loaded = {stem: onnx.load(str(path)).graph for stem, path in graphs.items()}
        for capability in capabilities:
            for stem, path in graphs.items():
                row = {
                    "preset": name,
                    "weights": "trained" if trained else "seeded",
                    "graph": stem,
                    "precision": precision,
                    "capability": capability,
                    "onnx_bytes": path.stat().st_size,
                    "fp8_weight_share": fp8_share(loaded[stem]),
                    "product_bytes": product_bytes(loaded[stem]),
                    "product_bytes_ratio": product_bytes(loaded[stem]) / product_bytes(fp32[stem]),
                    "weight_bytes": weight_bytes(loaded[stem]),
                    "weight_bytes_ratio": weight_bytes(loaded[stem]) / weight_bytes(fp32[stem]),
                }
                try:
                    builder = Builder("tensorrt-rtx", capability=capability)
                    began = time.monotonic()
                    plan, _, made = builder.build(path, ranges[stem])
                    seconds = round(time.monotonic() - began, 2)
                    row |= {"compiled": True, "seconds": seconds, "plan_bytes": len(plan)}
                    row |= {k: made[k] for k in ("products", "fp8_products")}
                    row["builder"] = f"tensorrt-rtx {builder.version}"
                except BuildError as error:
                    row |= {"compiled": False, "reason": str(error)}
                rows.append(row)
                _say(f"{name} {stem} {precision} {capability}: {'compiled' if row['compiled'] else 'NOT'}")
    for row in rows:
        same = [r for r in rows if (r["graph"], r["capability"]) == (row["graph"], row["capability"])]
        base = next((r for r in same if r["precision"] == "fp32" and r["compiled"]), None)
        row["plan_bytes_ratio"] = row["plan_bytes"] / base["plan_bytes"] if base and row["compiled"] else None
    return rows


def _graphs(checkpoint: Checkpoint, out: Path, *, serving: ServingConfig, requests: int) -> dict[str, Path]:
    """Graphs of a model in every precision; FP8 ranges are of random requests."""
    folders = {precision: out / precision for precision in PRECISIONS}
    shutil.rmtree(out, ignore_errors=True)
    for folder in folders.values():
        folder.mkdir(parents=True)
    export_graphs(checkpoint.model, folders["fp32"])
    error = check_parity(checkpoint.model, folders["fp32"])
    _say(f"{out.name}: FP32 graphs, parity within {error:.1e}")
    convert_to_fp16(folders["fp32"], folders["fp16"])
    ranges = calibrate(
        checkpoint.model,
        random_requests(checkpoint, count=requests, seed=1),
        plan=WidthPlan.parse(serving.widths, levels=checkpoint.model.levels),
        value_table=checkpoint.spec.value_buckets.means,
        batch_size=max(requests // 4, 1),
    )
    quantize_fp8(folders["fp32"], folders["fp8"], ranges)
    convert_to_fp16(folders["fp8"], folders["fp8"])
    return folders


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a preset, precision and capability, its graphs together."""
    found = []
    for key in dict.fromkeys((r["preset"], r["precision"], r["capability"]) for r in rows):
        part = [r for r in rows if (r["preset"], r["precision"], r["capability"]) == key]
        base = [r for r in rows if (r["preset"], r["precision"], r["capability"]) == (key[0], "fp32", key[2])]
        whole = all(r["compiled"] for r in part)
        total = {n: sum(r[n] for r in part) for n in ("product_bytes", "weight_bytes", "onnx_bytes")}
        found.append(
            {
                "preset": key[0],
                "precision": key[1],
                "capability": key[2],
                "weights": part[0]["weights"],
                "compiled": whole,
                "graphs": len(part),
                "seconds": round(sum(r["seconds"] for r in part), 1) if whole else None,
                "plan_bytes": sum(r["plan_bytes"] for r in part) if whole else None,
                "plan_bytes_ratio": (
                    sum(r["plan_bytes"] for r in part) / sum(r["plan_bytes"] for r in base)
                    if whole and all(r["compiled"] for r in base)
                    else None
                ),
                "fp8_weight_share": min(r["fp8_weight_share"] for r in part),
                "product_bytes_ratio": total["product_bytes"] / sum(r["product_bytes"] for r in base),
                "weight_bytes_ratio": total["weight_bytes"] / sum(r["weight_bytes"] for r in base),
                "products": sum(r["products"] for r in part) if whole else None,
                "fp8_products": sum(r["fp8_products"] for r in part) if whole else None,
                "reason": next((r["reason"] for r in part if not r["compiled"]), None),
            }
        )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Summary as Markdown."""
    lines = [
        "| preset | precision | compute capability | compiled | seconds | plans, MB | FP8 share of product "
        "weights | product weights : FP32 | all weights : FP32 | plans : FP32 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        done = r["compiled"]
        ratio = f"{r['plan_bytes_ratio']:.2f}" if r["plan_bytes_ratio"] else ""
        size = f"{r['plan_bytes'] / 1e6:.1f}" if done else ""
        lines.append(
            f"| {r['preset']} | {r['precision']} | {r['capability']} | {'yes' if done else 'no'} | "
            f"{r['seconds'] if done else ''} | {size} | "
            f"{r['fp8_weight_share']:.2f} | {r['product_bytes_ratio']:.3f} | {r['weight_bytes_ratio']:.3f} | "
            f"{ratio} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/precision"))
    parser.add_argument("--demo", type=Path, default=Path("build/demo"), help="run folder of the demo")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, help="to compile (default: all)")
    parser.add_argument("--capabilities", nargs="+", default=list(CAPABILITIES), metavar="8.9")
    parser.add_argument("--quick", action="store_true", help="without gr4ad-160m, fewer requests")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {**stamp(), "command": "python -m benchmarks.precision_report"}
    rows: list[dict[str, Any]] = []
    peaks: dict[str, float] = {}
    for preset in arguments.presets or (QUICK_PRESETS if arguments.quick else PRESETS):
        run = arguments.demo if preset == "demo" else arguments.out / "none"
        rows += compile_preset(
            preset,
            run,
            arguments.out,
            capabilities=tuple(arguments.capabilities),
            requests=4 if preset == "gr4ad-160m" else 32,
        )
        # Of this process so far: the presets come in order of size.
        peaks[preset] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    report["peak_memory_gb"] = peaks
    report["compiled"] = summarise(rows)
    report["graphs"] = rows
    print(table(report["compiled"]))
    if has_checkpoint(arguments.demo / "model"):
        report["demo"] = quality(arguments.demo, arguments.out, quick=arguments.quick)
        report["sensitivity"] = sensitivity(arguments.demo, arguments.out, quick=arguments.quick)
        print(json.dumps(report["demo"]["figures"], indent=1))
    else:
        report["demo"] = None
        _say(f"{arguments.demo}: no trained demo model, beams are not compared; run `make demo`")
    report["seconds"] = round(time.monotonic() - began, 1)
    path = arguments.out / "report.json"
    path.write_text(json.dumps(report, indent=1))
    print(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
