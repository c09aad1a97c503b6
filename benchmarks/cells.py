"""The rows of `make bench` that run in this process: engine, catalogue, widths and normalisation of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.comparators.ct2 import Ct2Generate
from benchmarks.comparators.hf import HfGenerate, T5Shape, random_context
from benchmarks.engines import FullVocabulary, KvPerBeam, Timed
from benchmarks.measure import Cell
from export.graphs import example_request
from serving.engines.ort import OrtExecutor
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.beams import Beams
from serving.search.executor import Executor
from serving.search.normalise import Normalise
from serving.search.widths import WidthPlan
from training.loop.checkpoint import Checkpoint

NUM_ADS = 50  # asked for by every request
REQUESTS = 64  # distinct ones
LIVE: tuple[Normalise, ...] = ("codebook", "codebook", "live")
SIZES = {"10 k": 10_000, "100 k": 100_000, "1 M": 1_000_000, "10 M": 10_000_000}


@dataclass(frozen=True)
class Workload:
    """What all rows share.

    Attributes:
        checkpoint: seeded model of the preset's shape.
        plan: the preset's widths.
        snapshots: catalogue by name.
        slots, profile: seeded requests.
    """

    checkpoint: Checkpoint
    plan: WidthPlan
    snapshots: dict[str, IndexSnapshot]
    slots: np.ndarray
    profile: np.ndarray

    @classmethod
    def seeded(cls, checkpoint: Checkpoint, plan: WidthPlan, snapshots: dict[str, IndexSnapshot]) -> Workload:
        """Requests of random codes."""
        slots, profile = example_request(
            checkpoint.model, batch=REQUESTS, generator=torch.Generator().manual_seed(7)
        )
        return cls(checkpoint, plan, snapshots, slots=slots.numpy(), profile=profile.numpy())

    def search(
        self,
        executor: Executor,
        rows: np.ndarray,
        *,
        catalogue: str = "100 k",
        plan: WidthPlan | None = None,
        normalise: tuple[Normalise, ...] | None = None,
    ) -> Beams:
        """One batch."""
        return beam_search(
            executor,
            self.snapshots[catalogue].trie,
            self.slots[rows],
            self.profile[rows],
            plan=plan or self.plan,
            num_results=np.full(len(rows), NUM_ADS),
            value_table=self.checkpoint.spec.value_buckets.means,
            normalise=normalise,
        )

    def check(self, beams: Beams, *, catalogue: str = "100 k") -> tuple[int, int]:
        """SIDs that are not live, and requests with fewer than min(n, available) beams or values."""
        snapshot = self.snapshots[catalogue]
        found = beams.leaves >= 0
        invalid = int((snapshot.leaves_of(beams.sids[found]) < 0).sum())
        wanted = min(NUM_ADS, snapshot.trie.leaves)
        valued = np.isfinite(beams.expected_value[:, :wanted]).sum(axis=1)
        return invalid, int(((found.sum(axis=1) < wanted) | (valued < wanted)).sum())

    def cell(
        self,
        name: str,
        label: str,
        executor: Executor,
        *,
        batch: int,
        every: int = 1,
        catalogue: str = "100 k",
        plan: WidthPlan | None = None,
        normalise: tuple[Normalise, ...] | None = None,
    ) -> Cell:
        """A row."""
        return Cell(
            name,
            label,
            lambda rows: self.search(executor, rows, catalogue=catalogue, plan=plan, normalise=normalise),
            lambda beams: self.check(beams, catalogue=catalogue),
            batch=batch,
            every=every,
        )


def engine_cells(
    work: Workload, graphs: dict[str, Path], *, batch: int, threads: int
) -> tuple[list[Cell], Timed]:
    """Rows of the ablation table, and the engine of the row "default" with its clock.

    `graphs` has "int8" and one folder for every K of the sweep.
    """
    levels = work.checkpoint.spec.features.levels
    sizes = work.checkpoint.spec.level_sizes
    shared = work.checkpoint.model.shared

    def engine(folder: Path) -> OrtExecutor:
        return OrtExecutor(folder, levels=levels, threads=threads)

    def plan(text: str) -> WidthPlan:
        return WidthPlan.parse(text, levels=levels)

    default, int8 = Timed(engine(graphs[f"k{shared}"])), engine(graphs["int8"])
    cells = [
        work.cell("default", f"LazyAR K = {shared}, {work.plan}, FP32, 100 k ads", default, batch=batch),
        work.cell("dbw_off", "widths 512-512-512:64", default, batch=batch, plan=plan("512-512-512:64")),
        work.cell(
            "value_all", "value level on all 512 beams", default, batch=batch, plan=plan("128-256-512:512")
        ),
        work.cell("live", "last level over live children", default, batch=batch, normalise=LIVE),
        work.cell("int8", "INT8", int8, batch=batch),
        work.cell("int8_live", "INT8, last level over live children", int8, batch=batch, normalise=LIVE),
        work.cell(
            "kv_per_beam", "context K/V copied for every beam", KvPerBeam(default), batch=batch, every=3
        ),
        work.cell(
            "full_vocabulary",
            "all codes scored and sorted",
            FullVocabulary(default, sizes),
            batch=batch,
            every=3,
        ),
    ]
    for size in work.snapshots:
        if size != "100 k":
            cells.append(work.cell(f"ads_{size}", f"{size} ads", default, batch=batch, catalogue=size))
    for size in ("10 k", "10 M"):
        label = f"{size} ads, last level over live children"
        cells.append(work.cell(f"live_{size}", label, default, batch=batch, catalogue=size, normalise=LIVE))
    for name, folder in graphs.items():
        if name not in ("int8", f"k{shared}"):
            label = f"K = {name[1:]}" + (" (plain autoregression)" if name == "k0" else "")
            cells.append(work.cell(name, label, engine(folder), batch=batch))
    return cells, default


def comparator_cells(work: Workload, graphs: dict[str, Path], *, threads: int, quick: bool) -> list[Cell]:
    """One request at a time, as Hugging Face and CTranslate2 are used; ours in the same rounds."""
    spec, model = work.checkpoint.spec, work.checkpoint.spec.model
    snapshot = work.snapshots["100 k"]
    sids = np.unique(snapshot.sids_of(snapshot.ad_ids)[0], axis=0)
    shape = T5Shape(
        layers=model.layers, width=model.width, heads=model.heads, ffn=model.ffn_multiple * model.width
    )
    contexts = [random_context(spec.level_sizes, seed=s, length=64) for s in range(REQUESTS)]
    hf = HfGenerate(spec.level_sizes, sids, shape=shape, threads=threads)
    ours = {
        name: OrtExecutor(graphs[key], levels=spec.features.levels, threads=threads)
        for name, key in (("fp32", f"k{model.shared_layers}"), ("int8", "int8"))
    }
    narrow = WidthPlan.parse("128-128-128:64", levels=spec.features.levels)

    every = 2 if quick else 3

    def generate(engine: Any, beams: int, **options: Any) -> Callable[[np.ndarray], np.ndarray]:
        return lambda rows: engine.generate(contexts[rows[0]], beams, **options)[0]

    def live(found: np.ndarray) -> tuple[int, int]:
        return int((snapshot.leaves_of(found) < 0).sum()), int(len(found) < NUM_ADS)

    cells = [
        work.cell("ours", f"gr4ad, {work.plan}", ours["fp32"], batch=1),
        work.cell("ours_int8", f"gr4ad, {work.plan}, INT8", ours["int8"], batch=1),
        work.cell("ours_live", f"gr4ad, {work.plan}, live last level", ours["fp32"], batch=1, normalise=LIVE),
        work.cell(
            "ours_int8_live",
            f"gr4ad, {work.plan}, INT8, live last level",
            ours["int8"],
            batch=1,
            normalise=LIVE,
        ),
        work.cell("ours_128", f"gr4ad, {narrow}", ours["fp32"], batch=1, plan=narrow),
        Cell(
            "hf_512", "Hugging Face generate, trie, 512 beams", generate(hf, 512), live, batch=1, every=every
        ),
        Cell(
            "hf_128", "Hugging Face generate, trie, 128 beams", generate(hf, 128), live, batch=1, every=every
        ),
        Cell(
            "hf_512_free",
            "Hugging Face generate, unconstrained, 512 beams",
            generate(hf, 512, constrained=False),
            batch=1,
            every=every,
        ),
    ]
    for kind in ("float32", "int8"):
        engine = Ct2Generate(spec.level_sizes, compute_type=kind, shape=shape, threads=threads)
        name = "ct2_512" if kind == "float32" else "ct2_512_int8"
        label = f"CTranslate2 {kind}, unconstrained, 512 beams, no values"
        cells.append(Cell(name, label, generate(engine, 512), batch=1))
    return [c for c in cells if not (quick and c.name == "hf_512_free")]
