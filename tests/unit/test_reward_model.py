"""The reward model as a whole: fitted, stored, asked, and refused where it does not belong."""

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from serving.model.request_features import RequestFeature
from tests.funnel_log import USERS, config, impressions
from tests.tiny_log import open_run, run_of, write_run
from training.data.folds import user_fold
from training.data.profile import ProfileVocabulary
from training.reward.candidates import Drawn, Exposed, has_impressions
from training.reward.catalogue import Catalogue, CatalogueError
from training.reward.fit import Source, fit_reward
from training.reward.neural import Neural
from training.reward.requests import RequestFeatures
from training.reward.reward_model import ARRAYS, MODEL, RewardError, RewardModel, vocabulary_of
from training.reward.rows import rows_of
from training.reward.trees import Trees

CONVERSIONS = ("conversion",)
ALL_ADS = np.arange(60)
SMALL = (
    "reward.requests=120",
    "reward.judged_requests=40",
    "reward.popular=10",
    "reward.siblings=5",
    "reward.negatives=6",
    "reward.model=mean",
    "reward.trees=40",
    "reward.tree_rate=0.2",
    "reward.learning_rate=0.01",
    "reward.epochs=5",
    "reward.width=8",
    "reward.statistics_weeks=1",
)


def source_of(run, *overrides, behaviors=CONVERSIONS):
    preset, _, dataset = open_run(run, *SMALL, *overrides)
    ads = pl.read_parquet(run[1] / "data" / "ads.parquet")
    source = Source(dataset=dataset, ads=ads, tokenizer_id="t1", target_behaviors=behaviors, min_history=3)
    return source, preset.reward


