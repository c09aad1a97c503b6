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


def drifts(world: World, trained: list[Trained]) -> dict[str, float | None]:
    """Means over seeds of `drift`, mean log(p / p_ref) over the lists, and of `live_mass`.

    None where a run has no lists. Kept in the cache; the first time takes a second a request.
    """
    found = [_of_seed(world, one) for one in trained if (one.run / "lists" / world.settings.lists).is_dir()]
    if not found or len(found) < len(trained):
        return dict.fromkeys(("drift", "live_mass"))
    return {name: float(np.mean([each[name] for each in found])) for name in ("drift", "live_mass")}


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
