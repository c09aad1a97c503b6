"""Tables of several kinds on their whole way, from the advertiser's logs to answers of a real server."""

import json
import urllib.request

import numpy as np
import polars as pl

from examples.client import send
from serving.index.snapshot import IndexSnapshot
from serving.model.bundle import read_manifest
from serving.model.features import BEHAVIORS, join_codes, select_events
from tests.funnel_log import ADS, USERS, impressions
from tests.serving.trained import best_ads
from tests.waiting import wait_until
from tests.whole_way import DAY, SERVING, TRAINING, WholeWay, purchases, tables_with_sids, write_tables
from training.loop.retention import open_checkpoint
from training.run import RunData

LONGER = ("--set", "training.steps=25")
CREATE = {"kind": "create", "version": 1, "account_id": "acme", "conversion_type": "buy"}


def history_of(ads, **more):
    """A request for one user who bought these ads."""
    ads = np.array([ads], np.int64)
    return {
        "history_ad_ids": ads,
        "history_behaviors": np.full(ads.shape, 3, np.int32),
        "history_timestamps": np.full(ads.shape, 40 * DAY, np.int64),
        "num_ads": np.array([[5]], np.int32),
        "timestamp": np.array([[49 * DAY]], np.int64),
        **more,
    }


def test_sequences_with_given_sids_and_no_profile(tmp_path, no_curves):
    tables = tables_with_sids(tmp_path / "tables")
    given = pl.read_parquet(tables / "ads.parquet").row(3)[1:]
    way = WholeWay(
        tmp_path,
        tables=tables,
        data={"split": {"by": "last_events"}},
        tokenizer={"sids": "given", "given_sizes": [None, 8, None]},
        serving=SERVING | {"graph_calls": "in_process"},
    )
    way.to_index()
    manifest = read_manifest(way.run / "bundles" / "1")
    assert manifest.level_sizes == (6, 8, 7)
    assert manifest.profile_columns == {}
    assert [name for name, *_ in manifest.graphs["prefix"]["inputs"]] == ["slots"]
    assert way.sid(3) == given
    with way.serve() as server:
        way.request(server, 3)
        assert way.event(ad_id=100, sid=[5, 7, 6], **CREATE).result == "applied"
        assert way.sid(100) == (5, 7, 6)
        for sid, expected in (([5, 8, 6], "codes below (6, 8, 7)"), ([1, 1], "3 codes, got 2 codes")):
            refused = way.event(ad_id=101, sid=sid, **CREATE)
            assert (refused.reason, expected in refused.message) == ("wrong_content", True)
        assert way.event(ad_id=101, text="shoes", **CREATE).reason == "wrong_content"
        # New words leave the SID as it is.
        assert way.event(ad_id=3, kind="update", version=9, text="words").result == "applied"
        assert way.sid(3) == given
        answer = send(server.grpc_url, history_of([100, 3, 999]))
        assert answer["ignored_history"].tolist() == [[1]]

        def version():
            return int(send(server.grpc_url, history_of([3]))["model_version"][0, 0])

        # Trained on, and the weights into the running server: no graph is traced, none is loaded.
        way.command("training.recipes.pretrain", "--config", way.preset, "--run", way.run, *LONGER)
        way.versions("publish", "--checkpoint=latest")
        wait_until(lambda: version() == 2, what="version 2")
        new = read_manifest(way.run / "bundles" / "2")
        assert (new.refit["base"], new.step) == (1, 25)
        assert new.refit["requests"] > 5
        way.versions("rollback")
        wait_until(lambda: version() == 1, what="the version of before")


def test_given_embeddings_and_numbers_without_text(tmp_path, no_curves):
    random = np.random.default_rng(2)
    vectors = random.standard_normal((60, 8)).astype(np.float32)
    prices = random.integers(1, 1000, 60)
    ads = pl.DataFrame(
        {
            "ad_id": np.arange(60),
            "embedding": vectors.tolist(),
            "price": [None if a % 9 == 0 else int(p) for a, p in enumerate(prices)],
            "colour": ["red"] * 60,  # nobody names it
        }
    )
    users = pl.DataFrame({"user_id": np.arange(10), "age": ["old", "young"] * 5})
    tables = write_tables(tmp_path / "tables", ads=ads, users=users, events=purchases(users=10, ads=60))
    way = WholeWay(
        tmp_path,
        tables=tables,
        data={"split": {"by": "last_events"}, "numeric_columns": ["price"]},
        tokenizer={"embedding": "given", "codebook_sizes": [6, 5], "hash_size": 16},
    )
    way.to_index()
    with way.serve() as server:
        way.request(server, 3)
        same = {"embedding": vectors[7].tolist(), "numbers": {"price": float(prices[7])}}
        assert way.event(ad_id=100, **same, **CREATE).result == "applied"
        assert way.sid(100)[:2] == way.sid(7)[:2]
        # As in the table: without a price.
        assert way.event(ad_id=101, embedding=vectors[9].tolist(), **CREATE).result == "applied"
        assert way.sid(101)[:2] == way.sid(9)[:2]
        assert way.event(ad_id=7, kind="update", version=2, embedding=vectors[9].tolist()).result == "applied"
        for wrong, expected in (
            ({"embedding": [1.0] * 7}, "embedding of 8 numbers, got 7"),
            ({"text": "shoes"}, "embedding of 8 numbers, got 0"),
            (same | {"numbers": {"prize": 1.0}}, "names price, got 'prize'"),
        ):
            refused = way.event(ad_id=102, **wrong, **CREATE)
            assert (refused.reason, expected in refused.message) == ("wrong_content", True)
        answer = send(server.grpc_url, history_of([100, 101], profile=np.array([[0]], np.int32)))
        assert answer["ignored_history"].tolist() == [[0]]
        assert (answer["ad_ids"] >= 0).all()