def groups_of(dataset, part="test", behaviors=CONVERSIONS):
    return dataset.groups(part, target_behaviors=behaviors, min_history=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return write_run(tmp_path_factory.mktemp("log"), users=20)


@pytest.fixture(scope="module")
def fitted(run, tmp_path_factory):
    """The source, the settings, the report, and the folder of the model."""
    source, settings = source_of(run)
    model, report = fit_reward(source, settings)
    folder = tmp_path_factory.mktemp("fitted") / "reward"
    model.save(folder, {"reward.json": json.dumps(report)})
    return source, settings, report, folder


def test_it_finds_the_ads_that_a_user_repeats(fitted):
    report = fitted[2]
    for kind in ("trees", "neural", "mean"):
        assert report["test"][kind]["auc_by_request"] > 0.7
        assert report["test"][kind]["log_loss"] < report["test"][kind]["base_log_loss"]
        assert report["validation"][kind]["p"]["error"] == pytest.approx(0, abs=0.02)
    losses = {kind: of["log_loss"] for kind, of in report["validation"].items()}
    assert losses[report["best_by_validation"]] == min(losses.values())


def test_a_model_comes_back_with_its_scores_and_another_fit_is_the_same(fitted, tmp_path):
    source, settings, _, folder = fitted
    model, (again, _) = RewardModel.load(folder), fit_reward(source, settings)
    again.save(tmp_path / "again", {})
    assert again.id == model.id
    groups = groups_of(source.dataset)
    for row in range(0, len(groups), 5):
        found = model.score(source.dataset, groups, row, ALL_ADS)
        assert ((found.p > 0) & (found.p < 1) & (found.value > 0)).all()
        np.testing.assert_array_equal(found.reward, found.p * found.value)
        np.testing.assert_array_equal(found.p, again.score(source.dataset, groups, row, ALL_ADS).p)


def test_each_candidate_is_scored_by_itself(fitted):
    source, _, _, folder = fitted
    model, groups = RewardModel.load(folder), groups_of(source.dataset)
    every = model.score(source.dataset, groups, 3, ALL_ADS)
    turned = model.score(source.dataset, groups, 3, ALL_ADS[::-1])
    np.testing.assert_allclose(turned.reward[::-1], every.reward, rtol=1e-6)
    alone = model.score(source.dataset, groups, 3, ALL_ADS[7:8])
    np.testing.assert_allclose(alone.reward, every.reward[7:8], rtol=1e-6)
    assert model.score(source.dataset, groups, 3, np.zeros(0, np.int64)).reward.shape == (0,)


def test_ads_that_nobody_knows_score_alike(fitted):
    source, _, _, folder = fitted
    found = RewardModel.load(folder).score(
        source.dataset, groups_of(source.dataset), 0, np.array([-1, 777, 5])
    )
    assert np.isfinite(found.reward).all()
    assert found.reward[0] == pytest.approx(found.reward[1], rel=1e-6)


def test_a_user_is_scored_by_the_rankers_that_did_not_see_them(fitted, monkeypatch):
    source, settings, _, folder = fitted
    seen, fit_trees, fit_neural = [], Trees.fit, Neural.fit

    def look(fit):
        return lambda rows, *rest, **options: (
            seen.append(set(rows.fold.tolist())) or fit(rows, *rest, **options)
        )

    monkeypatch.setattr(Trees, "fit", look(fit_trees))
    monkeypatch.setattr(Neural, "fit", look(fit_neural))
    fit_reward(source, settings)
    assert seen == [{1}, {1}, {0}, {0}]  # the rankers of fold f saw the users of the others
    model, asked = RewardModel.load(folder), []
    for fold in (0, 1):
        for kind in ("trees", "neural"):
            ranker = model.rankers[kind][fold]
            monkeypatch.setattr(
                ranker, "predict", lambda f, p=ranker.predict, n=fold: asked.append(n) or p(f)
            )
    groups = groups_of(source.dataset)
    for row in range(len(groups)):
        asked.clear()
        model.score(source.dataset, groups, row, ALL_ADS[:2])
        user = source.dataset.log.user_ids[groups.user_row[row : row + 1]]
        fold = int(user_fold(user, folds=2, seed=settings.seed)[0])
        assert asked == [fold, fold]


def damaged(folder, copy, change):
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def rewritten(folder, without="id", **changed):
    """A folder whose model.json says something else and has the id of that."""
    from training.reward.reward_model import _id_of

    content = json.loads((folder / MODEL).read_text()) | changed
    content = {name: value for name, value in content.items() if name not in ("id", without)}
    (folder / MODEL).write_text(json.dumps({"id": _id_of(content), **content}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f), "expected a reward model, got none"),
        (lambda f: (f / "trees-1-value.txt").unlink(), "expected a reward model, got none"),
        (
            lambda f: (f / "trees-0-odds.txt").write_text("tree"),
            "trees-0-odds.txt: expected sha256 [0-9a-f]*, got",
        ),
        (lambda f: (f / ARRAYS).write_bytes(b"x" * 99), "arrays.safetensors: expected sha256"),
        (lambda f: (f / MODEL).write_text("{}"), "not a readable reward model"),
        (lambda f: (f / MODEL).write_text("[1"), "not a readable reward model"),
        (
            lambda f: (f / MODEL).write_text((f / MODEL).read_text().replace('"mean"', '"trees"', 1)),
            "model.json: expected id [0-9a-f]{16}, got [0-9a-f]{16}",
        ),
        (lambda f: rewritten(f, format=1), "expected format 3, got 1"),
        (
            lambda f: rewritten(f, features="0123456789abcdef"),
            "expected a reward model over the features [0-9a-f]{16} of this release, got 0123456789abcdef",
        ),
        (lambda f: rewritten(f, width=9), "not a readable reward model: .*size mismatch"),
    ],
)
def test_a_damaged_or_foreign_model_is_refused(fitted, tmp_path, change, message):
    with pytest.raises(RewardError, match=f"(?s){message}"):
        RewardModel.load(damaged(fitted[3], tmp_path / "reward", change))


def test_a_model_of_trees_that_lightgbm_cannot_read_is_refused(fitted, tmp_path):
    from serving.files import sha256

    folder = damaged(fitted[3], tmp_path / "reward", lambda f: (f / "trees-0-odds.txt").write_text("tree"))
    digests = json.loads((folder / MODEL).read_text())["sha256"]
    rewritten(folder, sha256=digests | {"trees-0-odds.txt": sha256(folder / "trees-0-odds.txt")})
    with pytest.raises(RewardError, match="not a readable reward model"):
        RewardModel.load(folder)


def test_a_model_is_not_asked_about_another_catalogue_or_other_columns(fitted, run):
    source, _, _, folder = fitted
    model = RewardModel.load(folder)
    other = open_run(run)[2]
    other.ad_sids = other.ad_sids.copy()
    other.ad_sids[3, 0] += 1
    with pytest.raises(CatalogueError, match="got others of 1 of 60 ads; first ad_id 3"):
        model.score(other, groups_of(other), 0, ALL_ADS)
    other = open_run(run)[2]
    other.spec = replace(other.spec, profile_sizes=(3, 5))
    message = r"expected columns of profile and request features with \[3\] codes, got \[3, 5\]"
    with pytest.raises(RewardError, match=message):
        model.score(other, groups_of(other), 0, ALL_ADS)


