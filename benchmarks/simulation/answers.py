"""What an arm answers: searched once for each checkpoint and settings, then kept.

Letters: R requests, n ads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from tqdm import tqdm

from benchmarks.simulation.settings import Arm
from benchmarks.simulation.world import World, data_sha256, key_of
from benchmarks.trained_demo import TrainedDemo
from serving.files import new_file
from serving.search.cold_start import ColdStart
from training.data.samples import RequestDataset
from training.loop.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from training.loop.retention import find_checkpoint
from training.run import RunData

_VERSION = 1  # of the search, so that what an older one left in a cache is not taken for its own


@dataclass(frozen=True)
class Answers:
    """Answers to all requests, the most probable ad first.

    Attributes:
        ads: int64 [R, n]; -1 is padding.
        p: float64 [R, n], probability that the arm gives each ad; 0 in padding.
        value: float64 [R, n], value that the arm expects of each; 0 in padding.
        seconds: float64 [R], time of each search; NaN where nothing was searched.
    """

    ads: np.ndarray
    p: np.ndarray
    value: np.ndarray
    seconds: np.ndarray

    def save(self, path: Path) -> None:
        """Write, whole or not."""
        with new_file(path) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self), allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as found:
            return cls(**{name: found[name] for name in ("ads", "p", "value", "seconds")})


@dataclass(frozen=True)
class Trained:
    """A generator that is there: where its run is, and its checkpoint."""

    run: Path
    checkpoint: Path

    @classmethod
    def find(cls, arm: Arm, *, seed: int) -> Self:
        """Of one seed.

        Raises:
            CheckpointError: there is none.
        """
        run = Path(str(arm.run).format(seed=seed))
        return cls(run, find_checkpoint(run / arm.model))

    def open(self, world: World) -> tuple[Checkpoint, RequestDataset]:
        """The model, and the log with its SIDs.

        Raises:
            ValueError: its run holds other logs than the world.
            SpecError: its SIDs are another tokenizer's.
        """
        if data_sha256(self.run) != data_sha256(world.settings.run):
            raise ValueError(f"{self.run}: expected the tables of {world.settings.run}, got others")
        checkpoint, data = load_checkpoint(self.checkpoint), RunData.load(self.run)
        data.check_tokenizer(checkpoint.spec)
        return checkpoint, data.dataset(checkpoint.spec)


def answers_of(world: World, arm: Arm, trained: Trained) -> Answers:
    """Answers of a generator, as serving gives them, of the cache where it has them."""
    settings, widths = world.settings, arm.widths or world.preset.serving.widths
    of = {
        "version": _VERSION,
        "weights": weights_sha256(trained.checkpoint),
        "data": data_sha256(trained.run),
        "requests": world.request_ids.tolist(),
        "widths": widths,
        "cold_start": world.preset.serving.cold_start,
        "depth": settings.depth,
    }
    path = world.cache / f"answers-{key_of(of)}.npz"
    if not path.is_file():
        _search(world, trained, widths=widths).save(path)
    return Answers.load(path)


def searcher(world: World, trained: Trained, *, widths: str) -> tuple[TrainedDemo, ColdStart | None]:
    """A model ready to search, and what ads get that it never saw."""
    checkpoint, dataset = trained.open(world)
    graphs = world.cache / f"onnx-{weights_sha256(trained.checkpoint)[:16]}"
    demo = TrainedDemo.of(checkpoint, dataset, world.requests, widths=widths, graphs=graphs, threads=1)
    share = world.preset.serving.cold_start
    return demo, ColdStart(demo.seen, checkpoint.spec.level_sizes, share) if share else None


def _search(world: World, trained: Trained, *, widths: str) -> Answers:
    demo, cold_start = searcher(world, trained, widths=widths)
    found, seconds = [], []
    for row in tqdm(demo.rows, desc=str(trained.checkpoint), mininterval=2.0):
        began = time.perf_counter()
        found.append(demo.answer(int(row), most=world.settings.depth, cold_start=cold_start))
        seconds.append(time.perf_counter() - began)
    ads = np.stack([a.ad_ids for a in found])
    p = np.where(ads >= 0, np.exp(np.stack([a.scores for a in found]).astype(np.float64)), 0.0)
    value = np.stack([a.expected_value for a in found]).astype(np.float64)
    return Answers(ads, p, value, np.array(seconds))
