"""Drift against plain formulas, and what it says of ads of a kind that the fit did not know."""

import json

import numpy as np
import polars as pl
import pytest

from tests.unit.test_tokenizer_tokenizer import CONFIG, catalogue
from training.tokenizer.__main__ import run
from training.tokenizer.drift import DRIFT, MIN_ADS, Drift, Spread
from training.tokenizer.fit_record import FIT, FitRecord

CONFIG = CONFIG.model_copy(update={"embedding": "tfidf_svd", "quantizer": "rq_kmeans"})
EVEN = np.tile(np.arange(8), 100)[:, None]


def test_equals_plain_loops():
    random = np.random.default_rng(0)
    vectors, decoded = random.normal(size=(2, 30, 4)).astype(np.float32)
    vectors[3] = 0
    codes = random.integers(0, 3, (30, 2))
    spread = Spread.of(vectors, codes, decoded=decoded)
    lost = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))
        for x, y in zip(vectors, decoded, strict=True)
    ]
    assert spread.error == pytest.approx(sum(lost) / 30, rel=1e-6)
    for level in (1, 2):
        same = sum(
            i != j and codes[i, :level].tolist() == codes[j, :level].tolist()
            for i in range(30)
            for j in range(30)
        )
        assert spread.pairs[level - 1] == pytest.approx(same / (30 * 29))
    assert (spread.ads, spread.unknown) == (30, 1 / 30)


def test_pairs_do_not_depend_on_the_number_of_ads():
    """The mean over small draws is the figure of all: ratios of few and of many ads can be compared."""
    random, few = np.random.default_rng(1), np.zeros((10, 1), np.float32)
    drawn = [Spread.of(few, random.integers(0, 8, (10, 1)), decoded=few).pairs[0] for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(1 / 8, rel=0.03)


def drift(*, error=1.0, ads=MIN_ADS, codes=EVEN):
    fitted = Spread.of(np.zeros((800, 1), np.float32), EVEN, decoded=np.ones((800, 1), np.float32))
    return Drift.between(fitted, Spread(ads, error, (0.1,), 0.0), codes=codes)


def test_when_it_is_due():
    assert not drift().due
    assert drift().why == "not due: error 1.00, pairs 1.00 times the fit's"
    far = drift(error=1.6)
    assert far.due
    assert far.why == "due: error 1.60 > 1.5 times the fit's"
    crowded = drift(codes=EVEN // 2)
    assert crowded.due
    assert "pairs up to level 1 2.0" in crowded.why


def test_few_ads_say_nothing():
    found = drift(error=9.0, ads=MIN_ADS - 1)
    assert not found.due
    assert found.why == f"not known: expected {MIN_ADS} new ads to judge by, got {MIN_ADS - 1}"
    nothing = np.zeros((0, 2), np.float32)
    assert Spread.of(nothing, np.zeros((0, 3), int), decoded=nothing) == Spread(0, 0.0, (0.0,) * 3, 0.0)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "split.json").write_text(json.dumps({"train_end": 250}))
    return tmp_path


def tokenize(place, ads, *, keep):
    ads.write_parquet(place / "data" / "ads.parquet")
    run(CONFIG, place / "data", out_dir=place / "out", keep=keep)
    return json.loads((place / "out" / DRIFT).read_text())


def test_ads_of_another_kind_make_a_refit_due(place, capsys):
    """Ads of the kinds that there were, and then of one that there was not."""
    first = tokenize(place, catalogue(), keep=False)
    assert (first["fitted"]["ads"], first["new"]["ads"], first["due"]) == (250, 50, False)
    assert "not known" in first["why"]
    more = catalogue(700).with_columns(created_at=pl.lit(900, pl.Int64))
    same = tokenize(place, pl.concat([catalogue(), more[300:]]), keep=True)
    assert (same["new"]["ads"], same["due"]) == (450, False)
    assert 0.8 < same["error"] < 1.2
    (place / "data" / "split.json").write_text(json.dumps({"train_end": 800}))  # the log goes on
    other = more[300:].with_columns(text=pl.format("plum lamp {}", pl.col("ad_id") % 50))
    far = tokenize(place, pl.concat([catalogue(), other]), keep=True)
    assert far["fitted"] == first["fitted"]
    assert far["new"]["ads"] == 450
    assert far["due"]
    assert far["error"] > 1.5
    assert "drift of 450 ads since the fit: due: error" in capsys.readouterr().out


def test_a_fit_is_told_by_a_file(place, capsys):
    tokenize(place, catalogue(), keep=False)
    record = FitRecord.load(place / "out")
    assert record.fitted_until == 250
    assert record.spread.ads == 250
    assert record.fit_seconds > 0
    assert 0.05 < record.fit_peak_gb < 50
    assert record.encode_ads_per_s > 100
    (place / "out" / FIT).write_text('{"spread": {"pairs": [1]}}')
    with pytest.raises(ValueError, match="fit.json: expected what is known of a fit"):
        FitRecord.load(place / "out")
    (place / "out" / FIT).unlink()  # of a tokenizer from before
    (place / "out" / DRIFT).unlink()
    catalogue().write_parquet(place / "data" / "ads.parquet")
    run(CONFIG, place / "data", out_dir=place / "out", keep=True)
    assert "drift: not known" in capsys.readouterr().out
    assert not (place / "out" / DRIFT).exists()