def test_impressions_and_clicks_with_request_ids_and_request_features(tmp_path, no_curves):
    """What the server makes of a request is what the model was trained on, its features too."""
    shown = impressions(clicks=True).with_columns(
        place=pl.col("request_id").hash(seed=1).mod(3).replace_strict({0: "feed", 1: "search", 2: None}),
        hour=(pl.col("timestamp") // 3600 % 24).cast(pl.Int32),
    )
    texts = [f"word{a % 9} word{a % 7}" for a in range(ADS)]
    way = WholeWay(
        tmp_path,
        tables=write_tables(
            tmp_path / "tables",
            ads=pl.DataFrame({"ad_id": np.arange(ADS), "text": texts}),
            users=pl.DataFrame({"user_id": np.arange(USERS)}),
            events=shown,
        ),
        data={
            "split": {"by": "days"},
            "attribution_window": 1800,
            "target_behaviors": ["click"],
            "request_features": [
                {"name": "placement", "column": "place", "values": ["feed", "search"]},
                {"name": "hour", "size": 24},
            ],
        },
        features={"short_slots": 4, "long_slots": 4, "max_history": 96, "gap_edges_s": [10, 60, 3600, DAY]},
        tokenizer={"codebook_sizes": [6, 5], "hash_size": 16, "embedding_dim": 8},
        training=TRAINING | {"steps": 60, "validate_every": 60, "learning_rate": 0.01},
    )
    way.to_index()
    manifest = read_manifest(way.run / "bundles" / "1")
    assert manifest.features.gap_edges_s == (10, 60, 3600, DAY)
    checkpoint = open_checkpoint(way.run / "model")
    dataset = RunData.load(way.run).dataset(checkpoint.spec)
    snapshot = IndexSnapshot.build(
        dataset.ad_ids, dataset.ad_sids, active=np.ones(ADS, bool), level_sizes=manifest.level_sizes
    )
    groups = dataset.groups("test", target_behaviors=("click",), min_history=1)
    rows = np.arange(0, len(groups), 9)
    slots, columns = dataset.context(groups, rows)
    assert set(columns[:, 0]) == {0, 1, 2}
    events = pl.read_parquet(way.run / "data" / "events.parquet")
    code = pl.col("behavior").replace_strict(dict(BEHAVIORS), return_dtype=pl.Int32)

    def scores(i, codes):
        """Of the five best ads of request i, by PyTorch."""
        best = best_ads(checkpoint, snapshot, slots=slots[i], profile=np.array(codes, np.int32), num_ads=5)
        return best.scores

    with way.serve() as server:
        way.request(server, 3)
        for i, row in enumerate(rows):
            user, now = int(dataset.log.user_ids[groups.user_row[row]]), int(groups.now[row])
            known = events.filter((pl.col("user_id") == user) & (pl.col("timestamp") < now))
            own = events.filter((pl.col("user_id") == user) & (pl.col("timestamp") == now)).row(0, named=True)
            sent = {
                "history_ad_ids": known["ad_id"].to_numpy()[None],
                "history_behaviors": known.select(code)["behavior"].to_numpy()[None],
                "history_timestamps": known["timestamp"].to_numpy()[None],
                "num_ads": np.array([[5]], np.int32),
                "timestamp": np.array([[now]], np.int64),
                "hour": np.array([[now // 3600 % 24]], np.int32),
            }
            if own["place"] is not None:
                sent["placement"] = np.array([[own["place"].encode()]])
            answer = send(server.grpc_url, sent)
            np.testing.assert_allclose(answer["scores"][0], scores(i, columns[i]), atol=1e-4)
        over_http = send(server.http_url, sent, protocol="http")
        np.testing.assert_array_equal(over_http["scores"], answer["scores"])
        unknown = {"placement": np.array([[b"billboard"]]), "hour": np.array([[24]], np.int32)}
        nothing = scores(i, [0, 0])
        for more in ({}, unknown):
            left = {name: values for name, values in sent.items() if name not in unknown}
            np.testing.assert_allclose(send(server.grpc_url, left | more)["scores"][0], nothing, atol=1e-4)
        assert not np.allclose(scores(i, [1, 3]), nothing, atol=1e-3)
        send(server.grpc_url, sent)  # metrics tell with the next request, if some time has passed
        with urllib.request.urlopen(server.metrics_url, timeout=10) as page:
            text = page.read().decode()
        for name in ("placement", "hour"):
            assert f'gr4ad_unknown_values_total{{feature="{name}"}} 1' in text
    assert len(rows) > 5


def test_an_audience_column(tmp_path, no_curves):
    """Around begin and end of a flight, for two profiles and an unknown one: the best that each may see."""
    begin, end = 47 * DAY, 48 * DAY
    audiences = [
        None,
        '{"where": {"age": {"in": ["old"]}}}',
        json.dumps({"start": begin, "end": end}),
        json.dumps({"end": end, "where": {"age": {"not_in": ["old"]}}}),
    ]
    tables = tables_with_sids(tmp_path / "tables")
    ads = pl.read_parquet(tables / "ads.parquet")
    of_ads = pl.Series("audience", [audiences[ad % 4] for ad in ads["ad_id"]], dtype=pl.String)
    ads.with_columns(of_ads).write_parquet(tables / "ads.parquet")
    users = pl.DataFrame({"user_id": np.arange(10), "age": ["old", "young"] * 5})
    users.write_parquet(tables / "users.parquet")
    way = WholeWay(
        tmp_path,
        tables=tables,
        data={"split": {"by": "last_events"}},
        tokenizer={"sids": "given", "given_sizes": [None, 8, None]},
        # Nothing is narrowed, and only the model says p.
        serving=SERVING
        | {"graph_calls": "in_process", "audience": "on", "widths": "6-30-60:60", "cold_start": 0}
        | {"attributes": {"place": ["feed", "story"]}},
    )
    way.to_index()
    attributes = json.loads((way.run / "bundles" / "attributes.json").read_text())
    assert attributes == {"place": ["feed", "story"]}  # for the sidecar
    report = json.loads((way.run / "model" / "evaluation.json").read_text())
    assert report["audiences"]["ads"] == 37 / 50
    assert 0.25 < report["audiences"]["eligible"] < 0.8
    checkpoint = open_checkpoint(way.run / "model")
    dataset = RunData.load(way.run).dataset(checkpoint.spec)
    snapshot = IndexSnapshot.build(
        dataset.ad_ids, dataset.ad_sids, active=np.ones(50, bool), level_sizes=checkpoint.spec.level_sizes
    )
    asked = history_of([3, 7])

    def scores(age, now):
        """Of all ads, in PyTorch, and which of them a request may see by the words of the table."""
        shown = select_events(
            dataset.spec,
            asked["history_ad_ids"][0],
            behaviors=asked["history_behaviors"][0],
            timestamps=asked["history_timestamps"][0],
            now=now,
        )
        sids = dataset.ad_sids[asked["history_ad_ids"][0]][shown.events]
        slots = join_codes(sids, shown.columns, shown=shown.events >= 0)
        every = best_ads(checkpoint, snapshot, slots=slots, profile=np.array([age], np.int32), num_ads=50)
        may_see = (True, age == 1, begin <= now < end, now < end and age == 2)
        found = dict(zip(every.ad_ids.tolist(), every.scores.tolist(), strict=True))
        assert len(found) == 50
        return {ad: score for ad, score in found.items() if may_see[ad % 4]}

    sizes = set()
    with way.serve() as server:
        way.request(server, 3)
        for age in (0, 1, 2):
            for now in (begin - 1, begin, end - 1, end):
                request = asked | {"timestamp": np.array([[now]]), "profile": np.array([[age]], np.int32)}
                expected = scores(age, now)
                sizes.add(len(expected))
                for count in (5, 40):
                    answer = send(server.grpc_url, request | {"num_ads": np.array([[count]], np.int32)})
                    got = answer["ad_ids"][0][answer["ad_ids"][0] >= 0].tolist()
                    assert len(set(got)) == len(got) == min(count, len(expected))
                    assert set(got) <= expected.keys()
                    best = sorted(expected.values(), reverse=True)[: len(got)]
                    np.testing.assert_allclose(answer["scores"][0][: len(got)], best, atol=1e-4)
                    np.testing.assert_allclose([expected[ad] for ad in got], best, atol=1e-4)
    assert sizes == {13, 25, 26, 38, 37}
