"""ONNX Runtime settings, measured: `python -m benchmarks.sweep_ort`.

Whole requests of preset `bench`, every setting in turn in each round. The settings that won are in
`serving/engines/ort.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks import catalogue
from benchmarks.cells import Workload
from benchmarks.engines import quantized
from benchmarks.measure import interleave
from benchmarks.report import stamp
from benchmarks.seeded_run import prepare_seeded
from export.seeded import seeded_checkpoint
from serving.search.executor import Carry, prefix_outputs, tail_carry_inputs, tail_outputs, tail_parent_inputs
from serving.search.widths import WidthPlan
from training.preset.preset import Preset, add_preset_arguments

SPIN = "session.intra_op.allow_spinning"
SETTINGS: dict[str, dict] = {
    "as shipped": {},
    "spinning": {"config": {SPIN: "1"}},
    "arena off": {"arena": False},
    "memory pattern off": {"pattern": False},
    "graph optimisation: basic": {"level": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC},
    "graph optimisation: none": {"level": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL},
    "no prepacked weights": {"config": {"session.disable_prepacking": "1"}},
    "flush denormals": {"config": {"session.set_denormal_as_zero": "1"}},
    "IO binding (OrtValues between calls)": {"values": True},
    "parallel execution": {"parallel": True},
}


class Engine:
    """`serving.engines.ort.OrtExecutor` with settings of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        levels: int,
        threads: int,
        config: dict[str, str] | None = None,
        arena: bool = True,
        pattern: bool = True,
        level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
        values: bool = False,
        parallel: bool = False,
    ) -> None:
        """Open all graphs."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = threads if parallel else 1
        if parallel:
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        options.enable_cpu_mem_arena, options.enable_mem_pattern = arena, pattern
        options.graph_optimization_level = level
        options.log_severity_level = 3
        for key, value in ({SPIN: "0"} | (config or {})).items():
            options.add_session_config_entry(key, value)
        names = ["prefix", *(f"tail_{t}" for t in range(2, levels + 2))]
        self._sessions = {
            n: onnxruntime.InferenceSession(
                str(folder / f"{n}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for n in names
        }
        self._last, self._values = levels + 1, values

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        return self._run("prefix", prefix_outputs(), {"slots": slots, "profile": profile}, {})

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        feeds = dict(zip(tail_parent_inputs(level), parents, strict=True)) | {
            "token": token,
            "allowed": allowed,
        }
        handed = {name: carry[name] for name in tail_carry_inputs(level)}
        names = tail_outputs(level, last=level == self._last)
        logprob, new = self._run(f"tail_{level}", names, feeds, handed)
        return logprob, {**carry, **new}

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """See `Executor.join`; not measured here."""
        raise NotImplementedError("the sweep searches without pruning")

    def _run(self, graph: str, names: list[str], feeds: dict, handed: dict) -> tuple[np.ndarray, dict]:
        session = self._sessions[graph]
        if not self._values:
            outputs = dict(zip(names, session.run(names, feeds | handed), strict=True))
            return outputs.pop("logprob"), outputs
        values = {
            n: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v)) for n, v in feeds.items()
        }
        outputs = dict(zip(names, session.run_with_ort_values(names, values | handed), strict=True))
        return outputs.pop("logprob").numpy(), outputs


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/bench.yaml")
    parser.add_argument("--run", type=Path, default=Path("build/bench"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts [1 2]")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    preset = Preset.load(arguments.config, arguments.overrides)
    checkpoint = seeded_checkpoint(preset)
    torch.set_num_threads(1)
    levels = checkpoint.spec.features.levels
    plan = WidthPlan.parse(preset.serving.widths, levels=levels)
    snapshot = catalogue.snapshot(100_000, checkpoint.spec.level_sizes, seed=0)
    work = Workload.seeded(checkpoint, plan, {"100 k": snapshot})
    cells = []
    fp32 = prepare_seeded(preset, arguments.run, shared_layers=checkpoint.model.shared)
    for int8, folder in ((False, fp32), (True, quantized(fp32))):
        for threads in arguments.threads:
            for name, settings in SETTINGS.items():
                if int8 and name not in ("as shipped", "spinning"):
                    continue
                label = f"{'INT8' if int8 else 'FP32'}, {threads} thread(s), {name}"
                engine = Engine(folder, levels=levels, threads=threads, **settings)
                cells.append(work.cell(label, label, engine, batch=4))
    interleave(cells, rounds=arguments.rounds, requests=len(work.slots))
    rows = {cell.name: cell.row() for cell in cells}
    path = arguments.run / "sweep_ort.json"
    path.write_text(json.dumps({**stamp(), "rows": rows}, indent=1))
    for name, row in rows.items():
        print(f"{name:60}{row['latency_ms']['median']:8.1f} ms{row['qps']['median']:8.1f} QPS (batch 4)")
    print(path)


if __name__ == "__main__":
    main()
