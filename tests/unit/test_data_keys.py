"""String ids of the tables: as numbers in what is prepared, with the way back kept."""

import hashlib
import itertools
import json

import polars as pl
import pytest
from hypothesis import given, settings

from examples.client import ids
from indexer.events.event import PauseEvent
from serving.keys import id_of
from tests.unit.test_data_schema import ads, events, users
from tests.unit.test_keys import KEYS
from training.data.checks import TableError
from training.data.keys import FOLDER, Keys, ids_of, with_ids
from training.data.prepare import main, prepare
from training.data.prepared import load_prepared
from training.data.schema import LoadStats, make_tables
from training.preset.data import DataConfig

AD = {7: "shoes", 3: "17", 5: "обувь 👟"}
USER = {1: "anna", 2: "2"}


def keyed_ads(**replace):
    return ads(**{"ad_id": ["shoes", "17", "обувь 👟"], **replace})


def keyed_users(**replace):
    return users(**{"user_id": ["2", "anna"], **replace})


def keyed_events(**replace):
    shown = {"user_id": ["anna", "anna", "2", "2"], "ad_id": ["17", "обувь 👟", "shoes", "shoes"]}
    return events(**(shown | replace))


def tables_of(ads_table, users_table, events_table):
    where = ("A", "U", "E")
    return make_tables(
        ads_table, users_table, events=events_table, stats=LoadStats(4), provenance="p", where=where
    )


@settings(deadline=None)
@given(KEYS)
def test_tables_sidecar_and_client_agree(key):
    number = int(hashlib.blake2b(key.encode()).hexdigest()[:16], 16) & ((1 << 63) - 1)
    frame = pl.DataFrame({"ad_id": [key, key], "user_id": [key, None]})
    assert with_ids(frame).rows() == [(number, number), (number, None)]
    assert with_ids(frame.lazy()).collect().rows() == [(number, number), (number, None)]
    assert PauseEvent(ad_id=key, version=1).ad_id == number
    assert ids([key, 5]) == [number, 5]


def test_string_ids_become_what_numbers_would_be():
    """But for the numbers themselves, and the order that follows from them."""
    made, plain = tables_of(keyed_ads(), keyed_users(), keyed_events()), tables_of(ads(), users(), events())
    for name, columns in (("ads", ["ad_id"]), ("users", ["user_id"]), ("events", ["user_id", "ad_id"])):
        table, other = getattr(made, name), getattr(plain, name)
        assert table.schema == other.schema
        back = {
            "ad_id": {id_of(k): n for n, k in AD.items()},
            "user_id": {id_of(k): n for n, k in USER.items()},
        }
        named = table.with_columns(pl.col(c).replace_strict(back[c]) for c in columns)
        assert named.sort(table.columns).equals(other.sort(table.columns))
    assert made.ads["ad_id"].is_sorted()
    assert made.events["user_id"].is_sorted()
    assert dict(made.keys.ads.select("ad_id", "key").iter_rows()) == {id_of(k): k for k in AD.values()}
    assert dict(made.keys.users.select("user_id", "key").iter_rows()) == {id_of(k): k for k in USER.values()}
    assert plain.keys == Keys()


def test_an_item_without_an_id_of_its_own_is_called_by_its_key():
    made = tables_of(keyed_ads().drop("item_id"), keyed_users(), keyed_events())
    assert dict(made.ads.select("ad_id", "item_id").iter_rows()) == {id_of(k): k for k in AD.values()}


def test_some_tables_may_have_keys_and_others_numbers():
    made = tables_of(keyed_ads(), users(), events(ad_id=["17", "обувь 👟", "shoes", "shoes"]))
    assert made.users["user_id"].to_list() == [1, 2]
    assert made.keys.users is None
    assert made.keys.ads is not None


