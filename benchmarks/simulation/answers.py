"""What an arm answers: searched once for each checkpoint and settings, then kept.

Letters: R requests, n ads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from tqdm import tqdm

from benchmarks.simulation.settings import Arm
from benchmarks.simulation.world import World, data_sha256, key_of
from benchmarks.trained_demo import TrainedDemo
from export.graphs import export_graphs
from serving.backend.resolve import Ads
from serving.engines.ort import OrtExecutor
from serving.files import new_file
from serving.search.cold_start import ColdStart
from serving.search.executor import Executor
from training.data.samples import RequestDataset
from training.loop.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from training.loop.retention import find_checkpoint
from training.rollout.executor import TorchExecutor
from training.run import RunData

_VERSION = 1  # of the search, so that what an older one left in a cache is not taken for its own


@dataclass(frozen=True)
class Answers:
    """Answers to all requests, the most probable ad first.

    Attributes:
        ads: int64 [R, n]; -1 is padding.
        p: float64 [R, n], probability that the arm gives each ad; 0 in padding.
        value: float64 [R, n], value that the arm expects of each; 0 in padding.
    """

    ads: np.ndarray
    p: np.ndarray
    value: np.ndarray

    def save(self, path: Path) -> None:
        """Write, whole or not."""
        with new_file(path) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self), allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as found:
            return cls(**{name: found[name] for name in ("ads", "p", "value")})


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
        return cls(run, find_checkpoint(run / arm.model.format(seed=seed)))

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


@dataclass(frozen=True)
class Searcher:
    """A generator as it serves.

    Attributes:
        demo: model, index and requests.
        cold_start: what ads get that it never saw.
        most: ads of an answer.
    """

    demo: TrainedDemo
    cold_start: ColdStart | None
    most: int

    def __call__(self, row: int) -> Ads:
        """The answer to a request, the most probable ad first."""
        return self.demo.answer(row, num_ads=self.most, cold_start=self.cold_start)


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
    if correction := load_checkpoint(trained.checkpoint).spec.value_correction.points:
        of["value_correction"] = correction  # changes without the weights
    path = world.cache / f"answers-{key_of(of)}.npz"
    if not path.is_file():
        _search(world, trained, widths=widths).save(path)
    return Answers.load(path)


def searcher(world: World, trained: Trained, *, widths: str, graphs: Path | None = None) -> Searcher:
    """A model ready to search: in PyTorch, or of ONNX graphs in a folder, which are written first."""
    checkpoint, dataset = trained.open(world)
    spec = checkpoint.spec
    executor: Executor
    if graphs is None:
        executor = TorchExecutor(checkpoint.model.eval())
    else:
        export_graphs(checkpoint.model, graphs)
        executor = OrtExecutor(graphs, levels=spec.features.levels, threads=1)
    demo = TrainedDemo.of(checkpoint, dataset, world.requests, widths=widths, executor=executor)
    share = world.preset.serving.cold_start
    cold_start = ColdStart(demo.seen, spec.level_sizes, share) if share else None
    return Searcher(demo, cold_start, most=world.settings.depth)


def _search(world: World, trained: Trained, *, widths: str) -> Answers:
    search = searcher(world, trained, widths=widths)
    name = str(trained.checkpoint)
    found = [search(int(row)) for row in tqdm(world.requests.rows, desc=name, mininterval=2.0)]
    ads = np.stack([a.ad_ids for a in found])
    p = np.where(ads >= 0, np.exp(np.stack([a.scores for a in found]).astype(np.float64)), 0.0)
    return Answers(ads, p, value=np.stack([a.expected_value for a in found]).astype(np.float64))
