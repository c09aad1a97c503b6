"""Tokenizers from before there were quantizers and salts: they load, and keep their ids and SIDs."""

import numpy as np
import polars as pl
import pytest

from training.preset.tokenizer import CooccurrenceConfig, TokenizerConfig
from training.tokenizer import kinds
from training.tokenizer.embedders.tfidf_svd import TfidfSvd
from training.tokenizer.embedders.words import Words
from training.tokenizer.quantizers.balanced import Balanced
from training.tokenizer.quantizers.residual import Level
from training.tokenizer.quantizers.rq_kmeans import RqKmeans
from training.tokenizer.storage import TokenizerError, read_folder, write_folder
from training.tokenizer.tokenizer import Tokenizer

# As format 1 had it in its first release, with the ids that it gave.
LEARNT = {
    "codebook_sizes": [2, 2],
    "hash_size": 16,
    "embedding": "tfidf_svd",
    "embedding_dim": 2,
    "ngram_max": 1,
    "min_df": 2,
    "kmeans_iterations": 20,
    "seed": 0,
}
LEARNT_ID = "cc83cd8ec34996d7"
GIVEN = LEARNT | {"sids": "given", "given_sizes": [3, 2, 4], "codebook_sizes": [512, 256]}
GIVEN |= {"hash_size": 1024, "embedding_dim": 64, "ngram_max": 2}
GIVEN_ID = "cbc61f2be067bc6f"
BOOKS = np.eye(2, dtype=np.float32), np.diag([0.5, 0.25]).astype(np.float32)
ADS = pl.DataFrame(
    {
        "ad_id": [1, 2],
        "account_id": ["a", "b"],
        "conversion_type": ["c", "c"],
        "text": ["milk", "milk tea tea"],
    }
)


def learnt_arrays():
    return {
        "embedder.idf": np.array([1, 2], np.float32),
        "embedder.components": np.eye(2, dtype=np.float32),
        "codebook.0": BOOKS[0],
        "codebook.1": BOOKS[1],
    }


def test_a_learnt_one_loads_with_its_id_and_plain_k_means(tmp_path):
    embedder = {"ngram_max": 1, "vocabulary": {"milk": 0, "tea": 1}}
    write_folder(tmp_path / "t", LEARNT, embedder=embedder, arrays=learnt_arrays())
    tokenizer = kinds.load(tmp_path / "t")
    assert tokenizer.tokenizer_id == LEARNT_ID
    assert (tokenizer.config.quantizer, tokenizer.config.hash_salt) == ("rq_kmeans", "")
    # milk is (1, 0): code 0, and nothing is left, to which code 1 of level 2 is the nearer.
    assert tokenizer.encode(ADS)[0, :2].tolist() == [0, 1]


def test_given_sids_load_with_their_id(tmp_path):
    arrays = {"ad_ids": np.array([3, 5]), "sids": np.array([[2, 1, 3], [0, 1, 0]], np.int32)}
    write_folder(tmp_path / "t", GIVEN, embedder={}, arrays=arrays)
    assert kinds.load(tmp_path / "t").tokenizer_id == GIVEN_ID


def fresh(fitted, **settings):
    embedder = TfidfSvd(
        Words({"milk": 0, "tea": 1}, 1, idf=np.array([1, 2], np.float32)),
        components=np.eye(2, dtype=np.float32),
    )
    return Tokenizer(TokenizerConfig.model_validate(LEARNT | settings), embedder, quantizer=fitted)


def test_unchanged_settings_give_the_id_of_before_and_others_do_not():
    levels = [Level.of(book) for book in BOOKS]
    plain = fresh(RqKmeans(levels), quantizer="rq_kmeans")
    salted = fresh(RqKmeans(levels), quantizer="rq_kmeans", hash_salt="2")
    priced = fresh(Balanced([levels[0], Level.of(BOOKS[1], np.array([0.0, 1.0]))]), quantizer="balanced")
    assert plain.tokenizer_id == LEARNT_ID
    assert len({plain.tokenizer_id, salted.tokenizer_id, priced.tokenizer_id}) == 3
    assert (salted.encode(ADS)[:, :2] == plain.encode(ADS)[:, :2]).all()
    assert (salted.encode(ADS)[:, 2] != plain.encode(ADS)[:, 2]).any()
    assert priced.encode(ADS)[0, :2].tolist() == [0, 0]  # the price drives milk off code 1


def test_codes_of_another_quantizer_are_refused(tmp_path):
    embedder = {"ngram_max": 1, "vocabulary": {"milk": 0, "tea": 1}}
    write_folder(tmp_path / "t", LEARNT | {"quantizer": "fsq"}, embedder=embedder, arrays=learnt_arrays())
    with pytest.raises(TokenizerError, match="content does not fit together"):
        kinds.load(tmp_path / "t")


def test_a_key_that_came_since_does_not_change_the_id_of_what_was_stored_without_it(tmp_path):
    config = TokenizerConfig(embedding="bag", codebook_sizes=(2, 2), hash_size=16).to_json()
    del config["cooccurrence"]["temperature"]  # as if it had come with this release
    embedder = {"ngram_max": 1, "vocabulary": {"milk": 0, "tea": 1}}
    write_folder(tmp_path / "t", config, embedder=embedder, arrays=learnt_arrays())
    tokenizer = kinds.load(tmp_path / "t")
    assert tokenizer.config.cooccurrence.temperature == CooccurrenceConfig().temperature
    assert tokenizer.tokenizer_id == read_folder(tmp_path / "t")[0]
    tokenizer.save(tmp_path / "copy")
    assert kinds.load(tmp_path / "copy").tokenizer_id == tokenizer.tokenizer_id
