"""How far generators have drifted from the one that made the candidate lists of their run, and live mass."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.simulation.answers import Trained
from benchmarks.simulation.world import World, key_of
from serving.files import read_object, sha256, write_file
from training.data.list_store import StoredLists
from training.loop.checkpoint import weights_sha256
from training.rollout.drift import measure_drift
from training.rollout.live import LiveAds

_NAMES = ("drift", "live_mass")


def drifts(world: World, trained: dict[int, Trained]) -> dict[int, dict[str, float]]:
    """By seed `drift`, mean log(p / p_ref) over the lists, and `live_mass`.

    Empty where one of the runs has no lists. Kept in the cache; the first time takes a second a request.
    """
    if not all((one.run / "lists" / world.settings.lists).is_dir() for one in trained.values()):
        return {}
    return {seed: _of_seed(world, one) for seed, one in trained.items()}


def mean_drift(by_seed: dict[int, dict[str, float]]) -> dict[str, float | None]:
    """Means over seeds; None where there is none."""
    if not by_seed:
        return dict.fromkeys(_NAMES)
    return {name: float(np.mean([one[name] for one in by_seed.values()])) for name in _NAMES}


def _of_seed(world: World, trained: Trained) -> dict[str, float]:
    settings, folder = world.settings, trained.run / "lists" / world.settings.lists
    of = {
        "weights": weights_sha256(trained.checkpoint),
        "lists": sha256(folder / "about.json"),
        "requests": settings.drift_requests,
    }
    path = world.cache / f"drift-{key_of(of)}.json"
    if not path.is_file():
        checkpoint, dataset = trained.open(world)
        found = measure_drift(
            checkpoint.model.eval(),
            StoredLists.open(folder),
            dataset=dataset,
            groups=dataset.groups(
                "train",
                target_behaviors=world.preset.logs.target_behaviors,
                min_history=world.preset.training.min_history,
            ),
            live=LiveAds.of(dataset, world.ads),
            requests=settings.drift_requests,
        )
        values = {"drift": float(found.log_ratio.mean()), "live_mass": float(found.live_mass.mean())}
        write_file(path, json.dumps(values))
    return read_object(path)
