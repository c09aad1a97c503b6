"""Ranking metrics and baselines against plain versions; the whole evaluation on a tiny log."""

import json
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

import training.evaluation.__main__ as command
from serving.inputs import Inputs
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.tiny_log import CONFIG, DAY, open_run, run_of, write_run
from training.evaluation.__main__ import format_report
from training.evaluation.baselines import best, fill_up, window_counts
from training.evaluation.compared import compared
from training.evaluation.competing import Competing
from training.evaluation.metrics import ranking_metrics
from training.evaluation.ranking import evaluate, rank_by_model
from training.evaluation.requests import draw_requests
from training.evaluation.targets import recall_by_kind, target_masks
from training.preset.preset import ConfigError
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


def test_best_of_scores_by_hand():
    everything = np.ones(5, bool)
    assert best(np.array([0, 3, 1, 3, 2]), everything, limit=9).tolist() == [
        1,
        3,
        4,
        2,
    ]  # none without a score
    assert best(np.array([2, 3, 2, 3, 2]), everything, limit=3).tolist() == [1, 3, 0]  # equals by row
    assert best(np.array([2, 3, 2, 3, 2]), ~np.eye(5, dtype=bool)[1], limit=3).tolist() == [3, 0, 2]
    assert best(np.zeros(5), everything, limit=3).tolist() == []


