"""Ranking quality on the test weeks, by the beam search that serves: `make evaluate`.

A request is a basket of the test weeks: its history is everything strictly before it, its targets are its
ads. The whole catalogue is searched. Baselines on the same requests: global popularity (counts of the
training weeks) and the user's own most frequent ads (filled up with popular ones).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from serving.backend.resolve import NO_AD, resolve
from serving.files import write_file
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.executor import Executor
from serving.search.widths import WidthPlan
from training.checkpoint import CheckpointError, load_checkpoint
from training.data.log import TargetGroups
from training.data.prepared import load_prepared
from training.data.samples import RequestDataset, load_sids
from training.executor import TorchExecutor
from training.metrics import personal_frequency, rank_by_count, ranking_metrics
from training.plots import plot_ranking
from training.preset import ConfigError, Preset, add_preset_arguments
from training.recipes.config import EvaluationConfig


@dataclass(frozen=True)
class Requests:
    """Test requests with what they should have found."""

    groups: TargetGroups
    rows: np.ndarray
    targets: list[np.ndarray]
    values: list[np.ndarray]


def draw_requests(
    dataset: RequestDataset,
    *,
    target_behaviors: tuple[str, ...],
    min_history: int,
    count: int,
    seed: int,
) -> Requests:
    """Draw requests of the test weeks.

    Raises:
        ValueError: there is none.
    """
    groups = dataset.groups("test", target_behaviors=target_behaviors, min_history=min_history)
    if not len(groups):
        raise ValueError("expected at least one test request, got none")
    rows = np.sort(np.random.default_rng(seed).permutation(len(groups))[:count])
    targets, values = [], []
    for row in rows:
        events = dataset.targets(groups, row)
        ads, at = np.unique(dataset.log.ad_ids[events], return_inverse=True)
        targets.append(ads)
        values.append(np.bincount(at, weights=dataset.log.value[events]))
    return Requests(groups, rows, targets, values)


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
    log, codes = dataset.log, requests.groups.target_codes
    is_target = np.isin(log.behavior, codes)
    popular = rank_by_count(log.ad_ids[is_target & (log.timestamp < dataset.split.train_end)], limit=limit)
    ranked["popularity"] = [popular] * len(requests.rows)
    ranked["personal_frequency"] = [
        personal_frequency(log.ad_ids[past][is_target[past]], popular, limit=limit)
        for past in (
            slice(log.user_ptr[requests.groups.user_row[r]], requests.groups.begin[r]) for r in requests.rows
        )
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


def format_report(report: dict) -> str:
    """The figures as a text table."""
    cutoffs = list(next(iter(report["recall"].values())))
    header = f"{'':22}" + "".join(f"{m}@{k}".rjust(15) for m in ("recall", "ndcg") for k in cutoffs)
    lines = [header]
    for method in report["recall"]:
        cells = [report[m][method][k] for m in ("recall", "ndcg") for k in cutoffs]
        lines.append(f"{method:22}" + "".join(f"{c:15.4f}" for c in cells))
    lines.append(
        f"{report['requests']:,} test requests, widths {report['widths']}, "
        f"invalid rate {report['invalid_rate']:.4f}"
    )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser)
    parser.add_argument(
        "--run", required=True, type=Path, help="run folder with data/, tokenizer/ and model/"
    )
    parser.add_argument("--model", type=Path, help="folder of the checkpoint (default: RUN/model)")
    arguments = parser.parse_args()
    folder = arguments.model or arguments.run / "model"
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
        torch.set_num_threads(preset.training.threads)
        checkpoint = load_checkpoint(folder / "checkpoint")
        prepared = load_prepared(arguments.run / "data")
        dataset = RequestDataset(
            prepared, load_sids(arguments.run / "tokenizer"), spec=checkpoint.spec.features
        )
        report = evaluate(
            TorchExecutor(checkpoint.model.eval()),
            dataset,
            config=preset.evaluation,
            level_sizes=checkpoint.spec.level_sizes,
            target_behaviors=preset.logs.target_behaviors,
            min_history=preset.training.min_history,
            value_table=checkpoint.spec.value_buckets.means,
        )
    except (ConfigError, CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    report["provenance"] = prepared.tables.provenance
    write_file(folder / "evaluation.json", json.dumps(report, indent=2))
    plot_ranking(
        {m: report[m] for m in ("recall", "ndcg", "value_recall")},
        folder / "evaluation.png",
        title=f"{report['requests']:,} test requests, whole catalogue",
    )
    print(format_report(report))
    print(f"plot: {folder}/evaluation.png\n{report['provenance']}")


if __name__ == "__main__":
    main()
