"""Requests a second of the generators, one core, interleaved in random order request by request.

Weights do not change how long a search takes: arms of the same shape and widths share a measurement.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from benchmarks.simulation.answers import Searcher, Trained, searcher
from benchmarks.simulation.world import World
from training.loop.checkpoint import CheckpointError, load_checkpoint

REQUESTS, WARM_UP = 60, 5


def requests_a_second(world: World) -> dict[str, float]:
    """By id of the arms that have a checkpoint: one over the median time of a search in ONNX Runtime."""
    shapes: dict[str, str] = {}
    searches: dict[str, Searcher] = {}
    with TemporaryDirectory() as folder:
        for name, arm in world.settings.arms.items():
            trained = _first(world, name)
            if trained is None:
                continue
            widths = arm.widths or world.preset.serving.widths
            model = load_checkpoint(trained.checkpoint).spec.model.model_dump()
            shapes[name] = json.dumps([model, widths], sort_keys=True)
            if shapes[name] not in searches:
                graphs = Path(folder, str(len(searches)))
                graphs.mkdir()
                searches[shapes[name]] = searcher(world, trained, widths=widths, graphs=graphs)
    seconds = _seconds(searches, world.requests.rows[: REQUESTS + WARM_UP], seed=world.settings.seed)
    return {name: float(1 / np.median(seconds[shape])) for name, shape in shapes.items()}


def _seconds(searches: dict[str, Searcher], rows: np.ndarray, *, seed: int) -> dict[str, list[float]]:
    """Of each search, after those that warm up."""
    seconds: dict[str, list[float]] = {shape: [] for shape in searches}
    random = np.random.default_rng(seed)
    for row in tqdm(rows, desc="speed", mininterval=2.0):
        for shape in random.permutation(list(searches)).tolist():
            began = time.perf_counter()
            searches[shape](int(row))
            seconds[shape].append(time.perf_counter() - began)
    return {shape: every[min(WARM_UP, len(every) - 1) :] for shape, every in seconds.items()}


def _first(world: World, name: str) -> Trained | None:
    """The first seed of an arm that is there."""
    arm = world.settings.arms[name]
    for seed in world.settings.seeds if arm.kind == "generator" else ():
        try:
            return Trained.find(arm, seed=seed)
        except CheckpointError:
            continue
    return None
