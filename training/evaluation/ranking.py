"""Ads of held-out requests by the beam search that serves, and by baselines, with metrics of each."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl
from tqdm import tqdm

from serving.backend.resolve import find_ads
from serving.backend.settings import ServingConfig
from serving.model.value_correction import UNCORRECTED, ValueCorrection
from serving.search.beam_search import beam_search
from serving.search.executor import Executor
from serving.search.normalise import Normalise
from serving.search.rank import RankBy
from serving.search.widths import WidthPlan
from training.data.samples import RequestDataset
from training.evaluation.baselines import rank_by_baselines
from training.evaluation.calibration import calibration, target_values
from training.evaluation.competing import Competing
from training.evaluation.item_level import ItemLevel
from training.evaluation.metrics import ranking_metrics
from training.evaluation.requests import Requests, draw_requests
from training.evaluation.targets import recall_by_kind, target_masks
from training.model.gr4ad import Generator
from training.preset.evaluation import EvaluationConfig
from training.rollout.live import LiveIndex


@dataclass
class FoundAds:
    """What the search found.

    Attributes:
        ranked: ads of each request, best first.
        by_item: the same in the order of the item level, of a model that has one.
        beams: number of beams returned.
        invalid: how many of them are no live SID.
    """

    ranked: list[np.ndarray] = field(default_factory=list)
    by_item: list[np.ndarray] = field(default_factory=list)
    beams: int = 0
    invalid: int = 0


def rank_by_model(
    executor: Executor,
    requests: Requests,
    *,
    competing: Competing,
    level_sizes: tuple[int, ...],
    plan: WidthPlan,
    limit: int,
    batch_size: int,
    value_table: np.ndarray,
    value_correction: ValueCorrection = UNCORRECTED,
    normalise: tuple[Normalise, ...] | None = None,
    rank_by: RankBy = "probability",
    item_level: ItemLevel | None = None,
    item_pool: int = 0,
    progress: bool = True,
) -> FoundAds:
    """Ads of each request, best first.

    A batch is searched in the index as of its last request; of it, each request leaves out what it has seen
    and what was created after it, as `exclude_ad_ids` does in serving, and goes only where ads are for it.

    Args:
        executor: engine.
        requests: the oldest first.
        competing: which ads may be answers.
        level_sizes: of the SIDs.
        plan: widths.
        limit: most ads of a request.
        batch_size: requests a search.
        value_table: mean of each value bucket.
        value_correction: of expected values.
        normalise: of each level, see `beam_search`.
        rank_by: of the ads, as in serving.
        item_level: orders the best ads once more; None for a model without one.
        item_pool: so many of them.
        progress: show how far it is.
    """
    dataset, found = competing.dataset, FoundAds()
    index = LiveIndex(dataset, competing.live, level_sizes=level_sizes, audiences=competing.audiences)
    for start in tqdm(
        range(0, len(requests.rows), batch_size),
        desc="evaluate",
        unit="batch",
        file=sys.stderr,
        mininterval=2.0,
        disable=not progress,
    ):
        batch = range(start, min(start + batch_size, len(requests.rows)))
        snapshot = index.at(int(requests.now[batch[-1]]))
        excluded = [index.but(competing.there(requests, i)) for i in batch]
        terms = [competing.terms(requests, i) for i in batch]
        slots, profile = dataset.context(requests.groups, requests.rows[batch.start : batch.stop])
        beams = beam_search(
            executor,
            snapshot.trie,
            slots,
            profile,
            plan=plan,
            value_table=value_table,
            value_correction=value_correction,
            num_results=np.full(len(slots), limit),
            banned=[snapshot.banned_leaves(ads, t) for ads, t in zip(excluded, terms, strict=True)],
            eligible=None if competing.audiences is None else [snapshot.eligible(t) for t in terms],
            normalise=normalise,
        )
        pools = []
        for row, exclude in enumerate(excluded):
            sids = beams.sids[row][beams.leaves[row] >= 0]
            found.beams += len(sids)
            found.invalid += int((snapshot.leaves_of(sids) < 0).sum())
            ads = find_ads(
                snapshot,
                beams.sids[row],
                scores=beams.scores[row],
                expected_value=beams.expected_value[row],
                num_ads=max(limit, item_pool if item_level else 0),
                exclude=exclude,
                rank_by=rank_by,
                terms=terms[row],
            )
            found.ranked.append(ads.ad_ids[:limit])
            pools.append(ads.take(np.arange(min(len(ads.ad_ids), item_pool))))
        if item_level is not None:
            found.by_item += [ads[:limit] for ads in item_level.order(pools, first=batch.start)]
    return found


class Rankings(NamedTuple):
    """Ads of held-out requests by every method.

    Attributes:
        drawn: requests as they were drawn.
        requests: those of them that have an answer, with the targets that compete.
        left_out: how many requests and targets do not, by reason.
        ranked: method (`model`, then its item level where it has one, then baselines) -> for each request,
            distinct ads, best first.
        beams: that the model's searches returned.
        invalid: how many of them are no live SID.
        audiences: what they leave of the ads, see `Competing.shares`.
    """

    drawn: Requests
    requests: Requests
    left_out: dict[str, int]
    ranked: dict[str, list[np.ndarray]]
    beams: int
    invalid: int
    audiences: dict[str, float] | None


def rank_by_all(
    executor: Executor,
    dataset: RequestDataset,
    *,
    ads: pl.DataFrame,
    config: EvaluationConfig,
    level_sizes: tuple[int, ...],
    target_behaviors: tuple[str, ...],
    min_history: int,
    value_table: np.ndarray,
    value_correction: ValueCorrection = UNCORRECTED,
    model: Generator | None = None,
    serving: ServingConfig | None = None,
) -> Rankings:
    """Draw requests, and rank by model and baselines; arguments of `evaluate`."""
    competing = Competing.of(dataset, ads, exclude_seen=config.exclude_seen, serving=serving)
    drawn = draw_requests(
        dataset,
        target_behaviors=target_behaviors,
        min_history=min_history,
        count=config.requests,
        seed=config.seed,
        part=config.part,
    )
    requests, left_out = competing.answerable(drawn)
    limit = max(config.cutoffs)
    item_level = None if model is None or model.item is None else ItemLevel(model, dataset, requests)
    found = rank_by_model(
        executor,
        requests,
        competing=competing,
        level_sizes=level_sizes,
        plan=WidthPlan.parse(config.widths, levels=len(level_sizes)),
        limit=limit,
        batch_size=config.batch_size,
        value_table=value_table,
        value_correction=value_correction,
        normalise=config.levels_normalised(len(level_sizes)),
        rank_by=config.rank_by,
        item_level=item_level,
        item_pool=config.item_pool,
    )
    by_item = {}
    if item_level is not None:
        by_item = {
            "item_level": found.by_item,
            "item_level_all": item_level.order_all(competing, limit=limit),
        }
    baselines = rank_by_baselines(
        dataset,
        requests,
        competing=competing,
        target_behaviors=target_behaviors,
        recent_days=config.recent_days,
        half_life_days=config.half_life_days,
        limit=limit,
    )
    return Rankings(
        drawn=drawn,
        requests=requests,
        left_out=left_out,
        ranked={"model": found.ranked} | by_item | baselines,
        beams=found.beams,
        invalid=found.invalid,
        audiences=competing.shares(requests),
    )


def evaluate(
    executor: Executor,
    dataset: RequestDataset,
    *,
    ads: pl.DataFrame,
    config: EvaluationConfig,
    level_sizes: tuple[int, ...],
    target_behaviors: tuple[str, ...],
    min_history: int,
    value_table: np.ndarray,
    value_correction: ValueCorrection = UNCORRECTED,
    model: Generator | None = None,
    serving: ServingConfig | None = None,
) -> dict:
    """Metrics of model and baselines, targets left out, calibration, share of beams that are not live SIDs.

    Args:
        executor: engine of the model.
        dataset: log and histories.
        ads: table of the ads, for `status`, `created_at` and `audience`.
        config: section `evaluation`.
        level_sizes: of the SIDs.
        target_behaviors: names of the behaviors that make a target.
        min_history: events before a request.
        value_table: mean of each value bucket.
        value_correction: of expected values.
        model: whose item level, where it has one, is reported beside.
        serving: section `serving`, by which requests are told apart where ads have audiences; None where they
            are not, and such ads compete for nobody.

    Raises:
        ValueError: no request, or no target that competes.
    """
    found = rank_by_all(
        executor,
        dataset,
        ads=ads,
        config=config,
        level_sizes=level_sizes,
        target_behaviors=target_behaviors,
        min_history=min_history,
        value_table=value_table,
        value_correction=value_correction,
        model=model,
        serving=serving,
    )
    requests, ranked = found.requests, found.ranked
    report: dict = {
        "part": config.part,
        "requests": len(requests.rows),
        "left_out": found.left_out,
        "exclude_seen": config.exclude_seen,
        "rank_by": config.rank_by,
        "widths": config.widths,
        "invalid_rate": found.invalid / max(found.beams, 1),
        "recall": {},
        "ndcg": {},
        "value_recall": {},
    }
    if found.audiences is not None:
        report["audiences"] = found.audiences
    if "item_level" in ranked:
        report["item_pool"] = config.item_pool
    masks = target_masks(dataset, requests)
    report["recall_of"] = recall_by_kind(ranked, requests, masks=masks, cutoffs=config.cutoffs)
    # Of all targets of the drawn requests, also those that may not be answers: they were worth something.
    report["calibration"] = calibration(
        target_values(
            executor,
            dataset,
            groups=found.drawn.groups,
            rows=found.drawn.rows,
            value_table=value_table,
            correction=value_correction,
            batch_size=config.batch_size,
        )
    )
    for method, lists in ranked.items():
        metrics = ranking_metrics(lists, requests.targets, values=requests.values, cutoffs=config.cutoffs)
        for name, values in metrics.items():
            report[name][method] = values
    return report