def test_filling_up_by_hand():
    popular = np.array([1, 2, 3, 4])
    assert fill_up(np.array([8, 3]), popular, limit=5).tolist() == [8, 3, 1, 2, 4]
    assert fill_up(np.array([8, 3]), popular, limit=1).tolist() == [8]
    assert fill_up(np.zeros(0, np.int64), popular, limit=2).tolist() == [1, 2]  # cold start


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return write_run(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def explorers(tmp_path_factory):
    """A log whose users go back to some ads, and look at others for the first time, not always buying."""
    random = np.random.default_rng(1)
    names = ["user_id", "ad_id", "timestamp", "behavior", "value", "provenance"]
    rows = [
        (user, ad, day * DAY + user, behavior, float(random.integers(1, 9)), "made up")
        for user in range(12)
        for day in range(0, 49, 2)
        for ad, behavior in {
            int(random.zipf(1.3)) % 60: "conversion",
            int(random.integers(60)): "click",
        }.items()
    ]
    events = pl.DataFrame(rows, schema=names, orient="row")
    return run_of(tmp_path_factory.mktemp("explorers"), events, users=12, config=CONFIG)


METHODS = {
    "model",
    "popularity",
    "recent_popularity",
    "personal_frequency",
    "recent_frequency",
    "co_occurrence",
}


def ads_of(run) -> pl.DataFrame:
    return pl.read_parquet(run[1] / "data" / "ads.parquet")


def report_of(run, *overrides, ads=None, executor=None):
    preset, spec, dataset = open_run(run, *overrides)
    torch.manual_seed(0)
    return evaluate(
        executor or TorchExecutor(spec.build().eval()),
        dataset,
        ads=ads_of(run) if ads is None else ads,
        config=preset.evaluation,
        level_sizes=spec.level_sizes,
        target_behaviors=preset.logs.target_behaviors,
        min_history=preset.training.min_history,
        value_table=spec.value_buckets.means,
        serving=preset.serving,
    )


def requests_of(run, part="test"):
    preset, _, dataset = open_run(run)
    return draw_requests(
        dataset,
        target_behaviors=preset.logs.target_behaviors,
        min_history=preset.training.min_history,
        count=30,
        seed=0,
        part=part,
    )


def test_report_of_a_tiny_run(run):
    report = report_of(run)
    assert report["invalid_rate"] == 0
    assert report["requests"] == 30
    assert set(report["left_out"].values()) == {0}
    for metric in ("recall", "ndcg", "value_recall"):
        assert set(report[metric]) == METHODS
        for values in report[metric].values():
            assert list(values) == ["1", "5"]
            assert 0 <= values["1"] <= 1
    for method in report["recall"]:
        assert report["recall"][method]["1"] <= report["recall"][method]["5"]
    # users of this log repeat four ads: their own history must beat what is popular
    assert report["recall"]["personal_frequency"]["5"] > 0.9
    assert report["recall"]["popularity"]["5"] < 0.5
    assert report["recall_of"]["cold"] == {"targets": 0, "recall": {}}
    recall = report["recall"]
    beside = compared(json.loads(json.dumps(report)))
    assert beside["recall_vs_personal"]["5"] == recall["model"]["5"] / recall["personal_frequency"]["5"]
    assert beside["recall50_vs_popularity"] is None  # no such cut-off
    text = format_report(report)
    assert "cold" not in text
    for metric in ("recall", "ndcg", "value_recall"):
        for method, values in report[metric].items():
            assert "".join(f"{v:10.4f}" for v in values.values()) in text, (metric, method)


def some_ads(ads: pl.DataFrame) -> pl.DataFrame:
    """Every seventh paused, and every fifth created in the last two days of the log."""
    number = pl.int_range(pl.len())
    return ads.with_columns(
        status=pl.when(number % 7 == 0).then(pl.lit("paused")).otherwise("status"),
        created_at=pl.when(number % 5 == 0).then(47 * DAY + 3600 * (number % 3)).otherwise("created_at"),
    )


AUDIENCES = (
    None,
    '{"where":{"age":{"in":["old"]}}}',
    f'{{"start":{47 * DAY}}}',
    f'{{"end":{47 * DAY},"where":{{"age":{{"not_in":["old"]}}}}}}',
    '{"where":{"place":{"not_in":["feed"]}}}',  # an attribute, which no log has
)
RESTRICTED = ('serving.audience="on"', "serving.attributes={place: [feed, story]}")


def with_audiences(ads: pl.DataFrame) -> pl.DataFrame:
    """One of `AUDIENCES` each."""
    return ads.with_columns(audience=pl.Series([AUDIENCES[ad % 5] for ad in ads["ad_id"]], dtype=pl.String))


def may_see(ad: int, *, user: int, now: int) -> bool:
    """The same in plain words: even users are old, see `run_of`."""
    old, later = user % 2 == 0, now >= 47 * DAY
    return (True, old, later, not later and not old, False)[ad % 5]


def ranked(counts, allowed) -> list[int]:
    return sorted((ad for ad in counts if counts[ad] > 0 and ad in allowed), key=lambda ad: (-counts[ad], ad))


@pytest.mark.parametrize("part", ["test", "validation"])
@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("restricted", [False, True])
def test_baselines_equal_counting_in_the_raw_table(explorers, part, exclude_seen, restricted):
    """Loops over the raw events, ad by ad and request by request."""
    *_, dataset = open_run(explorers)
    ads = some_ads(ads_of(explorers))
    ads = with_audiences(ads) if restricted else ads
    created, active = (dict(ads.select("ad_id", c).iter_rows()) for c in ("created_at", "status"))
    requests, days = requests_of(explorers, part), 3
    table = pl.read_parquet(explorers[1] / "data" / "events.parquet")
    events = table.filter(pl.col("behavior") == "conversion")
    training = events.filter(pl.col("timestamp") < dataset.split.train_end)
    popular = Counter(training["ad_id"].to_list())
    users = {ad: set(training.filter(pl.col("ad_id") == ad)["user_id"]) for ad in range(60)}
    found = {name: [] for name in METHODS - {"model"}}
    left_out, shares = Counter(), []
    for i, row in enumerate(requests.rows):
        user, now = int(dataset.log.user_ids[requests.groups.user_row[row]]), int(requests.groups.now[row])
        mine, before = pl.col("user_id") == user, pl.col("timestamp") < now
        wanted = set(events.filter(mine, pl.col("timestamp") == now)["ad_id"])
        assert wanted == set(requests.targets[i].tolist())
        seen = set(table.filter(mine, before)["ad_id"]) if exclude_seen else set()
        allowed = {ad for ad in range(60) if active[ad] == "active" and created[ad] <= now} - seen
        there = len(allowed)
        if restricted:
            left_out["audience"] += len(wanted & {a for a in allowed if not may_see(a, user=user, now=now)})
            allowed = {ad for ad in allowed if may_see(ad, user=user, now=now)}
        left_out["targets"] += len(wanted - allowed)
        if not wanted & allowed:
            left_out["requests"] += 1
            continue
        shares.append(len(allowed) / there)
        own, lately = Counter(events.filter(mine, before)["ad_id"]), Counter()
        for ad, time in events.filter(mine, before).select("ad_id", "timestamp").iter_rows():
            lately[ad] += 0.5 ** ((now - time) / (4 * DAY))
        recent = Counter(events.filter(before, pl.col("timestamp") >= now - days * DAY)["ad_id"])
        together = {
            ad: round(
                sum(len(users[h] & users[ad]) / len(users[h]) for h in own if h != ad and users[h]),
                9,
            )
            for ad in range(60)
        }
        first = ranked(popular, allowed)
        for name, counts in (
            ("popularity", popular),
            ("recent_popularity", recent),
            ("personal_frequency", own),
            ("recent_frequency", lately),
            ("co_occurrence", together),
        ):
            order = ranked(counts, allowed)
            order += [ad for ad in first if ad not in order]
            found[name].append(len(wanted & allowed & set(order[:5])) / len(wanted & allowed))
    options = [f"evaluation.part={part}", f"evaluation.exclude_seen={exclude_seen}"]
    options += [f"evaluation.recent_days={days}", "evaluation.half_life_days=4"]
    report = report_of(explorers, *options, *(RESTRICTED if restricted else ()), ads=ads)
    assert left_out["targets"] > 0
    assert ("audiences" in report) == ("audience" in report["left_out"]) == restricted
    if restricted:
        assert report["left_out"]["audience"] == left_out["audience"] > 0
        assert report["audiences"] == {"ads": 0.8, "eligible": pytest.approx(np.mean(shares))}
        line = f"80.0% of the ads have an audience; a request may be shown {np.mean(shares):.1%}"
        assert line in format_report(report)
    assert report["left_out"].pop("requests") == left_out["requests"]
    assert sum(report["left_out"].values()) == left_out["targets"]
    assert report["requests"] == 30 - left_out["requests"]
    for method, values in found.items():
        assert report["recall"][method]["5"] == pytest.approx(np.mean(values)), method


def test_events_of_a_window_are_counted_for_ascending_times_and_no_others():
    random = np.random.default_rng(0)
    times, rows = random.integers(0, 50, 200), random.integers(0, 7, 200)

    def counted(now):
        return [c.copy() for c in window_counts(times, rows, now=np.array(now), seconds=10, ads=7)]

    asked = [0, 3, 3, 20, 49, 90]
    for now, found in zip(asked, counted(asked), strict=True):
        for ad, count in enumerate(found):
            assert count == sum(now - 10 <= t < now for t, a in zip(times, rows, strict=True) if a == ad)
    with pytest.raises(ValueError, match="expected `now` ascending, got 19 after 20 in row 2"):
        counted([3, 20, 19, 25])


def test_new_and_cold_targets_equal_counting_in_the_raw_table(tmp_path):
    """Each user buys ad 0 every day, an ad of the day, and ads 50.. in the last weeks only."""
    rows = [
        (user, ad, day * DAY + user, "conversion", 1.0, "made up")
        for user in range(6)
        for day in range(49)
        for ad in {0, 1 + (user * 7 + day) % 40, 50 + (user + day // 4) % 5 if day > 40 else 0}
    ]
    names = ["user_id", "ad_id", "timestamp", "behavior", "value", "provenance"]
    table = pl.DataFrame(rows, schema=names, orient="row")
    run = run_of(tmp_path, table, users=6, config=CONFIG)
    *_, dataset = open_run(run)
    requests = requests_of(run)
    masks = target_masks(dataset, requests)
    trained = set(table.filter(pl.col("timestamp") < dataset.split.train_end)["ad_id"])
    ranked = [np.array([50, 0, 7, 51])] * len(requests.rows)
    hits, counts = Counter(), Counter()
    for i, row in enumerate(requests.rows):
        user, now = int(dataset.log.user_ids[requests.groups.user_row[row]]), int(requests.groups.now[row])
        before = set(table.filter(pl.col("user_id") == user, pl.col("timestamp") < now)["ad_id"])
        for at, ad in enumerate(requests.targets[i].tolist()):
            kinds = {"repeat": ad in before, "new_to_user": ad not in before, "cold": ad not in trained}
            for kind, holds in kinds.items():
                assert masks[kind][i][at] == holds, (kind, i, ad)
                counts[kind] += holds
                hits[kind] += holds and ad in (50, 0)
    assert counts["cold"] > counts["new_to_user"] > 0  # bought again within the test weeks
    report = recall_by_kind({"these": ranked}, requests, masks=masks, cutoffs=(2, 4))
    for kind, count in counts.items():
        assert report[kind]["targets"] == count
        assert report[kind]["recall"]["these"]["2"] == pytest.approx(hits[kind] / count)


def exhaustive(spec, dataset, requests, *, ads, seen, by):
    """Ads of each request by the model's own p of every ad, and p x v; the whole catalogue, one by one."""
    restricted, users = (
        "audience" in ads.columns,
        dataset.log.user_ids[requests.groups.user_row[requests.rows]],
    )
    torch.manual_seed(0)
    executor = TorchExecutor(spec.build().eval())
    rankings = []
    for i, row in enumerate(requests.rows):
        slots, profile = dataset.context(requests.groups, np.array([row]))
        worth = {}
        for ad, sid in zip(dataset.ad_ids.tolist(), dataset.ad_sids, strict=True):
            logprob, carry = executor.prefix(slots, profile)
            score, only = float(logprob[0, sid[0]]), np.zeros((1, 1), np.int32)  # beam of one
            for level in range(2, len(sid) + 2):
                token = np.array([[sid[level - 2]]], np.int32)
                codes = len(spec.value_buckets.means) if level > len(sid) else spec.level_sizes[level - 1]
                every = np.arange(codes, dtype=np.int32)[None, None]
                found, carry = executor.tail(
                    level,
                    carry,
                    parents=[only] * (level - 2),
                    token=token,
                    allowed=every,
                )
                if level <= len(sid):
                    score += float(found[0, 0, sid[level - 1]])
            value = float(np.exp(found[0, 0]) @ spec.value_buckets.means)
            worth[ad] = math.exp(score) * (value if by == "value" else 1)
        now = int(requests.now[i])
        live = ads.filter((pl.col("status") == "active") & (pl.col("created_at") <= now))["ad_id"].to_list()
        user = int(users[i])
        mine = [ad for ad in live if not restricted or may_see(ad, user=user, now=now)]
        rankings.append(sorted((ad for ad in mine if ad not in seen[i]), key=lambda ad: (-worth[ad], ad)))
    return rankings


def ranked_by_model(spec, requests, **options):
    """What a model with seeded weights finds."""
    torch.manual_seed(0)
    return rank_by_model(
        TorchExecutor(spec.build().eval()),
        requests,
        level_sizes=spec.level_sizes,
        value_table=spec.value_buckets.means,
        progress=False,
        **options,
    )


@pytest.mark.parametrize("by", ["probability", "value"])
@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("restricted", [False, True])
def test_the_model_ranks_what_competes_as_an_exhaustive_search(explorers, by, exclude_seen, restricted):
    preset, spec, dataset = open_run(explorers, *(RESTRICTED if restricted else ()))
    ads = some_ads(ads_of(explorers))
    ads = with_audiences(ads) if restricted else ads
    competing = Competing.of(dataset, ads, exclude_seen=exclude_seen, serving=preset.serving)
    requests, _ = competing.answerable(requests_of(explorers))
    requests = replace(requests, rows=requests.rows[-8:])
    table = pl.read_parquet(explorers[1] / "data" / "events.parquet")
    users = dataset.log.user_ids[requests.groups.user_row[requests.rows]]
    seen = [
        set(table.filter(pl.col("user_id") == user, pl.col("timestamp") < now)["ad_id"])
        if exclude_seen
        else set()
        for user, now in zip(users.tolist(), requests.now.tolist(), strict=True)
    ]
    plan = WidthPlan((6, 30, 60), 60)
    found = ranked_by_model(
        spec, requests, competing=competing, plan=plan, limit=12, batch_size=3, rank_by=by
    )
    wanted = exhaustive(spec, dataset, requests, ads=ads, seen=seen, by=by)
    for got, expected in zip(found.ranked, wanted, strict=True):
        assert got.tolist() == expected[:12]


def test_narrow_searches_go_only_where_ads_are_for_the_request(explorers):
    """As many as are asked for, or all that the request may be shown; filtering afterwards leaves few."""
    preset, spec, dataset = open_run(explorers, *RESTRICTED)
    ads = with_audiences(some_ads(ads_of(explorers)))
    competing = Competing.of(dataset, ads, exclude_seen=False, serving=preset.serving)
    requests, _ = competing.answerable(requests_of(explorers))
    plan = WidthPlan((2, 2, 2), 1)
    found = ranked_by_model(spec, requests, competing=competing, plan=plan, limit=16, batch_size=5)
    for i, ranking in enumerate(found.ranked):
        allowed = dataset.ad_ids[competing.allowed(requests, i)]
        assert set(ranking.tolist()) <= set(allowed.tolist())
        assert len(ranking) == min(16, len(allowed))


def test_where_no_ad_has_an_audience_nothing_is_other(explorers):
    ads = ads_of(explorers)
    nobody = ads.with_columns(audience=pl.lit(None, pl.String))
    everybody = ads.with_columns(audience=pl.lit("{}"))
    plain = report_of(explorers, ads=ads)
    assert set(plain["left_out"]) == {"requests", "paused", "created_later", "seen"}
    for others in (ads, nobody, everybody):
        assert report_of(explorers, *RESTRICTED, ads=others) == plain


def test_with_audience_off_ads_with_one_compete_for_nobody(explorers):
    report = report_of(explorers, ads=with_audiences(ads_of(explorers)))
    assert report["audiences"] == {"ads": 0.8, "eligible": pytest.approx(0.2)}
    gone = with_audiences(ads_of(explorers)).filter(pl.col("audience").is_not_null())
    paused = ads_of(explorers).with_columns(
        status=pl.when(pl.col("ad_id").is_in(gone["ad_id"].implode()))
        .then(pl.lit("paused"))
        .otherwise("status")
    )
    assert report_of(explorers, ads=paused)["recall"] == report["recall"]


def test_without_a_target_that_competes_the_error_says_what_was_left_out(run):
    """Users of this log repeat: they have seen every target."""
    with pytest.raises(ValueError, match="expected a target among the ads that compete, .*'seen': "):
        report_of(run, "evaluation.exclude_seen=true")
    paused = ads_of(run).with_columns(status=pl.lit("paused"))
    with pytest.raises(ValueError, match="expected a target among the ads that compete, .*'paused': [1-9]"):
        report_of(run, ads=paused)


def test_an_index_of_other_ads_is_refused(run):
    with pytest.raises(ValueError, match="expected the 60 ads that have SIDs .* got 59"):
        report_of(run, ads=ads_of(run).head(59))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "evaluation.cutoffs=[1, 17]",
            "a last width of at least the largest cut-off, 17, got widths '4-8-16:1'",
        ),
        ("evaluation.part=train", "evaluation.part: .*'validation' or 'test', got 'train'"),
        ("evaluation.rank_by=ecpm", "evaluation.rank_by: .*'probability' or 'value', got 'ecpm'"),
        ("evaluation.normalise=codebook-live", "evaluation: normalise: expected 3 of"),
        ("evaluation.recent_days=0", "evaluation.recent_days: .*greater than 0"),
    ],
)
def test_settings_that_cannot_be(run, override, message):
    with pytest.raises(ConfigError, match=message):
        open_run(run, override)


