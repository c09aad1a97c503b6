"""Tokenizer: fit, encode, save and load on a small catalogue."""

import json
import logging

import numpy as np
import polars as pl
import pytest

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.__main__ import run
from training.tokenizer.storage import TokenizerError
from training.tokenizer.tokenizer import Tokenizer

CONFIG = TokenizerConfig(
    embedding="tfidf_svd", codebook_sizes=(8, 4), hash_size=64, embedding_dim=12, kmeans_iterations=5, seed=1
)
WORDS = ["milk", "bread", "soap", "tea", "salt", "rice", "pasta", "fish", "beans", "corn", "apple", "pear"]
WORDS += ["plum", "cream", "lamp", "2", "lb", "oz"]


def catalogue(count=300, seed=0):
    random = np.random.default_rng(seed)
    shelves = [" ".join(random.choice(WORDS, size=4, replace=False)) for _ in range(80)]
    return pl.DataFrame(
        {
            "ad_id": np.arange(count) * 7 + 3,
            "item_id": [f"item{i}" for i in range(count)],
            "account_id": [f"account{i % 9}" for i in range(count)],
            "conversion_type": [("plain", "coupon")[i % 2] for i in range(count)],
            "text": [shelves[i % 80] for i in range(count)],
            "created_at": np.arange(count),
            "status": ["active"] * count,
        }
    )


@pytest.fixture(scope="module")
def ads():
    return catalogue()


@pytest.fixture(scope="module")
def tokenizer(ads):
    return Tokenizer.fit(ads, CONFIG)


@pytest.fixture
def saved(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_sids_have_the_promised_shape_and_range(ads, tokenizer):
    sids = tokenizer.encode(ads)
    assert sids.shape == (300, 3)
    assert sids.dtype == np.int32
    assert tokenizer.level_sizes == (8, 4, 64)
    assert (sids >= 0).all()
    assert (sids < tokenizer.level_sizes).all()
    assert tokenizer.encode(ads.head(0)).shape == (0, 3)


def test_equal_texts_share_vector_codes_and_texts_differ(ads, tokenizer):
    frame = pl.DataFrame(tokenizer.encode(ads)[:, :2], schema=["s1", "s2"]).with_columns(ads["text"])
    assert frame.unique().height == ads["text"].n_unique()
    assert frame.select("s1", "s2").unique().height > 20


def test_one_ad_alone_gets_the_sid_it_gets_among_others(ads, tokenizer):
    together = tokenizer.encode(ads)
    alone = np.concatenate([tokenizer.encode(ads[i]) for i in range(ads.height)])
    np.testing.assert_array_equal(alone, together)


def test_order_of_ads_matters_neither_to_fit_nor_to_encode(ads, tokenizer):
    order = np.random.default_rng(3).permutation(ads.height)
    again = Tokenizer.fit(ads[order], CONFIG)
    assert again.tokenizer_id == tokenizer.tokenizer_id
    np.testing.assert_array_equal(again.encode(ads[order]), tokenizer.encode(ads)[order])


def test_unseen_words_still_get_a_sid(ads, tokenizer):
    unknown = ads[:2].with_columns(text=pl.Series(["zzz qqq", ""]))
    sids = tokenizer.encode(unknown)
    assert (sids >= 0).all()
    assert sids[0, :2].tolist() == sids[1, :2].tolist()


def test_id_is_16_hex_and_changes_with_seed_config_and_data(ads, tokenizer):
    assert len(tokenizer.tokenizer_id) == 16
    assert int(tokenizer.tokenizer_id, 16) >= 0
    others = [
        Tokenizer.fit(ads, CONFIG.model_copy(update={"seed": 2})),
        Tokenizer.fit(ads, CONFIG.model_copy(update={"hash_size": 65})),
        Tokenizer.fit(ads, CONFIG.model_copy(update={"codebook_sizes": (8, 5)})),
        Tokenizer.fit(catalogue(seed=9), CONFIG),
    ]
    assert len({tokenizer.tokenizer_id, *(other.tokenizer_id for other in others)}) == 5


def test_saved_and_loaded_is_the_same_tokenizer(ads, tokenizer, saved):
    loaded = Tokenizer.load(saved)
    assert loaded.tokenizer_id == tokenizer.tokenizer_id
    assert loaded.config == tokenizer.config
    unseen = catalogue(50, seed=4)
    for frame in (ads, unseen):
        np.testing.assert_array_equal(loaded.encode(frame), tokenizer.encode(frame))
    texts = unseen["text"].to_list()
    np.testing.assert_array_equal(loaded._embedder.embed(texts), tokenizer._embedder.embed(texts))


def test_save_replaces_an_older_tokenizer_and_nothing_else(ads, tokenizer, saved, tmp_path):
    other = Tokenizer.fit(ads, CONFIG.model_copy(update={"seed": 2}))
    (saved / "sids.parquet").write_bytes(b"derived from the older one")
    other.save(saved)
    assert Tokenizer.load(saved).tokenizer_id == other.tokenizer_id
    assert not (saved / "sids.parquet").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1").touch()
    with pytest.raises(TokenizerError, match="thesis"):
        tokenizer.save(precious)
    assert (precious / "chapter1").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "arrays.safetensors", "embedder.json"])
