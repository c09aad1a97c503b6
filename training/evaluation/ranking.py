"""Ads of test requests by the beam search that serves, and by two baselines, with metrics of each."""

from __future__ import annotations

import sys

import numpy as np
from tqdm import tqdm

from serving.backend.resolve import NO_AD, resolve
from serving.index.snapshot import IndexSnapshot
from serving.model.features import BEHAVIORS
from serving.search.beam_search import beam_search
from serving.search.executor import Executor
from serving.search.widths import WidthPlan
from training.data.parts import TRAIN
from training.data.samples import RequestDataset
from training.evaluation.metrics import personal_frequency, rank_by_count, ranking_metrics
from training.evaluation.requests import Requests, draw_requests
from training.preset.evaluation import EvaluationConfig


def rank_by_model(
    executor: Executor,
    dataset: RequestDataset,
    requests: Requests,
    *,
    snapshot: IndexSnapshot,
    plan: WidthPlan,
    limit: int,
    batch_size: int,
    value_table: np.ndarray,
    progress: bool = True,
) -> tuple[list[np.ndarray], int, int]:
    """Ads of each request, best first; the number of beams returned, and of those that are no live SID."""
    ranked, beams_seen, invalid = [], 0, 0
    none = np.zeros(0, np.int64)
    for start in tqdm(
        range(0, len(requests.rows), batch_size),
        desc="evaluate",
        unit="batch",
        file=sys.stderr,
        mininterval=2.0,
        disable=not progress,
    ):
        slots, profile = dataset.context(requests.groups, requests.rows[start : start + batch_size])
        beams = beam_search(
            executor,
            snapshot.trie,
            slots,
            profile,
            plan=plan,
            value_table=value_table,
            num_results=np.full(len(slots), limit),
        )
        for row in range(len(slots)):
            sids = beams.sids[row][beams.leaves[row] >= 0]
            beams_seen += len(sids)
            invalid += int((snapshot.leaves_of(sids) < 0).sum())
            ads = resolve(
                snapshot,
                beams.sids[row],
                scores=beams.scores[row],
                expected_value=beams.expected_value[row],
                num_ads=limit,
                exclude=none,
            ).ad_ids
            ranked.append(ads[ads != NO_AD])
    return ranked, beams_seen, invalid


def evaluate(
    executor: Executor,
    dataset: RequestDataset,
    *,
    config: EvaluationConfig,
    level_sizes: tuple[int, ...],
    target_behaviors: tuple[str, ...],
    min_history: int,
    value_table: np.ndarray,
) -> dict:
    """Metrics of model and baselines, and the share of returned beams that are not live SIDs."""
    requests = draw_requests(
        dataset,
        target_behaviors=target_behaviors,
        min_history=min_history,
        count=config.requests,
        seed=config.seed,
    )
    snapshot = IndexSnapshot.build(
        dataset.ad_ids, dataset.ad_sids, active=np.ones(len(dataset.ad_ids), bool), level_sizes=level_sizes
    )
    limit = max(config.cutoffs)
    ranked = {}
    ranked["model"], beams, invalid = rank_by_model(
        executor,
        dataset,
        requests,
        snapshot=snapshot,
        plan=WidthPlan.parse(config.widths, levels=len(level_sizes)),
        limit=limit,
        batch_size=config.batch_size,
        value_table=value_table,
    )
    log = dataset.log
    wanted = np.isin(log.behavior, [BEHAVIORS[name] for name in target_behaviors])
    known = log.outcomes(wanted & (dataset.parts.event == TRAIN))
    popular = rank_by_count(log.ad_ids[known], limit=limit)
    ranked["popularity"] = [popular] * len(requests.rows)
    pasts = (dataset.history(requests.groups, row) for row in requests.rows)
    ranked["personal_frequency"] = [
        personal_frequency(log.ad_ids[past[wanted[past]]], popular, limit=limit) for past in pasts
    ]
    report: dict = {
        "requests": len(requests.rows),
        "widths": config.widths,
        "invalid_rate": invalid / max(beams, 1),
        "recall": {},
        "ndcg": {},
        "value_recall": {},
    }
    for method, lists in ranked.items():
        metrics = ranking_metrics(lists, requests.targets, values=requests.values, cutoffs=config.cutoffs)
        for name, values in metrics.items():
            report[name][method] = values
    return report