def test_a_model_is_not_asked_about_other_categories_of_as_many_codes(fitted, run):
    """A code would stand for another category, and no size tells."""
    model, other = RewardModel.load(fitted[3]), open_run(run)[2]
    names = {column: [f"{name} too" for name in of] for column, of in other.vocabulary.categories.items()}
    assert any(names.values())
    other.vocabulary = ProfileVocabulary({column: tuple(of) for column, of in names.items()})
    message = rf"reward model {model.id}: .* categories {model.about.vocabulary}, got [0-9a-f]{{16}}: as many"
    with pytest.raises(RewardError, match=message):
        model.score(other, groups_of(other), 0, ALL_ADS)
    feature = RequestFeature(name="place", column="place", values=("feed", "search"))
    other = open_run(run)[2]
    with_place = replace(other.spec, request_features=(feature,))
    other.spec = with_place
    there = vocabulary_of(other.vocabulary.categories, other.spec)
    other.spec = replace(with_place, request_features=(replace(feature, values=("search", "feed")),))
    assert vocabulary_of(other.vocabulary.categories, other.spec) != there


def test_what_a_model_was_made_from_is_part_of_its_id(fitted, tmp_path):
    """Two fits that happen to score alike are not one model."""
    source, settings, _, folder = fitted
    model = RewardModel.load(folder)
    assert model.about.made_from == {}
    model.about = replace(model.about, made_from={"data/events.parquet": "1" * 64})
    model.save(tmp_path / "other", {})
    other = RewardModel.load(tmp_path / "other")
    assert other.about.made_from == {"data/events.parquet": "1" * 64}
    assert other.id != RewardModel.load(folder).id


def test_a_model_is_not_asked_about_histories_of_another_length(fitted, run):
    model = RewardModel.load(fitted[3])
    other = open_run(run, "features.max_history=16")[2]
    message = f"reward model {model.id}: expected features.max_history 32, got 16"
    with pytest.raises(RewardError, match=message):
        model.score(other, groups_of(other), 0, ALL_ADS)


def test_a_model_that_does_not_say_its_length_of_histories_is_refused(fitted, tmp_path):
    folder = damaged(fitted[3], tmp_path / "reward", lambda f: rewritten(f, without="max_history"))
    with pytest.raises(RewardError, match="not a readable reward model: .*max_history"):
        RewardModel.load(folder)


def test_nothing_to_learn_from_is_said(run):
    source, settings = source_of(run)
    log = source.dataset.log

    def told(source, settings=settings):
        with pytest.raises(ValueError, match="reward model: ") as error:
            fit_reward(source, settings)
        return str(error.value)

    source.dataset.log = replace(log, value=np.zeros_like(log.value))
    assert "expected an outcome of a value above 0 in train, got none of" in told(source)
    source.dataset.log = log
    clicks = replace(source, target_behaviors=("click",))
    assert "expected train candidates with and without an outcome, got 0 with one of" in told(clicks)
    drawn = settings.model_copy(update={"rows": "candidates"})
    assert "expected at least one train request, got none" in told(clicks, settings=drawn)
    shown = settings.model_copy(update={"rows": "exposures"})
    everything = replace(source, target_behaviors=("impression", "conversion"))
    assert "expected train candidates with and without an outcome, got" in told(everything, settings=shown)


def test_a_fold_with_nothing_to_learn_from_is_said(run):
    """All is well in the training part as a whole, but not among the users outside a fold."""
    source, settings = source_of(run)
    log = source.dataset.log
    folds = user_fold(log.user_ids, folds=settings.folds, seed=settings.seed)
    of_event = np.repeat(folds, np.diff(log.user_ptr))
    source.dataset.log = replace(log, value=np.where(of_event == 1, 0, log.value).astype(log.value.dtype))
    message = "expected an outcome of a value above 0 in train of users outside fold 0, got none of [1-9]"
    with pytest.raises(ValueError, match=f"^reward model: {message}"):
        fit_reward(source, settings)
    nobody_bought = np.where((of_event == 0) & (log.behavior == 3), 1, log.behavior)
    source.dataset.log = replace(log, behavior=nobody_bought.astype(log.behavior.dtype))
    message = "expected train candidates of users outside fold 1 with and without an outcome, got 0 with one"
    with pytest.raises(ValueError, match=f"^reward model: {message}"):
        fit_reward(source, settings.model_copy(update={"rows": "exposures"}))


