"""Ranking metrics and baselines against plain versions; the whole evaluation on a tiny log."""

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch

import training.evaluation.ranking as module
from tests.tiny_log import open_run, write_run
from training.evaluation.__main__ import format_report
from training.evaluation.metrics import personal_frequency, rank_by_count, ranking_metrics
from training.rollout.executor import TorchExecutor


def plain_metrics(ranked, targets, values, k):
    recall = ndcg = found = total = 0.0
    for r, t, v in zip(ranked, targets, values, strict=True):
        worth = dict(zip(t.tolist(), v.tolist(), strict=True))
        hits = [rank for rank, ad in enumerate(r.tolist()[:k], start=1) if ad in worth]
        recall += len(hits) / len(t)
        ndcg += sum(1 / math.log2(rank + 1) for rank in hits) / sum(
            1 / math.log2(rank + 1) for rank in range(1, min(k, len(t)) + 1)
        )
        found += sum(worth[r[rank - 1]] for rank in hits)
        total += sum(worth.values())
    return recall / len(ranked), ndcg / len(ranked), found / total


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_a_plain_loop(seed):
    random = np.random.default_rng(seed)
    ranked = [random.permutation(40)[: random.integers(0, 25)] for _ in range(30)]  # some short, some empty
    targets = [np.sort(random.permutation(40)[: random.integers(1, 12)]) for _ in range(30)]
    values = [random.random(len(t)) for t in targets]
    got = ranking_metrics(ranked, targets, values=values, cutoffs=(1, 5, 20))
    for k in (1, 5, 20):
        expected = plain_metrics(ranked, targets, values, k)
        assert [got[m][str(k)] for m in ("recall", "ndcg", "value_recall")] == pytest.approx(expected)


