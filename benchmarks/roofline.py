"""Operations and bytes of a request against the data sheet of an NVIDIA L20. Paper, not measurement.

    python -m benchmarks.roofline --config configs/gr4ad-160m.yaml --json build/roofline.json

Letters: B requests, n beams, S context slots, T SID levels, V codes, d width, K shared layers.

Counted: matrix products, attention, heads. Not counted: look-ups, norms, softmax, GELU, top-k, the host, the
network. Attention is taken to be fused: its scores are never written.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from export.seeded import PROFILE_SIZES
from serving.model.features import FeatureSpec
from serving.search.widths import WidthPlan
from training.preset.model import ModelConfig
from training.preset.preset import Preset, add_preset_arguments

LABEL = "paper, not measurement"
WIDTHS = ("128-256-512:64", "512-512-512:64")
BATCHES = (1, 4, 16, 64)


# NVIDIA L20, data sheet: dense FLOP/s with FP16 and with FP8 operands, bytes/s of its memory.
L20 = {"fp16": 119.5e12, "fp8": 239e12, "memory": 864e9}


@dataclass(frozen=True)
class Case:
    """What a request's cost depends on.

    Attributes:
        model: sizes.
        spec: context.
        level_sizes: V_1 .. V_T.
        value_buckets: V of the value level.
        plan: widths; every level is taken to fill its width.
    """

    model: ModelConfig
    spec: FeatureSpec
    level_sizes: tuple[int, ...]
    value_buckets: int
    plan: WidthPlan

    @property
    def slots(self) -> int:
        """S: one user slot, one a profile column, the history."""
        return 1 + len(self.spec.profile_sizes) + self.spec.slots

    @property
    def context_groups(self) -> int:
        """Projections of the context to keys and values."""
        return 1 if self.model.share_context_kv else self.model.layers

    @property
    def graphs(self) -> dict[str, tuple[int, int]]:
        """Rows that go through the tail layers, and codes of the head, of each graph in order."""
        rows = (1, *self.plan.sid[:-1], min(self.plan.value, self.plan.sid[-1]))
        sizes = (*self.level_sizes, self.value_buckets)
        names = ("prefix", *(f"tail_{level}" for level in range(2, len(sizes) + 1)))
        return {name: (n, size) for name, n, size in zip(names, rows, sizes, strict=True)}


def request_flops(case: Case) -> dict[str, float]:
    """FLOP of one request (a multiply and an add are two), by part; the parts add up to the request.

    Every level is taken to fill its width.

    Returns:
        "<graph>.<part>": graphs prefix, tail_2 .. tail_{T + 1}; parts linear (projections, feed-forward,
        the half of Fuse that no look-up holds), cross_attention, self_attention, head.
    """
    model, d, levels = case.model, case.model.width, len(case.level_sizes) + 1
    shared, tail = model.shared_layers, model.layers - model.shared_layers
    layer = 2 * _layer_weights(model)
    flops: dict[str, float] = {}
    for position, (name, (n, size)) in enumerate(case.graphs.items()):
        flops[f"{name}.linear"] = n * (2 * d * d + tail * layer)
        flops[f"{name}.cross_attention"] = n * tail * 4 * case.slots * d
        flops[f"{name}.self_attention"] = n * tail * 4 * (position + 1) * d
        flops[f"{name}.head"] = n * 2 * d * size
    flops["prefix.linear"] += shared * levels * layer + case.context_groups * 4 * case.slots * d * d
    flops["prefix.cross_attention"] += shared * levels * 4 * case.slots * d
    flops["prefix.self_attention"] += shared * 4 * levels * levels * d
    return flops


def batch_bytes(case: Case, *, batch: int, weight_bytes: int) -> dict[str, float]:
    """Estimate of the bytes that B requests move, by "<graph>.<weights | kv | activations>".

    Weights are read once a batch and graph, activations and keys and values are FP16. A layer's inputs,
    outputs and residuals go through memory once each; with a shared context projection every layer still
    reads the keys and values anew.
    """
    model, d, s = case.model, case.model.width, case.slots
    levels, shared = len(case.level_sizes) + 1, case.model.shared_layers
    tail = model.layers - shared
    row = (21 + 2 * model.ffn_multiple) * d  # elements a row and layer: 2 a matmul's side, 3 residuals
    moved: dict[str, float] = {}
    for position, (name, (n, size)) in enumerate(case.graphs.items()):
        weights = tail * _layer_weights(model) + d * d + size * d
        kv = tail * 2 * s * d + 2 * n * tail * 2 * d  # context read; this level written and read
        # Level 1 has one row; the levels between are copied to their beams (read, write) and read.
        kv += tail * 2 * d * (position > 0) + 3 * n * tail * 2 * d * max(position - 1, 0)
        activations = n * (tail * row + 2 * size + 8 * d)
        if name == "prefix":
            weights += shared * _layer_weights(model) + case.context_groups * 2 * d * d
            kv += (case.context_groups + shared) * 2 * s * d
            activations += shared * levels * row + s * d * (len(case.level_sizes) + 6)
        moved[f"{name}.weights"] = weights * weight_bytes
        moved[f"{name}.kv"] = kv * 2 * batch
        moved[f"{name}.activations"] = activations * 2 * batch
    return moved


def estimate(case: Case, *, batch: int, fp8: bool, share: float, limit_s: float) -> dict[str, float | None]:
    """Least time of a batch by the data sheet, and what follows if a share of it is reached.

    Graphs run one after the other, each bound by computing or by memory. With FP8 the linear parts and heads
    have FP8 operands; attention stays FP16. QPS is that of batches back to back; a request waits for at most
    one batch before its own, so two batches must fit the limit; None where they do not.
    """
    flops = request_flops(case)
    moved = batch_bytes(case, batch=batch, weight_bytes=1 if fp8 else 2)
    compute, memory = dict.fromkeys(case.graphs, 0.0), dict.fromkeys(case.graphs, 0.0)
    for part, count in flops.items():
        graph, _, kind = part.partition(".")
        compute[graph] += batch * count / L20["fp8" if fp8 and not kind.endswith("attention") else "fp16"]
    for part, count in moved.items():
        memory[part.partition(".")[0]] += count / L20["memory"]
    bound = sum(max(compute[g], memory[g]) for g in case.graphs)
    reached = bound / share
    return {
        "gbytes": sum(moved.values()) / 1e9,
        "compute_ms": sum(compute.values()) * 1e3,
        "memory_ms": sum(memory.values()) * 1e3,
        "bound_ms": bound * 1e3,
        "batch_ms": reached * 1e3,
        "qps": batch / reached if 2 * reached < limit_s else None,
    }


def _layer_weights(model: ModelConfig) -> int:
    """Query and output of the context's attention, four projections of the levels', feed-forward."""
    return (6 + 2 * model.ffn_multiple) * model.width**2


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser)
    parser.add_argument("--widths", nargs="+", default=WIDTHS, help=f"width plans [{' '.join(WIDTHS)}]")
    parser.add_argument("--share", type=float, default=0.4, help="assumed share of the bound [0.4]")
    parser.add_argument("--limit-ms", type=float, default=100.0, help="a request's time [100]")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    arguments = parser.parse_args()
    preset = Preset.load(arguments.config, arguments.overrides)
    sizes, model = preset.tokenizer.level_sizes, preset.model
    spec = preset.features.spec(levels=len(sizes), profile_sizes=PROFILE_SIZES)
    print(
        f"{LABEL.upper()}. NVIDIA L20 by its data sheet, {arguments.share} of it assumed: {arguments.config}"
    )
    cases = []
    for shared in dict.fromkeys((model.shared_layers, 0)):
        for text in arguments.widths:
            variant = model.model_copy(update={"shared_layers": shared})
            plan = WidthPlan.parse(text, levels=len(sizes))
            case = Case(
                model=variant,
                spec=spec,
                level_sizes=sizes,
                value_buckets=model.value_buckets,
                plan=plan,
            )
            options = {"share": arguments.share, "limit_s": arguments.limit_ms / 1e3}
            rows = [
                {"fp8": fp8, "batch": batch, **estimate(case, batch=batch, fp8=fp8, **options)}
                for fp8 in (False, True)
                for batch in BATCHES
            ]
            cases.append(
                {"shared_layers": shared, "widths": text, "flops": request_flops(case), "estimates": rows}
            )
            _show(cases[-1], limit_ms=arguments.limit_ms)
    if arguments.json:
        report = {"label": LABEL, "l20": L20, "config": arguments.config, "share": arguments.share}
        arguments.json.write_text(json.dumps({**report, "cases": cases}, indent=2))


def _show(case: dict, *, limit_ms: float) -> None:
    kinds: dict[str, float] = {}
    for part, count in case["flops"].items():
        for name in part.split("."):
            kinds[name] = kinds.get(name, 0.0) + count
    total = sum(case["flops"].values())
    print(f"\nK = {case['shared_layers']}, widths {case['widths']}: {total / 1e9:.2f} GFLOP a request")
    print("  " + ", ".join(f"{name} {count / 1e9:.2f}" for name, count in kinds.items()))
    print(
        "  precision  B  GB moved  compute ms  memory ms  bound ms  "
        f"at the share, ms  QPS (< {limit_ms:g} ms)"
    )
    for row in case["estimates"]:
        precision, qps = "FP8" if row["fp8"] else "FP16", f"{row['qps']:.0f}" if row["qps"] else "-"
        print(
            f"  {precision:9} {row['batch']:2} {row['gbytes']:9.2f} {row['compute_ms']:11.2f} "
            f"{row['memory_ms']:10.2f} {row['bound_ms']:9.2f} {row['batch_ms']:17.2f} {qps:>14}"
        )


if __name__ == "__main__":
    main()
