"""A small reward model over most of the tiny catalogue, and a tiny deployment that ranks with it."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from export.bundle import write_bundle
from export.ranker import RankedBy
from export.render import render
from serving.backend.settings import ServingConfig
from serving.model.features import BEHAVIORS
from serving.ranking.ad_codes import AD, KEYS, LEVELS
from serving.ranking.features import Features, Request, feature_set, features_of
from serving.ranking.ranker import RankRequest
from serving.ranking.statistics import AdStatistics, names
from tests.pipeline import Pipeline, checkpoint, exported
from tests.tiny import SPEC, tiny_catalogue
from training.loop.checkpoint import Checkpoint
from training.preset.reward import RewardConfig
from training.reward.calibration import Calibration
from training.reward.catalogue import Catalogue
from training.reward.neural import Neural
from training.reward.reward_model import About, RewardModel, vocabulary_of
from training.reward.rows import Rows
from training.reward.trees import Trees

NOW = 1_700_000_000
PROFILE = {"age": ("old", "young"), "region": ("east", "north", "west")}
NEW = 8  # ads of the tiny catalogue that came after the fit
CONFIG = RewardConfig(trees=25, leaves=6, tree_rate=0.2, width=8, epochs=3, learning_rate=0.02, folds=2)


def random_request(seed: int, *, ads: int = 20, events: int = 14, known: int | None = None) -> RankRequest:
    """Ads of the tiny catalogue and a history of few of them, again and again; of its first `known` ads."""
    random = np.random.default_rng(seed)
    ad_ids, sids, _ = tiny_catalogue()
    own = random.choice(len(ad_ids) if known is None else known, 6)
    past, asked = random.choice(own, events), random.permutation(len(ad_ids) if known is None else known)
    asked = np.concatenate([own, asked])[:ads]
    return RankRequest(
        ads=ad_ids[asked],
        sids=sids[asked],
        log_p=-5 * random.random(len(asked), np.float32),
        past_ads=ad_ids[past],
        past_sids=sids[past],
        past_behaviors=random.integers(1, 4, events).astype(np.int32),
        past_times=np.sort(NOW - random.integers(0, 10_000_000, events)),
        now=NOW,
        profile=np.array([random.integers(0, size) for size in SPEC.column_sizes], np.int32),
    )


def tiny_reward_model(*, serves: str = "trees", tokenizer_id: str = "t1") -> RewardModel:
    """Fitted on made-up outcomes: who had an ad often and long ago has it again."""
    model = _fitted()
    about = About(**{**vars(model.about), "serves": serves, "tokenizer_id": tokenizer_id})
    return RewardModel(
        about, model.catalogue, statistics=model.statistics, rankers=model.rankers, model_id="0" * 16
    )


@functools.cache
def _fitted() -> RewardModel:
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    ad_ids, sids, _ = tiny_catalogue()
    ad_ids, sids = ad_ids[:-NEW], sids[:-NEW]
    codes = np.full((len(ad_ids), len(KEYS)), -1, np.int32)
    codes[:, AD] = np.arange(len(ad_ids))
    for key, kinds in (("item", 40), ("text", 30), ("account", 5)):
        codes[:, KEYS.index(key)] = random.integers(-1, kinds, len(ad_ids))
    for key, length in LEVELS.items():
        codes[:, key] = np.unique(sids[:, :length], axis=0, return_inverse=True)[1].ravel()
    catalogue = Catalogue(ad_ids, sids, codes)
    sizes = dict(zip(KEYS, catalogue.sizes, strict=True))
    statistics = AdStatistics(
        {n: random.exponential(2, sizes[n.partition(".")[2]] + 1).astype(np.float32) for n in names()}
    )
    rankers: dict[str, list] = {"trees": [], "neural": []}
    for fold in range(CONFIG.folds):
        rows, held_out = (_rows(catalogue, statistics, seed=1000 * (2 * fold + part)) for part in (0, 1))
        config = CONFIG.model_copy(update={"seed": fold})
        rankers["trees"].append(Trees.fit(rows, held_out, config))
        rankers["neural"].append(Neural.fit(rows, held_out, config, categories=SPEC.column_sizes))
    about = About(
        serves="trees",
        features=feature_set(SPEC.column_sizes),
        categories=SPEC.column_sizes,
        vocabulary=vocabulary_of(PROFILE, SPEC),
        max_history=SPEC.max_history,
        target_behaviors=("click", "conversion"),
        tokenizer_id="t1",
        folds=CONFIG.folds,
        seed=0,
        statistics_weeks=1,
        width=CONFIG.width,
        calibration={
            "trees": Calibration(0.9, -0.3, 1.1),
            "neural": Calibration(1.2, 0.1, 0.8),
            "mean": Calibration(1.0, -0.2, 0.9),
        },
    )
    return RewardModel(about, catalogue, statistics=statistics, rankers=rankers)


def expected_features(model: RewardModel, request: RankRequest) -> Features:
    """As training makes them: numbers of a table of all ads, by the row of each."""
    ad_ids, sids, _ = tiny_catalogue()
    table = model.catalogue.ad_codes.of(ad_ids, sids)
    row = {ad: i for i, ad in enumerate(ad_ids.tolist())}
    past = table[[row[ad] for ad in request.past_ads.tolist()]].reshape(-1, len(KEYS))
    wanted = [BEHAVIORS[name] for name in model.about.target_behaviors]
    had = np.array([behavior in wanted for behavior in request.past_behaviors.tolist()], bool)
    told = Request(
        codes=past[had],
        times=request.past_times[had],
        seen_codes=past[:, AD],
        seen_times=request.past_times,
        now=request.now,
        profile=request.profile,
    )
    asked = table[[row[ad] for ad in request.ads.tolist()]].reshape(-1, len(KEYS))
    return features_of(told, asked, statistics=model.statistics)


class Judge(Protocol):
    """What ranks, by another program than the one that serves."""

    def __call__(self, request: RankRequest) -> np.ndarray:
        """Worth of each ad of a request."""
        ...


def reward_deployment(
    pipeline: Pipeline, folder: Path, *, config: ServingConfig, serves: str = "trees"
) -> tuple[Pipeline, RewardModel]:
    """The tiny deployment with a reward model in its bundle, rendered with a config."""
    model = tiny_reward_model(serves=serves, tokenizer_id=pipeline.tokenizer_id)
    start = checkpoint(tokenizer_id=pipeline.tokenizer_id)
    return ranked_deployment(pipeline, folder, config=config, start=start, ranker=model), model


def ranked_deployment(
    pipeline: Pipeline, folder: Path, *, config: ServingConfig, start: Checkpoint, ranker: RankedBy
) -> Pipeline:
    """The tiny deployment with a ranker in its bundle, rendered with a config."""
    deployment = Pipeline(folder, pipeline.tokenizer_id)
    for name in ("index", "tokenizer"):
        shutil.copytree(getattr(pipeline, name), getattr(deployment, name))
    with exported(pipeline.bundles / "1"):
        write_bundle(
            start,
            deployment.bundles,
            tokenizer=deployment.tokenizer,
            ranker=ranker,
        )
    render(deployment.bundles, deployment.repository, index=deployment.index, config=config)
    return deployment


def reward_judge(model: RewardModel) -> Judge:
    """p x value of a reward model."""
    return lambda request: model.calibrated(expected_features(model, request), None).reward


def _rows(catalogue: Catalogue, statistics: AdStatistics, *, seed: int) -> Rows:
    random = np.random.default_rng(seed)
    model = RewardModel(_NOBODY, catalogue, statistics=statistics, rankers={})
    found = [
        expected_features(model, random_request(seed + i, known=len(catalogue.ad_ids))) for i in range(60)
    ]
    features = Features.join(found)
    count = len(features.value)
    chance = 1 / (1 + np.exp(1.5 - 2 * features.numbers[:, 0] - 0.3 * features.numbers[:, -1] / 7))
    had = random.random(count) < chance
    value = np.where(had, features.value * random.exponential(1, count), 0).astype(np.float32)
    request = np.repeat(np.arange(len(found)), [len(of.value) for of in found])
    return Rows(
        features, had, value=value, weight=np.ones(count), request=request, fold=np.zeros(count, np.int8)
    )


_NOBODY = About(
    serves="trees",
    features="",
    categories=SPEC.column_sizes,
    vocabulary="",
    max_history=SPEC.max_history,
    target_behaviors=("click", "conversion"),
    tokenizer_id="",
    folds=2,
    seed=0,
    statistics_weeks=1,
    width=8,
    calibration={},
)
