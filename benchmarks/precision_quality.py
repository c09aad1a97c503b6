"""What a lower precision changes in what the demo model finds, and which layers are sensitive to FP8.

Letters: B requests, n targets, T SID levels, V codes of a level.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from torch import nn
from tqdm import tqdm

from export.calibrate import calibrated_graphs
from export.gate import Gate, GateError, check
from export.gate_requests import GateRequests, held_out_requests
from export.graphs import export_graphs
from export.lower import Lowering, lower
from export.parity import check_parity
from serving.search.widths import WidthPlan
from training.loop.checkpoint import Checkpoint, load_checkpoint
from training.loop.retention import find_checkpoint, has_checkpoint, open_checkpoint
from training.model.fp8 import modelopt_quantization
from training.precision import Precision, PrecisionConfig
from training.preset import Preset
from training.recipes.fine_tune_fp8 import FOLDER, load_fine_tuned
from training.rollout.executor import TorchExecutor

CONFIG = "configs/demo.yaml"
PLAN = "128-256-512:64"
VARIANTS: dict[str, Precision] = {"int8": "int8", "fp16": "fp16", "fp8_ptq": "fp8", "fp8_qat": "fp8"}


def quality(run: Path, out: Path, *, quick: bool) -> dict[str, Any]:
    """Gate figures of every precision on validation requests, whether or not they pass.

    Args:
        run: demo run folder with a trained model, and one fine-tuned for FP8 for the row fp8_qat.
        out: folder to work in.
        quick: 100 requests instead of 400.
    """
    trained = find_checkpoint(run / "model")
    checkpoint = load_checkpoint(trained)
    preset = Preset.load(CONFIG)
    config, serving = preset.precision, preset.serving
    requests = _requests(run, checkpoint, "validation", 100 if quick else config.gate_requests)
    calibration = _requests(run, checkpoint, "train", 64 if quick else config.calibration_requests)
    plan = WidthPlan.parse(PLAN, levels=checkpoint.model.levels)
    gate = Gate(requests, config, plan, threads=serving.threads)
    fp32 = out / "demo_quality" / "fp32"
    fp32.mkdir(parents=True, exist_ok=True)
    export_graphs(checkpoint.model, fp32)
    check_parity(checkpoint.model, fp32)
    table = checkpoint.spec.value_buckets.means
    figures: dict[str, Any] = {}
    for name, precision in VARIANTS.items():
        model = None
        if name == "fp8_qat":
            if not has_checkpoint(run / FOLDER):
                figures[name] = None
                print(f"{run / FOLDER}: none, no row fp8_qat; run `make fine-tune-fp8`", file=sys.stderr)
                continue
            model = load_fine_tuned(run, trained)
        folder = fp32.parent / name
        folder.mkdir(exist_ok=True)
        lowering = Lowering(precision, gate, calibration if precision == "fp8" else None, model)
        lower(fp32, folder, lowering, model=checkpoint.model, value_table=table)
        ungated = replace(gate, config=_no_thresholds(config))
        found = ungated.run(fp32, folder, precision=precision, value_table=table)
        recall = found["recall50"]
        row = {
            "overlap10": found["overlap"]["10"],
            "overlap50": found["overlap"]["50"],
            f"overlap{found['beams']}": found["overlap"]["all"],
            "recall50_ratio": recall[precision] / recall["fp32"],
            "recall50": recall[precision],
            "recall50_fp32": recall["fp32"],
            "expected_value_error": found["expected_value"]["error"],
            "expected_value_ratio": found["expected_value"]["ratio"],
            "log_prob_error": found["log_prob_error"],
        }
        found["thresholds"] = config.model_dump(include=set(found["thresholds"]))
        row["passes_gate"] = _passes(found, precision)
        figures[name] = row
        print(name, {k: round(v, 4) for k, v in row.items() if isinstance(v, float)}, file=sys.stderr)
    return {
        "widths": PLAN,
        "requests": len(requests.slots),
        "requests_from": "validation",
        "figures": figures,
    }


def sensitivity(run: Path, out: Path, *, quick: bool) -> list[dict[str, Any]]:
    """KL to FP32 when only one layer is FP8, for every layer; the largest first.

    A layer is what has one name in the graphs; tails and prefix count together. sum_t KL(p_t || q_t), the
    mean over validation requests and their targets. Also draws `sensitivity.png`.
    """
    mtq = modelopt_quantization()
    checkpoint = open_checkpoint(run / "model")
    calibration = _requests(run, checkpoint, "train", 64)
    held_out = _requests(run, checkpoint, "validation", 16 if quick else 48)
    graphs = calibrated_graphs(
        checkpoint.model,
        calibration,
        plan=WidthPlan.parse(PLAN, levels=checkpoint.model.levels),
        value_table=checkpoint.spec.value_buckets.means,
        batch_size=16,
    )
    sids = _targets(held_out, count=8)
    mtq.disable_quantizer(graphs, "*")
    wanted = _log_probs(graphs, held_out, sids)
    weights = {
        name: module.weight.numel()
        for name, module in graphs.named_modules()
        if isinstance(module, nn.Linear) and getattr(module, "input_quantizer", None) is not None
        if module.input_quantizer.amax is not None
    }
    layers: dict[str, list[str]] = {}
    for name in weights:
        layers.setdefault(name.partition(".")[2], []).append(name)
    rows = []
    groups = [*layers.items(), ("all", list(weights))]
    for layer, names in tqdm(groups, desc="sensitivity", unit="layer", file=sys.stderr, mininterval=2.0):
        for name in names:
            mtq.enable_quantizer(graphs, f"{name}.*_quantizer")
        got = _log_probs(graphs, held_out, sids)
        mtq.disable_quantizer(graphs, "*")
        kl = sum(float((np.exp(p) * (p - q)).sum(-1).mean()) for p, q in zip(wanted, got, strict=True))
        rows.append({"layer": layer, "kl": kl, "weights": sum(weights[n] for n in names)})
    rows.sort(key=lambda r: -r["kl"])
    _plot(rows, out / "sensitivity.png")
    return rows


def _requests(run: Path, checkpoint: Checkpoint, part: Any, count: int) -> GateRequests:
    return held_out_requests(run, checkpoint.spec, preset=Preset.load(CONFIG), count=count, seed=0, part=part)


def _targets(requests: GateRequests, *, count: int) -> np.ndarray:
    """SIDs int32 [B, n, T] of targets of each request, repeated where there are fewer than n."""
    assert requests.targets is not None
    ads = np.stack([np.resize(t, count) for t in requests.targets])  # [B, n]
    sids, _ = requests.snapshot.sids_of(ads.ravel())
    return sids.reshape(*ads.shape, -1).astype(np.int32)


def _log_probs(graphs: nn.ModuleDict, requests: GateRequests, sids: np.ndarray) -> list[np.ndarray]:
    """Log-probabilities of all codes at every level, given the codes of `sids` before it."""
    executor = TorchExecutor(graphs)
    batch, n, levels = sids.shape
    logprob, carry = executor.prefix(requests.slots, requests.profile)
    found, same = [logprob], np.ascontiguousarray(np.broadcast_to(np.arange(n, dtype=np.int32), (batch, n)))
    for level in range(2, levels + 2):
        tail = graphs[f"tail_{level}"]
        codes = np.arange(tail.head.weight.shape[0], dtype=np.int32)
        logprob, carry = executor.tail(
            level,
            carry,
            parents=[same] * (level - 2),
            token=np.ascontiguousarray(sids[:, :, level - 2]),
            allowed=np.ascontiguousarray(np.broadcast_to(codes, (batch, n, len(codes)))),
        )
        found.append(logprob)
    return found


def _no_thresholds(config: PrecisionConfig) -> PrecisionConfig:
    return config.model_copy(
        update={"min_overlap50": 0.0, "max_recall50_loss": np.inf, "max_value_error": np.inf}
    )


def _passes(figures: dict[str, Any], precision: Precision) -> bool:
    try:
        check(figures, precision=precision)
    except GateError:
        return False
    return True


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [r for r in rows if r["layer"] != "all"][:30][::-1]
    figure, axes = pyplot.subplots(figsize=(7, 0.22 * len(shown) + 1.2))
    axes.barh([r["layer"] for r in shown], [r["kl"] for r in shown], color="#4477aa")
    axes.set_xlabel("KL to FP32 with this layer alone in FP8")
    axes.set_xscale("log")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
