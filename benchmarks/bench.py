"""Every part of the engine on and off in one run, beside what users would pick instead: `make bench`.

Seeded weights in the shape of preset `bench` and a seeded catalogue. First all ways of searching are held to
the same beams, then interleaved timings in this process, then the same through a real Triton. Writes
results.json, table.md and bench.png. Pruning is measured on a trained model: random weights are not peaky.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks import audience, catalogue, pruning, triton_load
from benchmarks.bench_report import plot, ratios, table, write_markdown
from benchmarks.cells import SIZES, Workload, comparator_cells, engine_cells
from benchmarks.comparators.static import StaticConstraint, compare
from benchmarks.demo_quality import int8_quality
from benchmarks.engines import FullVocabulary, KvPerBeam, quantized, seeded_graphs
from benchmarks.measure import best_gemm, interleave
from benchmarks.report import stamp
from benchmarks.roofline import Case, request_flops
from benchmarks.seeded_run import prepare_seeded
from benchmarks.trained_run import trained_run
from export.seeded import seeded_checkpoint
from serving.engines.ort import OrtExecutor
from serving.search.widths import WidthPlan
from training.preset.preset import ConfigError, Preset, add_preset_arguments
from training.rollout.executor import TorchExecutor

TARGETS = {
    "lazyar_vs_k0": ">= 2.3",
    "lazyar_vs_k0_triton": ">= 2.0",
    "dbw": ">= 1.6",
    "int8": ">= 1.4",
    "int8_overlap50": ">= 0.9",
    "hf_512": ">= 60",
    "hf_128": ">= 18",
    "ct2_512": ">= 5",
    "ct2_512_int8": ">= 7",
    "triton_vs_inprocess": ">= 0.85",
    "host_share": "<= 0.10",
    "latency_10m_vs_10k": "<= 1.25",
    "reader_bytes_per_ad": "<= 40",
    "gemm_share": ">= 0.6",
    "invalid": "<= 0",
    "short_answers": "<= 0",
}


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def make_graphs(
    preset: Preset, run: Path, *, shared: int, sweep: list[int], demo: Path
) -> tuple[dict[str, Path], dict | None]:
    """Graphs of every K, the INT8 ones of the preset's K, and what INT8 costs the demo; made side by side.

    K = 0 and the preset's K come as bundles with index and repository, which Triton serves later.
    """
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        served = {k: pool.submit(prepare_seeded, preset, run, shared_layers=k) for k in (shared, 0)}
        others = [k for k in sweep if k not in served]
        running = served | {k: pool.submit(seeded_graphs, preset, run, shared_layers=k) for k in others}
        quality = pool.submit(int8_quality, demo, run / "demo", config="configs/demo.yaml")
        graphs = {}
        for k in sorted(running):
            graphs[f"k{k}"] = running[k].result()
            say(f"graphs of K = {k} ready")
        graphs["int8"] = quantized(graphs[f"k{shared}"])
        return graphs, quality.result()


def check_beams(work: Workload, graphs: dict[str, Path], *, threads: int) -> dict:
    """Do all ways of searching find what the PyTorch model finds? Scores, and which SIDs.

    Raises:
        SystemExit: they do not; nothing is timed then.
    """
    levels, sizes = work.checkpoint.spec.features.levels, work.checkpoint.spec.level_sizes
    rows = np.arange(4)
    shipped = OrtExecutor(graphs[f"k{work.checkpoint.model.shared}"], levels=levels, threads=threads)
    reference = work.search(TorchExecutor(work.checkpoint.model), rows)
    report = {}
    for name, executor in {
        "onnx": shipped,
        "kv_per_beam": KvPerBeam(shipped),
        "full_vocabulary": FullVocabulary(shipped, sizes),
    }.items():
        beams = work.search(executor, rows)
        real = (beams.leaves >= 0) & (reference.leaves >= 0)
        apart = float(np.abs(beams.scores[real] - reference.scores[real]).max())
        same = float(np.mean([(beams.leaves[r] == reference.leaves[r]).mean() for r in rows]))
        shared = np.mean([np.isin(beams.leaves[r], reference.leaves[r]).mean() for r in rows])
        invalid, short = work.check(beams)
        figures = {"score_difference": apart, "same_place": same, "same_beams": float(shared)}
        # Scores of neighbours differ by less than rounding now and then, so a few places may be swapped.
        if apart > 1e-3 or shared < 0.99 or invalid or short:
            raise SystemExit(
                f"{name}: expected the beams of the PyTorch model (scores within 1e-3, "
                f"99 % of the beams, 0 invalid, 0 short), got {figures}, {invalid} invalid, "
                f"{short} short"
            )
        report[name] = figures
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/bench.yaml")
    parser.add_argument("--run", type=Path, default=Path("build/bench"))
    parser.add_argument(
        "--demo",
        type=Path,
        default=Path("build/demo"),
        help="run with a trained model, for INT8 quality and pruning",
    )
    parser.add_argument("--threads", type=int, default=1, help="of every engine [1]")
    parser.add_argument("--batch", type=int, default=4, help="requests of a batch where QPS is measured [4]")
    parser.add_argument("--rounds", type=int, help="timed rounds (default 15, quick 4)")
    parser.add_argument(
        "--quick", action="store_true", help="the same keys from fewer rounds, in <= 5 minutes"
    )
    arguments = parser.parse_args()
    quick, run = arguments.quick, arguments.run
    rounds = arguments.rounds or (4 if quick else 15)
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from error
    serving, checkpoint = preset.serving, seeded_checkpoint(preset)
    run.mkdir(parents=True, exist_ok=True)
    layers, shared = checkpoint.spec.model.layers, checkpoint.model.shared
    graphs, overlap = make_graphs(
        preset,
        run,
        shared=shared,
        sweep=[] if quick else list(range(layers)),
        demo=arguments.demo,
    )
    cores = sorted(os.sched_getaffinity(0))
    # One engine thread has one core to itself; the rest of the machine is the client's, as through Triton.
    os.sched_setaffinity(0, cores[: arguments.threads])
    torch.set_num_threads(arguments.threads)
    sizes = checkpoint.spec.level_sizes
    snapshots, readers = {}, {}
    for name, count in SIZES.items():
        began = time.perf_counter()
        snapshots[name] = catalogue.snapshot(count, sizes, seed=0)
        readers[name] = {
            "ads": count,
            "bytes_per_ad": snapshots[name].nbytes / count,
            "build_s": time.perf_counter() - began,
        }
        say(f"catalogue of {name} ads ready")
    plan = WidthPlan.parse(serving.widths, levels=len(sizes))
    work = Workload.seeded(checkpoint, plan, snapshots)
    say("are the beams those of the PyTorch model?")
    checked = check_beams(work, graphs, threads=arguments.threads)

    gemm = best_gemm()
    cells, clock = engine_cells(work, graphs, batch=arguments.batch, threads=arguments.threads)
    default = cells[0]
    say(f"{len(cells)} engine rows, {rounds} rounds")
    interleave(cells, rounds=rounds, requests=len(work.slots), between=gemm, progress=say)
    began, clock.seconds = time.perf_counter(), 0.0
    for first in range(0, 5 * arguments.batch, arguments.batch):
        default.run(np.arange(first, first + arguments.batch) % len(work.slots))
    host_share = 1 - clock.seconds / (time.perf_counter() - began)

    rivals = comparator_cells(work, graphs, threads=arguments.threads, quick=quick)
    say(f"{len(rivals)} comparator rows")
    interleave(rivals, rounds=2 if quick else 9, requests=len(work.slots), progress=say)
    rows = {cell.name: cell.row() for cell in [*cells, *rivals]}

    say("children look-ups against dense + CSR masks, 1 M ads")
    million = catalogue.seeded_sids(SIZES["1 M"], sizes, seed=0)
    static = compare(
        snapshots["1 M"].trie,
        StaticConstraint(million, sizes),
        level_sizes=sizes,
        widths=plan.sid,
        repeats=5 if quick else 30,
        seed=0,
    )
    spec = checkpoint.spec
    flops = request_flops(
        Case(
            model=spec.model,
            spec=spec.features,
            level_sizes=sizes,
            value_buckets=len(spec.value_buckets.means),
            plan=plan,
        )
    )
    achieved = sum(flops.values()) * rows["default"]["qps"]["median"] / 1e9
    best = max(float(np.median(x)) for x in gemm.gflops.values())
    del snapshots, million, work
    os.sched_setaffinity(0, cores)

    say("through Triton")
    triton = triton_load.measure(preset, run, shared_layers=shared, quick=quick, say=say)
    say("audiences")
    restricted = audience.measure(
        preset, run, rounds=10 if quick else 40, ads=SIZES["1 M"], requests=8 if quick else 32
    )
    say("pruning on the trained model")
    trained = trained_run(arguments.demo, run, config="configs/demo.yaml")
    few = ["--requests", "200", "--timed", "40", "--rounds", "2"] if quick else []
    asked = pruning.parser().parse_args(["--run", str(trained), *few])
    pruned = pruning.measure(asked, against_others=True)
    found = (
        ratios(rows)
        | pruned["ratios"]
        | restricted["ratios"]
        | {
            "static_1m": float(np.median(static["static"]) / np.median(static["ours"])),
            "lazyar_vs_k0_triton": triton["lazyar_vs_k0"],
            "triton_vs_inprocess": triton["triton_vs_inprocess"],
            "triton_inside_vs_inprocess": triton["triton_inside_vs_inprocess"],
            "int8_overlap50": overlap["overlap"]["50"] if overlap else None,
            "host_share": host_share,
            "reader_bytes_per_ad": readers["10 M"]["bytes_per_ad"],
            "gemm_share": achieved / best,
            "invalid": sum(r["invalid"] for r in rows.values()) + triton["invalid"],
            "short_answers": sum(r["short"] for r in rows.values()) + triton["short"],
        }
    )
    results = {
        **stamp(),
        "command": "make bench" + (" QUICK=1" if quick else ""),
        "quick": quick,
        "threads": arguments.threads,
        "rounds": rounds,
        "widths": str(plan),
        "beams_of_pytorch": checked,
        "rows": rows,
        "triton": triton,
        "pruning": pruned,
        "audience": restricted,
        "readers": readers,
        "static_1m_ms": {n: float(np.median(s) * 1e3) for n, s in static.items()},
        "gflops": {"achieved": achieved, "best_gemm": best, "request_gflop": sum(flops.values()) / 1e9},
        "int8_quality": overlap,
        "ratios": found,
        "targets": TARGETS | pruning.TARGETS | audience.TARGETS,
    }
    (run / "results.json").write_text(json.dumps(results, indent=1))
    write_markdown(results, run / "table.md")
    plot(results, run / "bench.png")
    print(table(results))
    print(f"{run}/results.json, {run}/table.md, {run}/bench.png")


if __name__ == "__main__":
    main()
