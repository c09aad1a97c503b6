"""The ranking stage: the features of training, the order of the reward model, and bundles that it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from export.bundle import graph_shapes
from export.ranker import check_ranker, write_ranker
from export.ranker_graph import largest_float32, ranker_graph
from export.reward_ranker import load_reward_model
from serving.backend.request import request_features
from serving.backend.reranking import Past, Resolved, VersionRankers, rerank
from serving.backend.resolve import NO_AD, find_ads, resolve
from serving.engines.ort import OrtRankGraph
from serving.files import sha256
from serving.index.snapshot import IndexSnapshot
from serving.model.bundle import MANIFEST, BundleError, read_manifest
from serving.model.features import FeatureSpec
from serving.model.manifest import AD_RANKER
from serving.ranking.ad_codes import AD, KEYS, AdCodes
from serving.ranking.features import NUMBERS
from serving.ranking.ranker import RankRequest, best_first
from serving.ranking.reward_ranker import RewardRanker
from serving.ranking.statistics import names
from serving.ranking.tables import FOLDER, RankerTables
from tests.manifest import manifest as plain_manifest
from tests.ranking import NEW, NOW, PROFILE, expected_features, random_request, tiny_reward_model
from tests.tiny import LEVEL_SIZES, SPEC, tiny_catalogue, tiny_snapshot
from tests.tiny_log import open_run, write_run
from training.reward.catalogue import Catalogue, CatalogueError
from training.reward.requests import RequestFeatures
from training.reward.reward_model import RewardError
from training.spec import ModelSpec

NONE = np.zeros(0, np.int64)


def bundle_of(model, folder, *, features=SPEC):
    """A bundle that is a ranker and nothing else."""
    folder.mkdir()
    content = plain_manifest(1, "t1", features=features) | {"ranker": write_ranker(model, folder)}
    content["graphs"] |= graph_shapes(folder)
    files = {str(p.relative_to(folder)): sha256(p) for p in folder.rglob("*") if p.is_file()}
    content["sha256"] |= files
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


def manifest_of(bundle):
    return read_manifest(bundle, verify=False)


def ranker_of(bundle, **options):
    return RewardRanker.load(bundle, manifest_of(bundle), OrtRankGraph(bundle), **options)


@pytest.fixture(scope="module", params=["trees", "neural", "mean"])
def ranked(request, tmp_path_factory):
    model = tiny_reward_model(serves=request.param)
    return model, bundle_of(model, tmp_path_factory.mktemp("ranked") / "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bundle_of(tiny_reward_model(serves="neural"), tmp_path_factory.mktemp("bundle") / "1")


@pytest.fixture
def broken(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "1")


def test_features_are_those_that_training_makes_of_the_log(tmp_path):
    """From a raw request on, as the server gets it, against the rows that a reward model is fitted on."""
    run = write_run(tmp_path, users=8)
    _, spec, dataset = open_run(run)
    ads = pl.read_parquet(run[1] / "data" / "ads.parquet")
    whole = Catalogue.of(dataset, ads)
    kept = dataset.ad_ids % 9 != 4  # the others come after the fit
    catalogue = Catalogue(whole.ad_ids[kept], whole.sids[kept], whole.codes[kept])
    catalogue.codes[:, AD] = np.arange(kept.sum())
    features = RequestFeatures(dataset, catalogue, target_behaviors=("conversion",), weeks=2)
    tables = RankerTables(catalogue.ad_codes, features.newest)
    model = tiny_reward_model()
    about = replace(model.about, target_behaviors=("conversion",), categories=spec.features.column_sizes)
    content = json.loads((bundle_of(model, tmp_path / "1") / MANIFEST).read_text())
    described = content["ranker"] | {"target_behaviors": about.target_behaviors}
    # Of other columns than the tiny model's, whose graph nobody runs here.
    made = manifest_of(tmp_path / "1").model_copy(
        update={
            "features": spec.features,
            "ranker": type(manifest_of(tmp_path / "1").ranker)(
                **described | {"features": _feature_set(spec.features)}
            ),
        }
    )
    ranker = RewardRanker(made, tables, lambda inputs: inputs["mean_value"])
    snapshot = IndexSnapshot.build(
        dataset.ad_ids,
        dataset.ad_sids,
        active=dataset.ad_ids % 5 != 0,
        level_sizes=tuple(int(size) for size in dataset.ad_sids.max(axis=0) + 1),
    )
    events = pl.read_parquet(run[1] / "data" / "events.parquet")
    groups = dataset.groups("test", target_behaviors=("conversion",), min_history=0)
    assert len(groups) > 5
    random = np.random.default_rng(0)
    for row in range(len(groups)):
        now, user = int(groups.now[row]), int(dataset.log.user_ids[groups.user_row[row]])
        past = events.filter((pl.col("user_id") == user) & (pl.col("timestamp") < now))
        # In any order, but events of one second in that of the log: it says which are the newest.
        past = past.sort("timestamp", "ad_id", "behavior").sort(
            pl.col("timestamp").hash(seed=row), maintain_order=True
        )
        behaviors = past["behavior"].replace_strict({"impression": 1, "click": 2, "conversion": 3})
        built = request_features(
            spec.features,
            snapshot,
            ad_ids=np.append(past["ad_id"].to_numpy(), [10_000, -1]),
            behaviors=np.append(behaviors.to_numpy(), [3, 1]).astype(np.int32),
            timestamps=np.append(past["timestamp"].to_numpy(), [now - 5, 0]),
            profile=dataset.profile[groups.user_row[row]],
            now=now,
        )
        assert len(built.past_ads) == min(len(past), spec.features.max_history)
        asked = random.choice(dataset.ad_ids, 25)
        sids, _ = snapshot.sids_of(np.concatenate([asked, built.past_ads]))
        found = ranker.features(
            RankRequest(
                ads=asked,
                sids=sids[:25],
                log_p=np.zeros(25, np.float32),
                past_ads=built.past_ads,
                past_sids=sids[25:],
                past_behaviors=built.past_behaviors,
                past_times=built.past_times,
                now=now,
                profile=built.profile,
            )
        )
        expected = features.of(groups, row, asked)
        np.testing.assert_array_equal(found.numbers, expected.numbers)
        np.testing.assert_array_equal(found.value, expected.value)
        np.testing.assert_array_equal(found.profile, expected.profile)


def _feature_set(features):
    from serving.ranking.features import feature_set

    return feature_set(features.column_sizes)


def test_ads_that_came_since_share_the_number_of_their_prefix_and_no_other():
    ad_ids, sids, _ = tiny_catalogue()
    model = tiny_reward_model()
    codes = model.catalogue.ad_codes.of(np.append(ad_ids, ad_ids[-1]), np.concatenate([sids, sids[-1:]]))
    fitted = len(ad_ids) - NEW
    np.testing.assert_array_equal(codes[:fitted], model.catalogue.codes)
    assert codes[fitted:, AD].tolist() == [*range(fitted, len(ad_ids)), len(ad_ids) - 1]
    assert (codes[fitted:, 1:4] == -1).all()
    for row in range(fitted, len(ad_ids)):
        for key, length in ((4, 1), (5, 2)):
            same = [
                model.catalogue.codes[i, key]
                for i in range(fitted)
                if sids[i, :length].tolist() == sids[row, :length].tolist()
            ]
            assert codes[row, key] == (same[0] if same else -1)
    # An ad whose content was changed has another SID, and what the statistics say of it.
    moved = model.catalogue.ad_codes.of(ad_ids[:1], (sids[:1] + 1) % LEVEL_SIZES)
    np.testing.assert_array_equal(moved, model.catalogue.codes[:1])


def test_a_catalogue_of_no_ads_knows_none():
    empty = AdCodes.of_catalogue(NONE, np.zeros((0, 3), np.int32), np.zeros((0, len(KEYS)), np.int32))
    codes = empty.of(np.array([5, 7, 5]), np.zeros((3, 3), np.int32))
    assert codes.tolist() == [[0, -1, -1, -1, -1, -1], [1, *[-1] * 5], [0, *[-1] * 5]]


def test_worth_is_the_reward_by_the_mean_of_all_rankers(ranked):
    """Computed here from what each ranker says, request by request, calibrated by hand."""
    model, folder = ranked
    ranker = ranker_of(folder, pad_to=30)
    requests = [random_request(i, ads=[1, 7, 45, 20][i % 4], events=[0, 3, 16][i % 3]) for i in range(24)]
    line = model.about.calibration[model.about.serves]
    kinds = ["trees", "neural"] if model.about.serves == "mean" else [model.about.serves]
    for request, worth in zip(requests, ranker.worth(requests), strict=True):
        features = expected_features(model, request)
        said = [r.predict(features) for kind in kinds for r in model.rankers[kind]]
        assert len(said) == 2 * len(kinds)
        logit = line.slope * sum(s.logit for s in said) / len(said) + line.offset
        ratio = sum(s.ratio for s in said) / len(said)
        expected = 1 / (1 + np.exp(-logit)) * line.factor * ratio * features.value
        np.testing.assert_allclose(worth, expected, rtol=2e-5)
        np.testing.assert_allclose(model.calibrated(features, None).reward, expected, rtol=1e-12)
        [alone] = ranker_of(folder).worth([request])
        np.testing.assert_allclose(alone, worth, rtol=1e-6)
    assert check_ranker(model, folder, manifest_of(folder)) < 2e-5


def test_small_chances_keep_their_digits(tmp_path):
    """Most are: of a pool of a real request nearly nothing is bought."""
    model = tiny_reward_model(serves="neural")
    line = replace(model.about.calibration["neural"], offset=-9.0)
    model.about = replace(model.about, calibration=model.about.calibration | {"neural": line})
    request = random_request(5, ads=40)
    [worth] = ranker_of(bundle_of(model, tmp_path / "1")).worth([request])
    scores = model.calibrated(expected_features(model, request), None)
    assert np.median(scores.p) < 1e-3
    np.testing.assert_allclose(worth, scores.reward, rtol=2e-5)


def test_a_split_at_a_float32_parts_what_the_double_parts():
    random = np.random.default_rng(0)
    for threshold in [*random.normal(size=500), 1e-35, 0.0, -1e-40, 3.0, float(np.float32(0.1)), 0.1, -0.1]:
        cut = largest_float32(threshold)
        assert float(np.float32(cut)) == cut
        around = np.float32(threshold)
        for x in (np.nextafter(around, np.float32(-9)), around, np.nextafter(around, np.float32(9))):
            assert (float(x) <= threshold) == (float(x) <= cut)


def test_a_graph_that_says_something_else_is_not_published(ranked, monkeypatch):
    model, folder = ranked
    other = tiny_reward_model(serves=model.about.serves)
    line = other.about.calibration[other.about.serves]
    lines = other.about.calibration | {other.about.serves: replace(line, offset=line.offset + 0.01)}
    other.about = replace(other.about, calibration=lines)
    with pytest.raises(RuntimeError, match="parity: expected ad_ranker within 0.0001 of the reward model"):
        check_ranker(other, folder, manifest_of(folder))


def test_no_request_makes_a_feature_that_is_no_number(bundle):
    ranker = ranker_of(bundle)
    request = random_request(3, events=12)
    times = np.sort(np.array([0, 0, 1, NOW, NOW, NOW, *range(6)]))
    for now, past_times, events in (
        (NOW, times, 12),
        (1 << 40, times, 12),
        (0, times * 0, 12),
        (0, times, 0),
    ):
        found = ranker.features(
            replace(
                request,
                now=now,
                past_times=past_times[:events],
                past_ads=request.past_ads[:events],
                past_sids=request.past_sids[:events],
                past_behaviors=request.past_behaviors[:events],
            )
        )
        assert found.numbers.shape == (20, len(NUMBERS))
        assert np.isfinite(found.numbers).all()
        assert (found.value > 0).all()


# From beams to the order


def beams(seed, *, count=40, valued=12):
    """Live SIDs, best first, some of several ads; the first of them with a value."""
    snapshot, random = tiny_snapshot(), np.random.default_rng(seed)
    ad_ids, sids, active = tiny_catalogue()
    live = np.unique(sids[active], axis=0)[random.permutation(len(np.unique(sids[active], axis=0)))][:count]
    values = random.exponential(2, len(live)).astype(np.float32)
    values[valued:] = np.nan
    scores = np.sort(random.normal(-5, 2, len(live)).astype(np.float32))[::-1]
    return snapshot, live, scores, values


def found_in(seed, *, exclude=NONE, num_ads=5, pool=0, rank_by="probability", **options):
    snapshot, sids, scores, values = beams(seed, **options)
    return find_ads(
        snapshot,
        sids,
        scores=scores,
        expected_value=values,
        num_ads=num_ads,
        exclude=exclude,
        rank_by=rank_by,
        pool=pool,
    )


@pytest.mark.parametrize("rank_by", ["probability", "value"])
def test_the_pool_is_the_beginning_of_a_long_answer(rank_by):
    for seed in range(8):
        snapshot, sids, scores, values = beams(seed)
        exclude = np.sort(np.random.default_rng(seed).choice(snapshot.leaf_ad_ids, 9, replace=False))
        whole = resolve(
            snapshot,
            sids,
            scores=scores,
            expected_value=values,
            num_ads=60,
            exclude=exclude,
            rank_by=rank_by,
        )
        of_valued = snapshot.ads_of_sids(sids[:12])[1]
        valued = int((~np.isin(of_valued, exclude)).sum())
        for num_ads, pool, expected in (
            (3, 8, 8),
            (3, 2, 3),
            (3, 1000, valued),  # an ad whose beam has no value is in no answer that can do without
            (valued + 4, 1000, valued + 4),
        ):
            found = found_in(seed, exclude=exclude, num_ads=num_ads, pool=pool, rank_by=rank_by)
            assert len(found.ad_ids) == expected
            for name in ("ad_ids", "scores", "expected_value", "sids"):
                np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[:expected])


def past_of(seed):
    request = random_request(seed)
    return Past(
        ads=np.append(request.past_ads, -1),
        behaviors=np.append(request.past_behaviors, 0).astype(np.int32),
        times=np.append(request.past_times, 0),
        now=request.now,
        profile=request.profile,
    )


def row(seed, *, num_ads=5, pool=20, past=True, version=1, **options):
    return Resolved(
        ads=found_in(seed, num_ads=num_ads, pool=pool if past else 0, **options),
        num_ads=num_ads,
        version=version,
        index_version=3,
        snapshot=tiny_snapshot(),
        past=past_of(seed) if past else None,
    )


def rankers_of(bundle):
    return VersionRankers(bundle.parent, lambda manifest: ranker_of(bundle))


@pytest.mark.parametrize("rank_by", ["probability", "value"])
def test_answers_are_a_plain_sort_of_the_pool_by_reward(ranked, rank_by):
    model, folder = ranked
    rows = [row(seed, num_ads=1 + seed % 9, past=seed % 3 > 0, rank_by=rank_by) for seed in range(12)]
    rows.append(row(3, num_ads=30, exclude=tiny_catalogue()[0]))  # nothing is left
    rows.append(row(3, num_ads=30, exclude=tiny_catalogue()[0][1:], count=60, valued=60))
    turned = 0
    for asked, found in zip(rows, rerank(rows, rankers_of(folder)), strict=True):
        assert (found.num_ads, found.version, found.index_version) == (asked.num_ads, 1, 3)
        pool = asked.ads
        order = list(range(len(pool.ad_ids)))
        if asked.past is not None:
            kept = asked.past.ads >= 0
            sids, _ = asked.snapshot.sids_of(asked.past.ads)
            request = RankRequest(
                ads=pool.ad_ids,
                sids=pool.sids,
                log_p=pool.scores,
                past_ads=asked.past.ads[kept],
                past_sids=sids[kept],
                past_behaviors=asked.past.behaviors[kept],
                past_times=asked.past.times[kept],
                now=asked.past.now,
                profile=asked.past.profile,
            )
            reward = model.calibrated(expected_features(model, request), None).reward
            order.sort(key=lambda i: -reward[i])  # stable
            turned += order != sorted(order)
        order = order[: asked.num_ads]
        for name, fill in (("ad_ids", NO_AD), ("scores", 0), ("expected_value", 0), ("sids", -1)):
            values = getattr(found.ads, name)
            assert len(values) == asked.num_ads
            np.testing.assert_array_equal(values[: len(order)], getattr(pool, name)[order])
            assert (values[len(order) :] == fill).all()
    assert turned > 5


def test_equals_keep_the_order_before():
    assert best_first(np.array([1, 3, 1, 3, 2, 1], np.float32)).tolist() == [1, 3, 4, 0, 2, 5]


def test_a_version_whose_ranker_fails_fails_its_own_rows_only(bundle):
    def make(manifest):
        if manifest.version == 2:
            raise BundleError("model version 2: no")
        return ranker_of(bundle)

    shutil.copytree(bundle, bundle.parent / "2")
    content = json.loads((bundle.parent / "2" / MANIFEST).read_text()) | {"model_version": 2}
    (bundle.parent / "2" / MANIFEST).write_text(json.dumps(content))
    rows = [row(1), row(2, version=2), row(3, version=2, past=False), row(4)]
    found = rerank(rows, VersionRankers(bundle.parent, make))
    assert [isinstance(f, Exception) for f in found] == [False, True, False, False]
    assert str(found[1]) == "model version 2: no"


def test_a_row_that_cannot_be_ranked_fails_alone(ranked):
    _, folder = ranked
    good, rankers = row(1), rankers_of(folder)
    short = replace(row(2), past=replace(row(2).past, times=np.zeros(3, np.int64)))
    found = rerank([good, short, row(4)], rankers)
    assert [isinstance(f, Exception) for f in found] == [False, True, False]
    [alone] = rerank([good], rankers)
    np.testing.assert_array_equal(found[0].ads.ad_ids, alone.ads.ad_ids)


# Bundles


def saved(folder, name, change):
    path = folder / FOLDER / f"{name}.npy"
    np.save(path, change(np.load(path)), allow_pickle=False)


def pickled(folder):
    np.save(folder / FOLDER / "codes.npy", np.array([{}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / FOLDER / "codes.npy").unlink(),
            r"ranker/codes.npy: expected an array, got: .*No such",
        ),
        (
            lambda f: (f / FOLDER / "ad_ids.npy").write_bytes(b"x"),
            r"ranker/ad_ids.npy: expected an array, got",
        ),
        (
            lambda f: (f / FOLDER / "ad_ids.npy").write_bytes(b""),
            r"ranker/ad_ids.npy: expected an array, got",
        ),
        (pickled, r"ranker/codes.npy: expected an array, got: .*Python objects"),
        (
            lambda f: saved(f, "codes", lambda a: a[:, :5]),
            r"codes.npy: expected int32 \[n, 6\], got int32 \[52, 5",
        ),
        (lambda f: saved(f, "codes", lambda a: a.astype(np.int64)), r"expected int32 \[n, 6\], got int64"),
        (lambda f: saved(f, "value.ad", lambda a: a[:, None]), r"value.ad.npy: expected float32 \[n\], got"),
        (lambda f: saved(f, "ad_ids", lambda a: a[::-1]), "ad_ids.npy: expected ascending ids"),
        (lambda f: saved(f, "ad_ids", lambda a: a[:0]), "ad_ids.npy: expected ascending ids, got 0"),
        (lambda f: saved(f, "codes", lambda a: a[:-1]), "codes.npy: expected one row for each of 52 ads"),
        (
            lambda f: saved(f, "codes", lambda a: a[::-1]),
            "codes.npy: expected one row for each of 52 ads, in",
        ),
        (
            lambda f: saved(f, "codes", lambda a: np.where(a < 0, -2, a)),
            "codes.npy: expected numbers >= -1, got -2",
        ),
        (lambda f: saved(f, "prefix_2", lambda a: a[::-1]), "prefix_2.npy: expected ascending prefixes"),
        (
            lambda f: saved(f, "prefix_1", lambda a: a[1:]),
            "prefix_1.npy: expected ascending prefixes, one for",
        ),
        (
            lambda f: saved(f, "prefix_1.codes", lambda a: a + 1),
            r"prefix_1.codes.npy: expected numbers in 0\.\.5",
        ),
        (lambda f: saved(f, "recent.text", lambda a: a[1:]), "recent.text.npy: expected [0-9]+ numbers, got"),
        (
            lambda f: saved(f, "rate.prefix_2", lambda a: a * np.nan),
            "rate.prefix_2.npy: expected finite numbers",
        ),
        (lambda f: saved(f, "gap.ad", lambda a: a - 9), "gap.ad.npy: expected finite numbers >= 0"),
    ],
)
def test_tables_that_are_not_what_they_should_be_are_refused(broken, change, message):
    change(broken)
    with pytest.raises(BundleError, match=f"(?s){message}"):
        ranker_of(broken)


def test_every_file_of_a_ranker_is_in_the_manifest_and_hashed(broken):
    assert {f"{FOLDER}/{name}.npy" for name in names()} < set(manifest_of(broken).sha256)
    file = broken / FOLDER / "value.ad.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for stem in ("prefix", *(f"tail_{t}" for t in (2, 3, 4))):  # which this bundle does not have
        (broken / f"{stem}.onnx").write_bytes(b"")
    content = json.loads((broken / MANIFEST).read_text())
    content["sha256"] |= {
        f"{s}.onnx": sha256(broken / f"{s}.onnx") for s in ("prefix", "tail_2", "tail_3", "tail_4")
    }
    (broken / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="ranker/value.ad.npy: expected sha256 .* the file is corrupted"):
        read_manifest(broken)


def edited(bundle, **changes):
    content = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "prices"}, "ranker: Input tag 'prices' found using 'kind' .* 'reward', 'item'"),
        ({"target_behaviors": []}, "ranker.reward.target_behaviors: .* at least 1"),
        ({"target_behaviors": ["seen"]}, "ranker.reward.target_behaviors.0: Input should be"),
        (
            {"features": "0123456789abcdef"},
            "expected a ranker over the features [0-9a-f]{16} of this release, got 01",
        ),
    ],
)
def test_a_manifest_that_says_what_no_ranker_is(broken, changes, message):
    edited(broken, ranker=json.loads((broken / MANIFEST).read_text())["ranker"] | changes)
    with pytest.raises(BundleError, match=message):
        ranker_of(broken)


def test_a_ranker_and_its_graph_are_both_there_or_neither(broken):
    content = json.loads((broken / MANIFEST).read_text())
    edited(broken, ranker=None)
    with pytest.raises(BundleError, match="graphs: expected .* of 3 levels without a ranker"):
        manifest_of(broken)
    graphs = {name: of for name, of in content["graphs"].items() if name != AD_RANKER}
    edited(broken, graphs=graphs)
    with pytest.raises(BundleError, match="expected a bundle with the ranker reward, got one without"):
        ranker_of(broken)  # a good bundle, which has none
    edited(broken, ranker=content["ranker"])
    with pytest.raises(BundleError, match="graphs: expected .* of 3 levels with a ranker"):
        manifest_of(broken)


def test_a_graph_that_takes_what_nobody_makes_is_refused(broken):
    graphs = json.loads((broken / MANIFEST).read_text())["graphs"]
    graphs[AD_RANKER]["inputs"].append(["decoder_state", "FLOAT", ["batch", 8]])
    edited(broken, graphs=graphs)
    with pytest.raises(
        BundleError, match="expected inputs among numbers, mean_value, profile and the output"
    ):
        ranker_of(broken)


@pytest.mark.parametrize("fill", [np.nan, np.inf])
def test_a_graph_that_gives_no_numbers_is_refused(bundle, fill):
    manifest = manifest_of(bundle)
    tables = RankerTables.load(bundle)
    empty = RewardRanker(manifest, tables, lambda inputs: np.full(inputs["mean_value"].shape, fill))
    with pytest.raises(BundleError, match="ad_ranker: expected one finite number an ad, got"):
        empty.probe(manifest)
    with pytest.raises(BundleError, match="model version 1: ad_ranker fails: 'worth'"):
        RewardRanker(manifest, tables, lambda inputs: {}["worth"]).probe(manifest)
    ranker_of(bundle).probe(manifest)


# What may become a ranker


@pytest.fixture
def run(tmp_path):
    """A run folder with a reward model and the SIDs that it was made with; the specification that fits."""
    model, run = tiny_reward_model(), tmp_path / "run"
    model.save(run / "reward", {})
    ad_ids, sids, _ = tiny_catalogue()
    (run / "tokenizer").mkdir()
    table = {"ad_id": ad_ids, **{f"s{t + 1}": sids[:, t] for t in range(3)}}
    pl.DataFrame(table).write_parquet(run / "tokenizer" / "sids.parquet")
    spec = ModelSpec(None, SPEC, LEVEL_SIZES, None, PROFILE, "t1")
    return run, spec


def test_a_reward_model_that_fits_is_taken(run):
    folder, spec = run
    assert load_reward_model(folder, spec).id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenizer_id": "t2"},
            r"run/reward: tokenizer: expected t2 \(the model's\), got t1: make reward again",
        ),
        (
            {"features": FeatureSpec(levels=3, max_history=16, profile_sizes=(3, 5))},
            r"profile and request columns: expected \(3, 5\) \(the model's\), got \(3, 4\)",
        ),
        (
            {"profile_columns": {**PROFILE, "age": ("older", "young")}},
            r"categories of profile and request: expected \w{16} \(the model's\), got \w{16}: make",
        ),
        (
            {"features": replace(SPEC, max_history=99)},
            r"features.max_history: expected 99 \(the model's\), got 16",
        ),
    ],
)
def test_a_reward_model_of_something_else_is_refused(run, changes, message):
    folder, spec = run
    with pytest.raises(RewardError, match=message):
        load_reward_model(folder, replace(spec, **changes))


def test_a_reward_model_of_another_catalogue_or_none_is_refused(run):
    folder, spec = run
    path = folder / "tokenizer" / "sids.parquet"
    pl.read_parquet(path).with_columns(s2=pl.col("s2") + 1).write_parquet(path)
    with pytest.raises(
        CatalogueError, match="expected the SIDs that it was made with, got others of 52 of 52"
    ):
        load_reward_model(folder, spec)
    shutil.rmtree(folder / "reward")
    with pytest.raises(RewardError, match="expected a reward model, got none"):
        load_reward_model(folder, spec)


def test_trees_with_splits_of_sets_have_no_exact_form(monkeypatch):
    model = tiny_reward_model(serves="trees")
    booster = model.rankers["trees"][0].boosters[0]
    dumped = booster.dump_model()
    dumped["tree_info"][0]["tree_structure"]["decision_type"] = "=="
    monkeypatch.setattr(booster, "dump_model", lambda: dumped)
    with pytest.raises(ValueError, match="ad_ranker: expected splits <= of numbers .*, got == with missing"):
        ranker_graph(model)