def test_levels_are_normalised_as_the_preset_says(explorers, monkeypatch):
    asked = []

    def searched(*arguments, **options):
        asked.append(options["normalise"])
        return beam_search(*arguments, **options)

    monkeypatch.setattr("training.evaluation.ranking.beam_search", searched)
    report_of(explorers)
    report_of(explorers, "evaluation.normalise=codebook-live-live")
    assert set(asked) == {None, ("codebook", "live", "live")}


def test_the_command_takes_part_and_ranking(explorers, tmp_path, monkeypatch, capsys):
    preset, spec, dataset = open_run(explorers)
    checkpoint = SimpleNamespace(spec=spec, model=spec.build(), step=7)
    monkeypatch.setattr(command, "chosen_checkpoint", lambda _: tmp_path / "step-000007")
    monkeypatch.setattr(command, "load_checkpoint", lambda path: checkpoint)
    monkeypatch.setattr(command, "inputs_of", lambda *_, **__: Inputs({}, {}))
    options = ["--config", str(explorers[0]), "--run", str(explorers[1]), "--model", str(tmp_path)]
    options += ["--part", "validation", "--rank-by", "value", "--exclude-seen"]
    monkeypatch.setattr("sys.argv", ["evaluate", *options])
    command.main()
    report = json.loads((tmp_path / "evaluation-validation.json").read_text())
    assert (report["part"], report["rank_by"], report["exclude_seen"]) == ("validation", "value", True)
    assert not (tmp_path / "evaluation.json").exists()
    printed = capsys.readouterr().out
    assert "validation requests, widths 4-8-16:1, ranked by value, seen ads left out" in printed
    figures = report["calibration"]
    assert f"error {figures['error']:.1%}" in printed
    assert sum(part["targets"] for part in figures["by_decile"]) == figures["targets"]
    groups = dataset.groups("validation", target_behaviors=("conversion",), min_history=3)
    drawn = np.random.default_rng(0).permutation(len(groups))[:30]
    values = np.concatenate([dataset.log.value[dataset.targets(groups, int(row))] for row in drawn])
    assert (figures["targets"], figures["realised"]) == (len(values), pytest.approx(float(values.mean())))
    assert (tmp_path / "evaluation-validation-calibration.png").stat().st_size > 5_000


