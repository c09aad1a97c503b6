"""A published SID stays, whatever becomes of its ad."""

import json

import numpy as np
import polars as pl
import pytest

from tests.unit.test_tokenizer_tokenizer import CONFIG, catalogue
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer import kinds
from training.tokenizer.__main__ import run
from training.tokenizer.published import RETIRED, SIDS, keep_published, load_published

CONFIG = CONFIG.model_copy(update={"embedding": "tfidf_svd", "quantizer": "rq_kmeans"})


@pytest.fixture
def place(tmp_path):
    """Folder of the data and of a tokenizer that was fitted on it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "split.json").write_text(json.dumps({"train_end": 250}))
    tokenize(tmp_path, catalogue(), keep=False)
    return tmp_path


def tokenize(place, ads, *, keep=True, config=CONFIG):
    ads.write_parquet(place / "data" / "ads.parquet")
    run(config, place / "data", out_dir=place / "out", keep=keep)


def published(place, ad_ids=None):
    table = pl.read_parquet(place / "out" / SIDS)
    rows = table if ad_ids is None else table.filter(pl.col("ad_id").is_in(ad_ids))
    return {row[0]: row[1:] for row in rows.sort("ad_id").iter_rows()}


CHANGES = {
    "text": pl.lit("zebra piano zebra"),
    "account_id": pl.lit("another"),
    "conversion_type": pl.lit("another"),
}


@pytest.mark.parametrize("column", CHANGES)
@pytest.mark.parametrize("keep", [True, False])
def test_a_changed_ad_keeps_its_sid(place, column, keep, capsys):
    """Also where the same tokenizer is fitted again: ads after the train end have no part in it."""
    before, late = published(place), pl.col("created_at") >= 250
    changed = catalogue().with_columns(pl.when(late).then(CHANGES[column]).otherwise(column).alias(column))
    codes = kinds.load(place / "out").encode(changed)
    moved = (codes != np.array([before[ad] for ad in changed["ad_id"]])).any(axis=1)
    assert moved.sum() > 20  # otherwise this test says nothing
    tokenize(place, changed, keep=keep)
    assert published(place) == before
    assert f"0 ads are new; {moved.sum()} that have changed keep" in capsys.readouterr().out


def test_new_ads_are_appended_with_what_the_tokenizer_says(place):
    before, more = published(place), catalogue(400, seed=3)
    tokenize(place, pl.concat([catalogue(), more[300:]]))
    assert published(place, list(before)) == before
    wanted = kinds.load(place / "out").encode(more[300:])
    new = published(place, more["ad_id"][300:].to_list())
    np.testing.assert_array_equal(np.array(list(new.values())), wanted)


def test_an_ad_that_left_and_comes_back_has_its_sid(place):
    before = published(place)
    tokenize(place, catalogue()[100:])
    assert list(published(place)) == catalogue()["ad_id"][100:].to_list()  # of the table, and of no other ad
    tokenize(place, catalogue()[100:])  # still known after a second time
    changed = catalogue().with_columns(text=pl.lit("zebra"))
    tokenize(place, changed)
    assert published(place) == before
    assert not pl.read_parquet(place / "out" / RETIRED).height


def test_another_tokenizer_gives_others(place):
    before = published(place)
    tokenize(place, catalogue(), keep=False, config=CONFIG.model_copy(update={"seed": 4}))
    assert published(place) != before


def test_a_crash_between_the_files_loses_none(place, monkeypatch):
    before = published(place)
    real = pl.DataFrame.write_parquet

    def fail(self, file, *args, **options):
        if SIDS in str(file):
            raise OSError("disk full")
        return real(self, file, *args, **options)

    monkeypatch.setattr("training.tokenizer.published.pl.DataFrame.write_parquet", fail)
    ads = catalogue()[100:]
    real(ads, place / "data" / "ads.parquet")
    with pytest.raises(OSError, match="disk full"):
        run(CONFIG, place / "data", out_dir=place / "out", keep=True)
    monkeypatch.undo()
    known = load_published(place / "out").sort("ad_id")
    assert {row[0]: row[1:] for row in known.iter_rows()} == before


def test_a_crash_loses_no_ad_that_comes_back(place, monkeypatch):
    before = published(place)
    tokenize(place, catalogue()[100:])  # the first hundred are away
    real = pl.DataFrame.write_parquet

    def fail(self, file, *args, **options):
        if SIDS in str(file):
            raise OSError("disk full")
        return real(self, file, *args, **options)

    monkeypatch.setattr("training.tokenizer.published.pl.DataFrame.write_parquet", fail)
    real(catalogue(), place / "data" / "ads.parquet")
    with pytest.raises(OSError, match="disk full"):
        run(CONFIG, place / "data", out_dir=place / "out", keep=True)
    monkeypatch.undo()
    tokenize(place, catalogue().with_columns(text=pl.lit("zebra")))
    assert published(place) == before


def test_what_was_published_is_not_guessed(place):
    (place / "out" / SIDS).write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"expected published SIDs in sids.parquet, got .*; put the files"):
        tokenize(place, catalogue())
    assert (place / "out" / SIDS).read_bytes() == b"broken"


def test_a_given_sid_that_moves_is_an_error_for_appended_ads_too(tmp_path):
    """The tokenizer itself knows the ads of its first day alone."""
    config = TokenizerConfig(sids="given", given_sizes=(None, 9))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "split.json").write_text(json.dumps({"train_end": 250}))
    ads = catalogue(40).with_columns(pl.lit(3).alias("sid_0"), (pl.col("ad_id") % 9).alias("sid_1"))
    tokenize(tmp_path, ads[:30], keep=False, config=config)
    tokenize(tmp_path, ads, config=config)
    moved = ads.with_columns(pl.when(pl.col("ad_id") == 38 * 7 + 3).then(1).otherwise("sid_0").alias("sid_0"))
    with pytest.raises(ValueError, match="ad 269: expected the SID that it was published with"):
        tokenize(tmp_path, moved, config=config)
    assert published(tmp_path)[269] == (3, 269 % 9)


def test_given_sids_of_ads_that_left_outlive_a_refit_with_settings_that_nothing_reads(tmp_path):
    config = TokenizerConfig(sids="given", given_sizes=(4, 9))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "split.json").write_text(json.dumps({"train_end": 250}))
    ads = catalogue(40).with_columns(pl.lit(3).alias("sid_0"), (pl.col("ad_id") % 9).alias("sid_1"))
    tokenize(tmp_path, ads[:30], keep=False, config=config)
    tokenize(tmp_path, ads, config=config)
    tokenize(tmp_path, ads[:30], config=config)
    unread = config.model_copy(update={"seed": 1, "embedding": "tfidf_svd"})
    tokenize(tmp_path, ads[:30], keep=False, config=unread)
    known = load_published(tmp_path / "out")
    assert sorted(known["ad_id"]) == sorted(ads["ad_id"])


def test_other_levels_are_refused():
    one = pl.DataFrame({"ad_id": [1], "s1": [0]})
    with pytest.raises(ValueError, match=r"expected published SIDs with columns \['ad_id', 's1'\]"):
        keep_published(one, one.rename({"s1": "s2"}))