def test_draws_do_not_depend_on_what_came_of_them(run):
    """Whether an ad is a candidate must not tell its label: the history, what was popular, siblings."""
    source, settings = source_of(run)
    dataset, groups = source.dataset, groups_of(source.dataset, "train")
    features = RequestFeatures(
        dataset, Catalogue.of(dataset, source.ads), target_behaviors=CONVERSIONS, weeks=1
    )
    drawn = Drawn(features, popular=10, siblings=5, seed=0)
    found = [drawn.of(groups, row) for row in range(len(groups))]
    outside = 0
    for row, one in enumerate(found):
        bought = set(dataset.log.ad_ids[dataset.targets(groups, row)].tolist())
        assert one.ads[one.had].tolist() == sorted(bought & set(one.ads.tolist()))
        outside += len(bought - set(one.ads.tolist()))
        past = dataset.history(groups, row, newest=dataset.spec.max_history)
        past = past[dataset.log.behavior[past] == 3]
        assert set(dataset.log.ad_ids[past].tolist()) <= set(one.ads.tolist())
        values = {a: 0.0 for a in one.ads.tolist()}
        for event in dataset.targets(groups, row):
            if int(dataset.log.ad_ids[event]) in values:
                values[int(dataset.log.ad_ids[event])] += float(dataset.log.value[event])
        np.testing.assert_allclose(one.value, list(values.values()), rtol=1e-6)
    assert outside > 0  # what no draw found is not put in
    log = dataset.log
    for row in range(0, len(groups), 9):
        targets = dataset.targets(groups, row)
        ad_ids = log.ad_ids.copy()
        ad_ids[targets] = 59 - ad_ids[targets]
        dataset.log, dataset.event_ad = replace(log, ad_ids=ad_ids), ad_ids  # ad i is row i
        np.testing.assert_array_equal(drawn.of(groups, row).ads, found[row].ads)


def test_rows_that_are_kept_stand_for_those_that_are_not(run):
    source, settings = source_of(run)
    dataset, groups = source.dataset, groups_of(source.dataset, "train")
    features = RequestFeatures(
        dataset, Catalogue.of(dataset, source.ads), target_behaviors=CONVERSIONS, weeks=1
    )
    drawn = Drawn(features, popular=20, siblings=5, seed=0)
    folds = user_fold(dataset.log.user_ids, folds=2, seed=0)
    made = {"candidates": drawn.of, "features": features, "folds": folds}
    every = rows_of(groups, range(40), **made)
    some = rows_of(groups, range(40), negatives=4, **made)
    assert len(some) < len(every)
    assert some.had.sum() == every.had.sum()
    for request in range(40):
        one = some.request == request
        assert (~some.had[one]).sum() <= 4
        assert some.weight[one].sum() == pytest.approx((every.request == request).sum())
    assert (some.weight[some.had] == 1).all()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A log of impressions, some of them clicked."""
    settings = config(target_behaviors=["click"])
    return run_of(
        tmp_path_factory.mktemp("shown"), impressions(clicks=True, days=28), users=USERS, config=settings
    )


def test_exposures_of_a_log_of_impressions(shown):
    source, settings = source_of(shown, behaviors=("click",))
    dataset = source.dataset
    assert has_impressions(dataset, ("click",))
    events = pl.read_parquet(shown[1] / "data" / "events.parquet")
    groups = groups_of(dataset, "train", ("impression", "click", "conversion"))
    exposed, end = Exposed(dataset, "train", ("click",)), dataset.split.train_end
    for row in range(0, len(groups), 7):
        one, user = exposed.of(groups, row), int(dataset.log.user_ids[groups.user_row[row]])
        number = events.filter((pl.col("user_id") == user) & (pl.col("timestamp") == int(groups.now[row])))[
            "request_id"
        ][0]
        of_it = events.filter(pl.col("request_id") == number)
        clicked = of_it.filter((pl.col("behavior") == "click") & (pl.col("timestamp") < end))["ad_id"]
        assert one.ads.tolist() == sorted(set(of_it["ad_id"].to_list()))
        assert one.ads[one.had].tolist() == sorted(clicked.to_list())
        np.testing.assert_array_equal(one.value, one.had.astype(np.float32))
    _, report = fit_reward(source, settings)
    assert report["rows_from"] == "exposures"
    assert report["test"]["mean"]["auc"] > 0.7


def test_a_log_of_purchases_alone_has_no_impressions(run):
    assert not has_impressions(open_run(run)[2], CONVERSIONS)