def test_oracle_reaches_recall_one(run):
    """An engine that knows the answer gets it through beam search and look-up: the harness loses nothing."""
    _, spec, dataset = open_run(run)
    competing = Competing.of(dataset, ads_of(run), exclude_seen=False)
    requests, _ = competing.answerable(requests_of(run))
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
    found = rank_by_model(
        Oracle(),
        requests,
        competing=competing,
        level_sizes=spec.level_sizes,
        plan=WidthPlan((6, 30, 60), 1),
        limit=20,
        batch_size=7,
        value_table=spec.value_buckets.means,
        progress=False,
    )
    assert found.beams > 0
    assert found.invalid == 0
    metrics = ranking_metrics(found.ranked, requests.targets, values=requests.values, cutoffs=(20,))
    assert metrics["recall"]["20"] == 1.0
    assert metrics["value_recall"]["20"] == pytest.approx(1.0)


def test_no_test_request(run):
    preset, _, dataset = open_run(run)
    with pytest.raises(ValueError, match="expected at least one test request, got none"):
        draw_requests(
            dataset, target_behaviors=preset.logs.target_behaviors, min_history=9999, count=5, seed=0
        )


def test_ratios_to_what_a_user_would_try_first():
    report = {
        "recall": {
            "model": {"10": 0.3, "50": 0.6},
            "popularity": {"10": 0.1, "50": 0.2},
            "personal_frequency": {"10": 0.2, "50": 0.5},
            "recent_frequency": {"10": 0.0, "50": 0.4},
        },
        "value_recall": {"model": {"50": 0.9}, "personal_frequency": {"50": 0.6}},
        "recall_of": {"new_to_user": {"targets": 8, "recall": {"model": {"10": 0.01, "50": 0.02}}}},
    }
    assert compared(report) == {
        "recall_vs_personal": pytest.approx({"10": 1.5, "50": 1.2}),
        "recall_vs_recent": {"10": None, "50": pytest.approx(1.5)},
        "recall50_vs_popularity": pytest.approx(3),
        "value_recall50_vs_personal": pytest.approx(1.5),
        "new_to_user_recall50": 0.02,
    }
    of_others = {m: {name: {"5": 0.1} for name in report["recall"]} for m in ("recall", "value_recall")}
    without = compared(of_others | {"recall_of": {"new_to_user": {"targets": 0, "recall": {}}}})
    assert without["recall50_vs_popularity"] is None
    assert without["new_to_user_recall50"] is None