def test_metrics_by_hand():
    got = ranking_metrics(
        [np.array([7, 3, 9])], [np.array([3, 4])], values=[np.array([30.0, 10.0])], cutoffs=(1, 2)
    )
    assert got["recall"] == {"1": 0.0, "2": 0.5}
    assert got["ndcg"]["2"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert got["value_recall"] == {"1": 0.0, "2": 0.75}


def test_popularity_by_hand():
    assert rank_by_count(np.array([5, 2, 9, 2, 5, 2]), limit=9).tolist() == [2, 5, 9]
    assert rank_by_count(np.array([9, 5, 9, 5, 1]), limit=2).tolist() == [5, 9]  # equals by ad id
    assert rank_by_count(np.zeros(0, np.int64), limit=5).tolist() == []


def test_personal_frequency_by_hand():
    popular = np.array([1, 2, 3, 4])
    assert personal_frequency(np.array([8, 3, 8]), popular, limit=5).tolist() == [8, 3, 1, 2, 4]
    assert personal_frequency(np.array([8, 3, 8]), popular, limit=1).tolist() == [8]
    assert personal_frequency(np.zeros(0, np.int64), popular, limit=2).tolist() == [1, 2]  # cold start


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return write_run(tmp_path_factory.mktemp("log"))


def report_of(run, executor=None, *, model=None):
    preset, spec, dataset = open_run(run)
    torch.manual_seed(0)
    executor = executor or TorchExecutor((model or spec.build()).eval())
    return module.evaluate(
        executor,
        dataset,
        config=preset.evaluation,
        level_sizes=spec.level_sizes,
        target_behaviors=preset.logs.target_behaviors,
        min_history=preset.training.min_history,
        value_table=spec.value_buckets.means,
    )


def test_report_of_a_tiny_run(run):
    report = report_of(run)
    assert report["invalid_rate"] == 0
    assert report["requests"] == 30
    for metric in ("recall", "ndcg", "value_recall"):
        assert set(report[metric]) == {"model", "popularity", "personal_frequency"}
        for values in report[metric].values():
            assert list(values) == ["1", "5"]
            assert 0 <= values["1"] <= 1
    for method in report["recall"]:
        assert report["recall"][method]["1"] <= report["recall"][method]["5"]
    # users of this log repeat four ads: their own history must beat what is popular
    assert report["recall"]["personal_frequency"]["5"] > 0.9
    assert report["recall"]["popularity"]["5"] < 0.5
    assert "personal_frequency" in format_report(report)


def test_baselines_equal_counting_in_the_raw_table(run):
    preset, _, dataset = open_run(run)
    requests = module.draw_requests(
        dataset,
        target_behaviors=preset.logs.target_behaviors,
        min_history=preset.training.min_history,
        count=30,
        seed=0,
    )
    events = pl.read_parquet(run[1] / "data" / "events.parquet").filter(pl.col("behavior") == "conversion")
    split = dataset.split
    popular = Counter(events.filter(pl.col("timestamp") < split.train_end)["ad_id"].to_list())
    popular = sorted(popular, key=lambda a: (-popular[a], a))
    hits = {"popularity": [], "personal_frequency": []}
    for i, row in enumerate(requests.rows):
        user, now = int(dataset.log.user_ids[requests.groups.user_row[row]]), int(requests.groups.now[row])
        assert split.validation_end <= now < split.end
        mine = events.filter(pl.col("user_id") == user)
        target = set(mine.filter(pl.col("timestamp") == now)["ad_id"].to_list())
        assert target == set(requests.targets[i].tolist())
        own = Counter(mine.filter(pl.col("timestamp") < now)["ad_id"].to_list())
        own = sorted(own, key=lambda a: (-own[a], a))
        own += [a for a in popular if a not in own]
        for method, ranked in (("popularity", popular), ("personal_frequency", own)):
            hits[method].append(len(target & set(ranked[:5])) / len(target))
    report = report_of(run)
    for method, values in hits.items():
        assert report["recall"][method]["5"] == pytest.approx(np.mean(values))


def test_oracle_reaches_recall_one(run):
    """An engine that knows the answer gets it through beam search and look-up: the harness loses nothing."""
    preset, spec, dataset = open_run(run)
    requests = module.draw_requests(
        dataset,
        target_behaviors=preset.logs.target_behaviors,
        min_history=preset.training.min_history,
        count=30,
        seed=0,
    )
    seen = iter(requests.targets)

    class Oracle:
        def prefix(self, slots, profile):
            self.wanted = []
            for _ in range(len(slots)):
                at = np.searchsorted(dataset.ad_ids, next(seen))
                self.wanted.append({tuple(s) for s in dataset.ad_sids[at].tolist()})
            out = np.full((len(slots), spec.level_sizes[0]), -9, np.float32)
            for row, sids in enumerate(self.wanted):
                out[row, [s[0] for s in sids]] = -1
            return out, {"prefix": [[()]] * len(slots)}

        def tail(self, level, carry, *, parents, token, allowed):
            chains = [
                [
                    (*carry["prefix"][b][p if level > 2 else 0], int(c))
                    for p, c in zip(
                        parents[-1][b] if level > 2 else [0] * token.shape[1], token[b], strict=True
                    )
                ]
                for b in range(len(token))
            ]
            out = np.full(allowed.shape, -9, np.float32)
            for b, sids in enumerate(self.wanted):
                for i, chain in enumerate(chains[b]):
                    for c, code in enumerate(allowed[b, i]):
                        if any(s[:level] == (*chain, code) for s in sids):
                            out[b, i, c] = -1
            return out, {"prefix": chains}

    # Ads that share a target's SID push others back, so the cutoff must leave room for them.
    ranked, beams, invalid = module.rank_by_model(
        Oracle(),
        dataset,
        requests,
        plan=module.WidthPlan((6, 30, 60), 1),
        limit=20,
        batch_size=7,
        snapshot=module.IndexSnapshot.build(
            dataset.ad_ids, dataset.ad_sids, active=np.ones(60, bool), level_sizes=spec.level_sizes
        ),
        value_table=spec.value_buckets.means,
        progress=False,
    )
    assert beams > 0
    assert invalid == 0
    metrics = ranking_metrics(ranked, requests.targets, values=requests.values, cutoffs=(20,))
    assert metrics["recall"]["20"] == 1.0
    assert metrics["value_recall"]["20"] == pytest.approx(1.0)


def test_no_test_request(run):
    preset, _, dataset = open_run(run)
    with pytest.raises(ValueError, match="expected at least one test request, got none"):
        module.draw_requests(
            dataset, target_behaviors=preset.logs.target_behaviors, min_history=9999, count=5, seed=0
        )
