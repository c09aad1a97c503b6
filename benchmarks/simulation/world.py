"""The world that all arms are judged in: logs, judged requests, and how users respond."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from benchmarks.simulation.draws import judged
from benchmarks.simulation.response import ResponseModel
from benchmarks.simulation.response_fit import fit
from benchmarks.simulation.settings import Settings
from serving.files import sha256 as file_sha256
from serving.model.features import BEHAVIORS
from training.data.parts import TRAIN
from training.data.samples import RequestDataset
from training.evaluation.requests import Requests, draw_requests
from training.preset.preset import Preset
from training.run import RunData

# Of the code that fits, so that what an older one left in a cache is not taken for its own.
_VERSION = 1


@dataclass(frozen=True)
class World:
    """What does not depend on the arm.

    Attributes:
        settings: of the simulation.
        preset: of all arms.
        ads: table, by ad id.
        dataset: log and histories.
        requests: of judged users, in the test part.
        popularity: float64 [A], purchases of each ad in the training part.
        mean_value: float64 [A], their mean value; 0 where there is none.
        response: ground truth.
        cache: folder for what takes long.
    """

    settings: Settings
    preset: Preset
    ads: pl.DataFrame
    dataset: RequestDataset
    requests: Requests
    popularity: np.ndarray
    mean_value: np.ndarray
    response: ResponseModel
    cache: Path

    @classmethod
    def open(cls, settings: Settings, cache: Path) -> Self:
        """Read the logs, draw the requests, fit the response model or take the one of the same inputs.

        Raises:
            ValueError: no request of a judged user, or none to fit on.
            OSError: the run is not there.
        """
        preset, data = Preset.load(settings.config), RunData.load(settings.run)
        dataset = data.dataset(data.fit_spec(preset))
        behaviors = preset.logs.target_behaviors
        codes = [BEHAVIORS[name] for name in behaviors]
        bought = dataset.log.outcomes((dataset.parts.event == TRAIN) & np.isin(dataset.log.behavior, codes))
        ads = data.prepared.tables.ads.sort("ad_id")
        cache.mkdir(parents=True, exist_ok=True)
        of = {
            "version": _VERSION,
            "data": data_sha256(settings.run),
            "fit": settings.fit.model_dump(),
            "users": [settings.folds, settings.seed],
            "behaviors": behaviors,
            "min_history": settings.min_history,
        }
        path = cache / f"response-{key_of(of)}.safetensors"
        if not path.is_file():
            groups = dataset.groups(
                "train",
                target_behaviors=behaviors,
                min_history=settings.min_history,
                recent_weeks=settings.fit.recent_weeks,
            )
            users = dataset.log.user_ids[groups.user_row]
            rows = np.flatnonzero(~judged(users, folds=settings.folds, seed=settings.seed))
            model = fit(dataset, ads, groups, rows, behaviors=behaviors, settings=settings.fit)
            model.save(path)
        popularity = np.bincount(dataset.event_ad[bought], minlength=len(ads)).astype(np.float64)
        total = np.bincount(dataset.event_ad[bought], dataset.log.value[bought], minlength=len(ads))
        return cls(
            settings=settings,
            preset=preset,
            ads=ads,
            dataset=dataset,
            requests=_draw(dataset, settings, behaviors),
            popularity=popularity,
            mean_value=total / np.maximum(popularity, 1),
            response=ResponseModel.load(path),
            cache=cache,
        )

    @property
    def users(self) -> np.ndarray:
        """User row int64 [R] of each request: what intervals are clustered by."""
        return self.requests.groups.user_row[self.requests.rows]

    @property
    def request_ids(self) -> np.ndarray:
        """Number int64 [R] of each request in the log."""
        return self.requests.groups.request[self.requests.rows]


def key_of(content: dict[str, Any]) -> str:
    """Short name of settings and digests, for a file of a cache."""
    return sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def data_sha256(run: Path) -> list[str]:
    """Of the tables of a run."""
    return [file_sha256(run / "data" / f"{name}.parquet") for name in ("ads", "users", "events")]


def _draw(dataset: RequestDataset, settings: Settings, behaviors: tuple[str, ...]) -> Requests:
    every = draw_requests(
        dataset,
        target_behaviors=behaviors,
        min_history=settings.min_history,
        count=len(dataset.log.exposures.anchor),
        seed=settings.seed,
    )
    users = dataset.log.user_ids[every.groups.user_row[every.rows]]
    there = np.flatnonzero(judged(users, folds=settings.folds, seed=settings.seed))
    if not len(there):
        raise ValueError(f"expected test requests of judged users, got none among {len(every.rows)} requests")
    random = np.random.default_rng(settings.seed)
    kept = np.sort(random.permutation(there)[: settings.requests])
    return replace(
        every,
        rows=every.rows[kept],
        targets=[every.targets[i] for i in kept],
        values=[every.values[i] for i in kept],
    )