BAD = [
    (
        (keyed_ads, {"ad_id": ["a", "", "c"]}),
        "A, row 1, column 'ad_id': expected a key of 1 to 256 characters, got ''",
    ),
    ((keyed_ads, {"ad_id": ["a", "b", "k" * 257]}), "A, row 2, column 'ad_id': expected a key of 1 to 256"),
    ((keyed_ads, {"ad_id": ["a", None, "c"]}), "A, row 1, column 'ad_id': expected a value, got None"),
    (
        (keyed_ads, {"ad_id": ["a", "b", "a"]}),
        "A, row 2, column 'ad_id': expected each key once, got 'a' again",
    ),
    ((keyed_users, {"user_id": ["", "anna"]}), "U, row 0, column 'user_id': expected a key of 1 to 256"),
    (
        (keyed_events, {"ad_id": ["17", "x", "shoes", "y"]}),
        "E, row 1, column 'ad_id': expected an id of the ads table, got 'x'",
    ),
    (
        (keyed_events, {"ad_id": [17, 5, 7, 7]}),
        "E, column 'ad_id': expected dtype String as in the ads table, got dtype Int64",
    ),
    (
        (keyed_events, {"user_id": [1, 1, 2, 2]}),
        "E, column 'user_id': expected dtype String as in the users table",
    ),
    (
        (keyed_events, {"user_id": [None] * 4}),
        "E, column 'user_id': expected dtype Int64 or String, got dtype Null",
    ),
    (
        (keyed_ads, {"ad_id": [1, 2, 3]}),
        "E, column 'ad_id': expected dtype Int64 as in the ads table, got dtype String",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_is_refused_is_named_by_its_key(change, message):
    make, columns = change
    made = {m: m(**(columns if m is make else {})) for m in (keyed_ads, keyed_users, keyed_events)}
    with pytest.raises(TableError) as caught:
        tables_of(*made.values())
    assert message in str(caught.value)


def colliding(bits):
    """Two keys that differ in nothing of so many last bits of their hashes; found by looking."""
    seen = {}
    for key in map("key {}".format, itertools.count()):
        short = id_of(key) & bits
        if short in seen:
            return seen[short], key
        seen[short] = key


def test_two_keys_of_one_id_are_refused_with_both_names(monkeypatch):
    first, second = colliding((1 << 16) - 1)
    clash = keyed_ads(ad_id=[first, "17", second]), keyed_events(ad_id=["17", "17", first, first])
    tables_of(clash[0], keyed_users(), clash[1])  # in 63 bits they are two
    monkeypatch.setattr("serving.keys._BITS", (1 << 16) - 1)
    with pytest.raises(TableError) as caught:
        tables_of(clash[0], keyed_users(), clash[1])
    assert repr(first) in str(caught.value)
    assert repr(second) in str(caught.value)
    assert "A, column 'ad_id': expected keys with an id each" in str(caught.value)
    with pytest.raises(TableError, match="U, column 'user_id': expected keys with an id each"):
        tables_of(
            keyed_ads(),
            keyed_users(user_id=[first, second]),
            keyed_events(user_id=[first, first, second, second]),
        )


def test_ids_of_a_large_column_are_made_once_for_each_key(monkeypatch):
    calls = []
    monkeypatch.setattr("training.data.keys.id_of", lambda key: calls.append(key) or id_of(key))
    column = pl.Series(["a", "b", None, "a"] * 25_000)
    found = ids_of(column)
    assert found.to_list()[:4] == [id_of("a"), id_of("b"), None, id_of("a")]
    assert found.null_count() == 25_000
    assert sorted(calls) == ["a", "b"]


@pytest.fixture
def source(tmp_path):
    """A log long enough to be split, by the last requests of each user."""
    folder = tmp_path / "source"
    folder.mkdir()
    keyed_ads().write_parquet(folder / "ads.parquet")
    keyed_users().write_parquet(folder / "users.parquet")
    rows = [
        (user, list(AD.values())[i % 3], 1000 + 10_000 * i, "conversion", 1.0, "made up")
        for user in USER.values()
        for i in range(6)
    ]
    names = ["user_id", "ad_id", "timestamp", "behavior", "value", "provenance"]
    made = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        request_id=pl.concat_str(pl.lit("request "), pl.col("timestamp"))
    )
    made.write_parquet(folder / "events.parquet")
    return folder


def config(source):
    return DataConfig(
        source="parquet", path=str(source), split={"by": "last_events"}, target_behaviors=["conversion"]
    )


def test_keys_are_kept_with_the_run_and_replaced_with_it(source, tmp_path):
    out = tmp_path / "data"
    prepare(config(source), out)
    loaded = load_prepared(out)
    assert loaded.tables.keys.ads.equals(pl.read_parquet(out / FOLDER / "ads.parquet"))
    for column, keys, names in (
        ("ad_id", loaded.tables.keys.ads, AD),
        ("user_id", loaded.tables.keys.users, USER),
    ):
        assert dict(keys.select(column, "key").iter_rows()) == {id_of(key): key for key in names.values()}
        assert set(loaded.tables.events[column]) == set(keys[column])
    assert loaded.tables.events["request_id"].dtype == pl.String()
    pl.read_parquet(source / "users.parquet").with_columns(user_id=pl.Series([2, 1])).write_parquet(
        source / "users.parquet"
    )
    pl.read_parquet(source / "events.parquet").with_columns(
        user_id=pl.col("user_id").replace_strict({"2": 2, "anna": 1}, return_dtype=pl.Int64)
    ).write_parquet(source / "events.parquet")
    prepare(config(source), out)
    assert [f.name for f in (out / FOLDER).iterdir()] == ["ads.parquet"]
    assert load_prepared(out).tables.keys.users is None


def test_make_data_says_that_there_are_keys(source, tmp_path, capsys):
    preset = tmp_path / "preset.yaml"
    preset.write_text(json.dumps({"data": config(source).model_dump(mode="json")}))
    assert main(["--config", str(preset), "--out", str(tmp_path / "data")]) == 0
    assert "string ids of 3 ads and 2 users: see keys/ of the data" in capsys.readouterr().out