def test_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(TokenizerError, match=f"{name}: expected a readable file"):
        Tokenizer.load(saved)


@pytest.mark.parametrize("name", ["arrays.safetensors", "embedder.json"])
def test_one_flipped_bit_is_refused(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[-5] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=f"{name}: corrupted, expected sha256"):
        Tokenizer.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "expected format version <= 1, got 2"),
        ({"format_version": "x"}, "expected format version"),
        ({"tokenizer_id": "0" * 16}, "expected tokenizer id 0000"),
        ({"config": {"codebook_sizes": [8, 4], "hash_size": 128}}, "expected tokenizer id"),
        ({"sha256": {}}, "corrupted"),
        ({"sha256": 3}, "not a tokenizer manifest"),
    ],
)
def test_edited_manifest_is_refused(saved, change, message):
    manifest = json.loads((saved / "tokenizer.json").read_text())
    (saved / "tokenizer.json").write_text(json.dumps(manifest | change))
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(saved)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "\x00"])
def test_garbage_manifest_is_refused(saved, text):
    (saved / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match="not a tokenizer manifest"):
        Tokenizer.load(saved)


def test_bad_tables_are_refused(ads):
    with pytest.raises(ValueError, match="empty table"):
        Tokenizer.fit(ads.head(0), CONFIG)
    with pytest.raises(ValueError, match=r"missing \['text'\]"):
        Tokenizer.fit(ads.drop("text"), CONFIG)
    with pytest.raises(ValueError, match="ads, column ad_id: expected integers, got String"):
        Tokenizer.fit(ads.with_columns(pl.col("ad_id").cast(pl.String)), CONFIG)
    with pytest.raises(ValueError, match="column text: expected no null, got one in row 5"):
        Tokenizer.fit(ads.with_columns(text=pl.when(pl.col("ad_id") != 38).then("text")), CONFIG)
    with pytest.raises(ValueError, match="at least 2 text features .* got 0 from 1 distinct texts"):
        Tokenizer.fit(ads.with_columns(text=pl.lit("!!")), CONFIG)
    with pytest.raises(ValueError, match="level 1: expected at least 100 distinct vectors .* got 80"):
        Tokenizer.fit(ads, CONFIG.model_copy(update={"codebook_sizes": (100, 4)}))


def test_embedding_shrinks_with_a_warning(ads, caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = Tokenizer.fit(ads, CONFIG.model_copy(update={"embedding_dim": 4000, "ngram_max": 1}))
    assert "embedding_dim shrinks from 4000 to 18" in caplog.text
    vectors = tokenizer._embedder.embed(ads["text"].to_list())
    assert vectors.shape == (300, 18)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_run_fits_on_known_ads_only_and_writes_sids_of_all(ads, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    # The last ads bring words that must not reach the vocabulary.
    later = pl.col("created_at") >= 200
    ads = ads.with_columns(text=pl.when(later).then(pl.lit("future words")).otherwise("text"))
    ads.write_parquet(data / "ads.parquet")
    (data / "split.json").write_text('{"train_end": 200}')
    quality = run(CONFIG, data, out_dir=out)
    tokenizer = Tokenizer.load(out)
    assert tokenizer.tokenizer_id == Tokenizer.fit(ads.filter(~later), CONFIG).tokenizer_id
    assert "future" not in (out / "embedder.json").read_text()
    sids = pl.read_parquet(out / "sids.parquet")
    assert sids.schema == {"ad_id": pl.Int64, "s1": pl.Int32, "s2": pl.Int32, "s3": pl.Int32}
    assert sids["ad_id"].to_list() == ads["ad_id"].to_list()
    np.testing.assert_array_equal(sids.drop("ad_id").to_numpy(), tokenizer.encode(ads))
    report = json.loads((out / "quality.json").read_text())
    assert report["collision"] == quality.collision
    assert "share of ads that share their SID" in capsys.readouterr().out


def test_a_kept_tokenizer_encodes_newer_ads(tmp_path, ads):
    """Another fit would change what the codes of a trained model mean."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (data / "split.json").write_text('{"train_end": 200}')
    older = ads.head(ads.height // 2).with_columns(created_at=pl.lit(0))
    newer = ads.with_columns(created_at=pl.lit(0))
    older.write_parquet(data / "ads.parquet")
    run(CONFIG, data, out_dir=out)
    kept = {p.name: p.read_bytes() for p in out.iterdir() if p.suffix in (".json", ".safetensors")}
    first = pl.read_parquet(out / "sids.parquet")
    newer.write_parquet(data / "ads.parquet")
    run(CONFIG, data, out_dir=out, keep=True)
    del kept["quality.json"]
    assert {name: (out / name).read_bytes() for name in kept} == kept
    again = pl.read_parquet(out / "sids.parquet")
    assert again.head(first.height).equals(first)
    np.testing.assert_array_equal(again.drop("ad_id").to_numpy(), Tokenizer.load(out).encode(newer))
    other = CONFIG.model_copy(update={"hash_size": CONFIG.hash_size + 1})
    with pytest.raises(ValueError, match=r"tokenizer.hash_size \d+ -> \d+: a model that was trained on"):
        run(other, data, out_dir=out, keep=True)
