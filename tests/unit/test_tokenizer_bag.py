"""The embedder that learns which texts are bought together, alone and within a tokenizer."""

import json
import logging

import numpy as np
import polars as pl
import pytest

from export.encoder import check_encoder, write_encoder
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.__main__ import run
from training.tokenizer.cooccurrence.baskets import Baskets
from training.tokenizer.cooccurrence.positives import Cooccurrence
from training.tokenizer.embedders.bag import Bag
from training.tokenizer.embedders.tfidf_svd import TfidfSvd
from training.tokenizer.recall import group_recall
from training.tokenizer.tokenizer import Tokenizer

FAMILIES = 20
LEARNING = {"steps": 80, "check_every": 20, "anchors": 30, "negatives": 20, "learning_rate": 0.02}
CONFIG = TokenizerConfig.model_validate(
    {
        "codebook_sizes": (8, 4),
        "hash_size": 64,
        "embedding_dim": 16,
        "min_df": 1,
        "kmeans_iterations": 5,
        "cooccurrence": LEARNING,
    }
)


def catalogue():
    """Ads 2 f and 2 f + 1 are bought together: a dish and its wine, whose texts share no word."""
    texts = [name for f in range(FAMILIES) for name in (f"dish d{f} food", f"wine w{f} bottle")]
    count = len(texts)
    return pl.DataFrame(
        {
            "ad_id": np.arange(count),
            "account_id": ["a"] * count,
            "conversion_type": ["plain"] * count,
            "text": texts,
            "created_at": [0] * count,
        }
    )


def pairs(rounds=40, seed=0):
    random = np.random.default_rng(seed)
    return [[2 * f, 2 * f + 1] for _ in range(rounds) for f in random.permutation(FAMILIES).tolist()]


def positives_of(texts, baskets):
    ids = np.arange(len(texts))
    return Cooccurrence(Baskets.of(baskets)).positives(
        ids, ids, count=len(texts), settings=CONFIG.cooccurrence
    )


def partner_is_nearest(vectors):
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2)
    return (similarity.argmax(axis=1) == np.arange(len(vectors)) ^ 1).mean()


def test_dishes_come_to_lie_beside_their_wines():
    texts = catalogue()["text"].to_list()
    positives = positives_of(texts, pairs())
    plain, learnt = (kind.fit(texts, CONFIG, positives=positives) for kind in (TfidfSvd, Bag))
    assert partner_is_nearest(plain.embed(texts)) < 0.2
    assert partner_is_nearest(learnt.embed(texts)) > 0.8
    assert plain.state()[1] == learnt.state()[1]  # the same words: only the projection differs
    again = Bag.from_state(*learnt.state())
    np.testing.assert_array_equal(again.embed(texts), learnt.embed(texts))


@pytest.mark.parametrize("baskets", [None, [], [[0], [1], [2]]], ids=["none given", "no baskets", "singles"])
def test_without_baskets_content_is_all_that_is_known(baskets, caplog):
    texts = catalogue()["text"].to_list()
    positives = None if baskets is None else positives_of(texts, baskets)
    with caplog.at_level(logging.WARNING):
        found = Bag.fit(texts, CONFIG, positives=positives)
    assert "nothing is known to be bought together" in caplog.text
    np.testing.assert_array_equal(found.embed(texts), TfidfSvd.fit(texts, CONFIG).embed(texts))


def prepared(folder, baskets, *, later=()):
    folder.mkdir()
    ads = catalogue()
    ads.write_parquet(folder / "ads.parquet")
    rows = [
        (basket, ad, time, "conversion")
        for time, part in ((1, baskets), (100, later))
        for basket, ads_of in enumerate(part)
        for ad in ads_of
    ]
    pl.DataFrame(rows, schema=["user_id", "ad_id", "timestamp", "behavior"], orient="row").write_parquet(
        folder / "events.parquet"
    )
    (folder / "split.json").write_text(json.dumps({"train_end": 50}))
    return folder


def test_a_tokenizer_learns_from_the_training_part_only(tmp_path):
    def made(name, baskets, **more):
        data = prepared(tmp_path / name, baskets, **more)
        run(CONFIG, data, out_dir=tmp_path / f"{name}-out", target_behaviors=["conversion"])
        return Tokenizer.load(tmp_path / f"{name}-out")

    crossed = [[2 * f, (2 * f + 3) % (2 * FAMILIES)] for f in range(FAMILIES)] * 40
    first = made("first", pairs())
    assert made("again", pairs(), later=crossed).tokenizer_id == first.tokenizer_id
    assert made("other", crossed).tokenizer_id != first.tokenizer_id
    assert partner_is_nearest(first.embedder.embed(catalogue()["text"].to_list())) > 0.8
    assert {path.name for path in (tmp_path / "first").iterdir()} == {
        *("ads.parquet", "events.parquet", "split.json")
    }


def test_the_encoder_of_a_bundle_gives_the_same_sids(tmp_path):
    cooccurrence = Cooccurrence(Baskets.of(pairs()))
    tokenizer = Tokenizer.fit(catalogue(), CONFIG, cooccurrence=cooccurrence)
    write_encoder(tokenizer, tmp_path / "encoder")
    check_encoder(tokenizer, tmp_path / "encoder", count=200, seed=1)


def test_settings_that_play_no_part_are_not_in_the_id():
    plain = CONFIG.model_copy(update={"embedding": "tfidf_svd"})
    assert "cooccurrence" not in plain.to_json()
    assert CONFIG.to_json()["cooccurrence"]["steps"] == LEARNING["steps"]


def test_recall_of_contents_that_were_kept_out_is_that_of_a_fit_without_them():
    """Nothing in a dish's text tells its wine, so what was kept out stays where the words are."""
    texts = catalogue()["text"].to_list()
    ids = np.arange(len(texts))
    train, later = (Baskets.of(pairs(seed=seed)).contents(ids, ids, count=len(ids)) for seed in (0, 1))
    found = group_recall(texts, CONFIG, train=train, later=later, kept_out=0.4, ks=(1, 5))
    hidden = np.random.default_rng(CONFIG.seed).random(len(texts)) < 0.4
    assert found["warm"].anchors == len(texts)
    assert found["kept out"].anchors == hidden.sum()
    assert found["few"].anchors == 0
    assert found["warm"].recall[1] > 0.8
    assert found["kept out"].recall[1] < 0.4
    assert found["warm"].best_seller[1] < 0.2
