"""A reward model as the ranking stage of a bundle: graph, tables, and whether they say what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.parity import ParityError
from export.ranker_graph import ranker_graph
from serving.engines.ort import OrtRankGraph
from serving.model.features import BEHAVIORS
from serving.model.manifest import AD_RANKER, Manifest
from serving.ranking.history import DAY_S
from serving.ranking.ranker import RankRequest
from serving.ranking.reward_ranker import RewardRanker
from serving.ranking.tables import RankerTables
from training.data.samples import load_sids
from training.reward.reward_model import RewardError, RewardModel, vocabulary_of
from training.spec import ModelSpec

TOLERANCE = 1e-4  # relative: float32 sums of some hundred trees
REWARD = "reward"  # folder of a run
_REQUESTS, _ADS, _EVENTS = 32, 48, 60


def load_reward_model(run: Path, spec: ModelSpec) -> RewardModel:
    """The reward model of a run, if it goes with a model that is to be exported.

    Args:
        run: run folder.
        spec: of the model.

    Raises:
        RewardError: it is missing, damaged, or of another tokenizer, other columns or other histories.
        CatalogueError: it is of another catalogue.
        OSError: the run has no SIDs.
    """
    folder = run / REWARD
    model = RewardModel.load(folder)
    for what, expected, got in (
        ("tokenizer", spec.tokenizer_id, model.about.tokenizer_id),
        ("profile and request columns", spec.features.column_sizes, model.about.categories),
        (
            "categories of profile and request",
            vocabulary_of(spec.profile_columns, spec.features),
            model.about.vocabulary,
        ),
        ("features.max_history", spec.features.max_history, model.about.max_history),
    ):
        if got != expected:
            raise RewardError(
                f"{folder}: {what}: expected {expected} (the model's), got {got}: make reward again"
            )
    sids = load_sids(run / "tokenizer").sort("ad_id")
    model.catalogue.check(sids["ad_id"].to_numpy(), sids.drop("ad_id").to_numpy())
    return model


def write_reward_ranker(model: RewardModel, bundle: Path) -> dict[str, Any]:
    """Write graph and tables into the folder of a bundle; returns what its manifest says of them.

    Raises:
        ValueError: the model has no ONNX form.
        OSError: the disk is full or not writable.
    """
    onnx.save(ranker_graph(model), str(bundle / f"{AD_RANKER}.onnx"))
    RankerTables(model.catalogue.ad_codes, model.statistics).save(bundle)
    return {
        "kind": "reward",
        "model_id": model.id,
        "features": model.about.features,
        "target_behaviors": list(model.about.target_behaviors),
    }


def check_reward_ranker(model: RewardModel, bundle: Path, manifest: Manifest, *, seed: int = 0) -> float:
    """Largest relative error of a bundle's ranking stage against the reward model, over random requests.

    Raises:
        ParityError: it exceeds `TOLERANCE`, or is not a number.
        BundleError: the bundle's ranker cannot be used.
    """
    ranker = RewardRanker.load(bundle, manifest, OrtRankGraph(bundle))
    ranker.probe(manifest)
    random = np.random.default_rng(seed)
    requests = [_random_request(model, manifest, random) for _ in range(_REQUESTS)]
    error = 0.0
    for request, found in zip(requests, ranker.worth(requests), strict=True):
        expected = model.calibrated(ranker.features(request), None).reward
        error = max(error, float(np.abs(found / expected - 1).max()))
    if not error <= TOLERANCE:
        raise ParityError(
            f"parity: expected {AD_RANKER} within {TOLERANCE:g} of the reward model {model.id}, "
            f"got {error:g}; the bundle is not published"
        )
    return error


def _random_request(model: RewardModel, manifest: Manifest, random: np.random.Generator) -> RankRequest:
    """Of a user with some ads again and again, asked about those, about others and an unknown one."""
    catalogue = model.catalogue
    own = random.integers(0, len(catalogue.ad_ids), 12)
    past = random.choice(own, random.integers(0, _EVENTS))
    ads = np.concatenate([own, random.integers(0, len(catalogue.ad_ids), _ADS)])
    now = int(random.integers(1 << 30, 1 << 31))
    return RankRequest(
        ads=np.append(catalogue.ad_ids[ads], catalogue.ad_ids[-1] + 1),
        sids=np.concatenate([catalogue.sids[ads], catalogue.sids[ads[:1]]]),
        log_p=np.zeros(len(ads) + 1, np.float32),
        past_ads=catalogue.ad_ids[past],
        past_sids=catalogue.sids[past],
        past_behaviors=random.choice(list(BEHAVIORS.values()), len(past)),
        past_times=np.sort(now - random.integers(0, 365 * DAY_S, len(past))),
        now=now,
        profile=np.array([random.integers(0, size) for size in manifest.features.column_sizes], np.int32),
    )
