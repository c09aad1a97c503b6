"""Requests a second of the generators, one core, interleaved in random order request by request.

Weights do not change how long a search takes: arms of the same shape and widths share a measurement.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from benchmarks.simulation.answers import Trained, searcher
from benchmarks.simulation.world import World
from training.loop.checkpoint import CheckpointError, load_checkpoint

REQUESTS, WARM_UP = 60, 5


def requests_a_second(world: World) -> dict[str, float]:
    """By id of the arms that have a checkpoint: one over the median time of a search."""
    shapes: dict[str, str] = {}
    searches = {}
    for name, arm in world.settings.arms.items():
        trained = _first(world, name)
        if trained is None:
            continue
        widths = arm.widths or world.preset.serving.widths
        model = load_checkpoint(trained.checkpoint).spec.model.model_dump()
        shapes[name] = json.dumps([model, widths], sort_keys=True)
        if shapes[name] not in searches:
            searches[shapes[name]] = searcher(world, trained, widths=widths)
    seconds: Mapping[str, list[float]] = {shape: [] for shape in searches}
    random = np.random.default_rng(world.settings.seed)
    for row in tqdm(world.requests.rows[: REQUESTS + WARM_UP], desc="speed", mininterval=2.0):
        for shape in random.permutation(list(searches)).tolist():
            demo, cold_start = searches[shape]
            began = time.perf_counter()
            demo.answer(int(row), most=world.settings.depth, cold_start=cold_start)
            seconds[shape].append(time.perf_counter() - began)
    return {name: float(1 / np.median(seconds[shape][WARM_UP:])) for name, shape in shapes.items()}


def _first(world: World, name: str) -> Trained | None:
    """The first seed of an arm that is there."""
    arm = world.settings.arms[name]
    for seed in world.settings.seeds if arm.kind == "generator" else ():
        try:
            return Trained.find(arm, seed=seed)
        except CheckpointError:
            continue
    return None
