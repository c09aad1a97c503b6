"""Sums of words, a sentence model and what ads come with: the formula, the sidecar, ads that lack parts."""

import importlib.util
import itertools
import json
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.sparse import csr_matrix

from export.encoder import contents_of, write_encoder
from indexer.encode.bundle_encoder import open_encoder
from indexer.encode.joined import SENTENCE_WEIGHTS, WORD_PIECES, JoinedEncoder
from indexer.encode.settings import GRAPH, SETTINGS
from serving.embedding.sentence_model import SentenceModelError
from serving.model.bundle import BundleError
from training.preset.tokenizer import CooccurrenceConfig, TokenizerConfig
from training.tokenizer.contents import contents_of as read_contents
from training.tokenizer.cooccurrence.held_out import HeldOut
from training.tokenizer.cooccurrence.positives import Positives
from training.tokenizer.embedders import minilm
from training.tokenizer.embedders.joined import Joined
from training.tokenizer.quality import sid_quality
from training.tokenizer.tokenizer import Tokenizer

HAS_EXTRA = all(importlib.util.find_spec(name) for name in (minilm.PACKAGE, "tokenizers"))
needs_extra = pytest.mark.skipif(not HAS_EXTRA, reason="no sentence model is installed (make minilm-setup)")
WORDS = ["milk", "bread", "soap", "tea", "salt", "größe", "pasta", "fish", "茶", "apple", "2", "lb"]
SHAPE = {"codebook_sizes": (8, 4), "hash_size": 16, "embedding_dim": 6, "kmeans_iterations": 3}
WIDTHS, NUMBERS = (5, 3), ("price",)
SUMS = [
    ("words", "given"),
    ("given",),
    pytest.param("minilm", marks=needs_extra),
    pytest.param(("words", "minilm", "given"), marks=needs_extra),
]


def ads(count=60, *, seed=0):
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, sum(WIDTHS)))
    vectors[::3, : WIDTHS[0]] = 0
    vectors[1] = 0
    texts = [" ".join(random.choice(WORDS, size=4)) for _ in range(count)]
    texts[:3] = ["", " ", "zzz"]
    return pl.DataFrame(
        {
            "ad_id": np.arange(count),
            "account_id": [f"a{i % 3}" for i in range(count)],
            "conversion_type": ["live", "plain"] * (count // 2),
            "text": texts,
            "embedding": pl.Series(vectors.tolist(), dtype=pl.List(pl.Float32)),
            "price": [None if i % 7 == 0 else float(i) for i in range(count)],
        }
    )


def fit(embedding, table=None, **changes):
    config = TokenizerConfig(embedding=embedding, **(SHAPE | changes))
    given_part = "given" in config.parts
    table = ads() if table is None else table
    return Tokenizer.fit(
        table if given_part else table.drop("embedding", "price"),
        config,
        numeric_columns=NUMBERS if given_part else (),
        widths=WIDTHS if given_part else (),
    )


def read(tokenizer, table):
    """Of a table, what the tokenizer reads of it and the sidecar gets."""
    return table if "given" in tokenizer.config.parts else table.drop("embedding", "price")


@pytest.fixture(scope="module", params=SUMS, ids=str)
def pair(request, tmp_path_factory):
    """A tokenizer, its encoder, and the folder of that."""
    tokenizer = fit(request.param)
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    write_encoder(tokenizer, folder)
    return tokenizer, open_encoder(folder), folder


@given(seed=st.integers(0, 1000), texts=st.lists(st.text(max_size=30), min_size=1, max_size=3))
@settings(max_examples=5, deadline=None)
def test_encoder_equals_the_tokenizer_in_any_batch(pair, seed, texts):
    tokenizer, encoder, _ = pair
    table = read(tokenizer, ads(10, seed=seed))
    texts = [text.encode("utf-8", "ignore").decode() for text in texts] + table["text"].to_list()[
        len(texts) :
    ]
    table = table.with_columns(text=pl.Series(texts))
    wanted, ids, contents = tokenizer.encode(table), table["ad_id"].to_numpy(), contents_of(table)
    np.testing.assert_array_equal(encoder.encode(ids, contents), wanted)
    np.testing.assert_array_equal(encoder.encode(ids[4:5], contents[4:5]), wanted[4:5])
    np.testing.assert_array_equal(tokenizer.encode(table[::-1])[::-1], wanted)


def test_vector_inside_the_graph_is_the_tokenizers_bit_for_bit(pair):
    tokenizer, encoder, folder = pair
    graph = onnx.load(str(folder / GRAPH))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("unit", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    table = read(tokenizer, ads(40, seed=5))
    content, inverse = read_contents(
        table, tokenizer.config, numeric_columns=tokenizer.numeric_columns, widths=tokenizer.widths
    )
    block = [(c, encoder._features(c)) for c in contents_of(table)]
    (vectors,) = session.run(["unit"], encoder._inputs(block))
    np.testing.assert_array_equal(vectors, tokenizer.embedder.embed(content)[inverse])


def test_the_vector_is_a_projection_of_the_parts_side_by_side():
    tokenizer, table = fit(("words", "given")), ads(12, seed=2)
    embedder = tokenizer.embedder
    content, _ = read_contents(table, tokenizer.config, numeric_columns=NUMBERS, widths=WIDTHS)
    mean, std = embedder.given.mean[0], embedder.given.std[0]
    wanted = []
    for row in table.iter_rows(named=True):
        features = embedder.words.features([row["text"]]).toarray()[0].tolist()
        for part in (row["embedding"][: WIDTHS[0]], row["embedding"][WIDTHS[0] :]):
            length = sum(value**2 for value in part) ** 0.5
            features += [value / length / 2**0.5 if length else 0.0 for value in part]
        standard = 0.0 if row["price"] is None else (row["price"] - mean) / std
        features.append(max(-3.0, min(3.0, standard)) / 3)
        projected = [sum(c * f for c, f in zip(axis, features, strict=True)) for axis in embedder.components]
        length = sum(value**2 for value in projected) ** 0.5
        wanted.append([value / length if length > 1e-9 else 0.0 for value in projected])
    np.testing.assert_allclose(embedder.embed(content), wanted, atol=3e-6)


def test_it_learns_from_baskets_what_its_features_can_tell():
    """Twelve groups are bought together; small values of the given vectors tell them, large ones do not."""
    random = np.random.default_rng(0)
    group = np.arange(60) % 12
    vectors = random.standard_normal((60, 8))
    vectors[:, 2:5] = 0.5 * random.standard_normal((12, 3))[group]
    embedding = pl.Series(vectors.tolist(), dtype=pl.List(pl.Float32))
    table = ads(60).with_columns(text=pl.lit("tea milk"), embedding=embedding, price=pl.lit(1.0))
    same = (group[:, None] == group) & ~np.eye(60, dtype=bool)
    together = csr_matrix(same.astype(np.float32))
    baskets = csr_matrix(np.array([group == one for one in range(12)] * 4, np.float32))
    config = TokenizerConfig(
        embedding=("given",),
        cooccurrence=CooccurrenceConfig(steps=60, check_every=10, anchors=30, learning_rate=0.03),
        **SHAPE,
    )
    content, _ = read_contents(table, config, numeric_columns=NUMBERS, widths=WIDTHS)
    scores = {}
    bought = Positives(together, HeldOut.of(baskets), seen=np.arange(60))
    for name, positives in (("content", None), ("learnt", bought)):
        x = Joined.fit(content, config, positives=positives).embed(content)
        cosine = x @ x.T - 2 * np.eye(60)
        scores[name] = same[np.arange(60), cosine.argmax(axis=1)].mean()
    assert scores["learnt"] > scores["content"] + 0.1


def test_an_ad_that_lacks_a_part_is_placed_by_the_others_and_one_that_lacks_all_by_none():
    tokenizer, table = fit(("words", "given")), ads()
    embedder, config = tokenizer.embedder, tokenizer.config
    bare = table.with_columns(
        embedding=pl.Series([[0.0] * 8] * 60, dtype=pl.List(pl.Float32)), price=pl.lit(None, pl.Float64)
    )
    content, _ = read_contents(bare, config, numeric_columns=NUMBERS, widths=WIDTHS)
    x = embedder.embed(content)
    lengths = np.linalg.norm(x, axis=1)
    assert not lengths[:3].any()  # "", " ", an unknown word
    np.testing.assert_allclose(lengths[3:], 1, atol=1e-6)
    assert len(np.unique(tokenizer.encode(bare)[:3, :-1], axis=0)) == 1


def test_the_sidecar_takes_an_ad_without_an_embedding_as_zeros_and_refuses_another_width(tmp_path):
    tokenizer = fit(("words", "given"))
    write_encoder(tokenizer, tmp_path / "encoder")
    encoder = open_encoder(tmp_path / "encoder")
    table = ads().with_columns(
        embedding=pl.Series([[0.0] * 8] * 60, dtype=pl.List(pl.Float32)), price=pl.lit(None, pl.Float64)
    )
    contents = [{k: v for k, v in c.items() if k != "embedding"} for c in contents_of(table)]
    assert all(encoder.refusal(content) is None for content in contents)
    np.testing.assert_array_equal(
        encoder.encode(table["ad_id"].to_numpy(), contents), tokenizer.encode(table)
    )
    short = contents_of(table.with_columns(embedding=pl.Series([[1.0]] * 60, dtype=pl.List(pl.Float32))))[0]
    assert encoder.refusal(short) == "expected an embedding of 8 numbers (5 + 3), got 1"
    assert "expected numbers of the names price" in encoder.refusal(contents[0] | {"numbers": {"x": 1.0}})


@pytest.mark.parametrize("embedding", ["given", ("given",), ("words", "given")])
def test_ads_that_come_with_the_same_count_as_one_content(embedding):
    """Sixty ads, twelve times the same five: collision floor and path similarity against plain loops."""
    five = ads()[13:18].with_columns(ad_id=pl.int_range(5, dtype=pl.Int64))
    table = pl.concat([five.with_columns(ad_id=pl.col("ad_id") + 5 * i) for i in range(12)])
    tokenizer = fit(embedding, table, codebook_sizes=(2, 2), hash_size=4, min_df=1)
    sids = tokenizer.encode(table)
    vectors = tokenizer.vectors_behind(table, sids)
    np.testing.assert_array_equal(vectors.x, tokenizer.vectors(table))
    quality = sid_quality(sids, tokenizer.level_sizes, vectors=vectors)
    pairs = [(i % 5, hashed) for i, hashed in enumerate(sids[:, -1].tolist())]
    assert quality.collision_floor == np.mean([pairs.count(pair) > 1 for pair in pairs]) > 0.5
    unit, paths = tokenizer.vectors(five).astype(np.float64), [tuple(p) for p in sids[:5, :-1].tolist()]
    unit = [v / np.linalg.norm(v) for v in unit]
    means = []
    for path in set(paths):
        inside = [u for u, p in zip(unit, paths, strict=True) if p == path]
        means += [np.mean([a @ b for a, b in itertools.combinations(inside, 2)])] if len(inside) > 1 else []
    assert quality.path_similarity == pytest.approx(np.mean(means))


@needs_extra
def test_a_tokenizer_is_the_same_saved_and_loaded_and_reads_kept_vectors(tmp_path):
    table = ads()
    config = TokenizerConfig(embedding=("minilm", "words"), **SHAPE)
    assert config.parts == ("words", "minilm")
    kept = tmp_path / "kept" / "vectors.sqlite"
    tokenizer = Tokenizer.fit(table, config, vector_file=kept)
    assert kept.is_file()
    tokenizer.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert loaded.tokenizer_id == tokenizer.tokenizer_id
    np.testing.assert_array_equal(loaded.encode(table), tokenizer.encode(table))
    assert Tokenizer.fit(table[::-1], config).tokenizer_id == tokenizer.tokenizer_id


@needs_extra
def test_instructions_reach_the_model_here_and_in_the_sidecar(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        json.dumps(
            [
                {"form": "live", "when": {"conversion_type": ["live"]}, "instruction": "A live show: {text}"},
                {"form": "any", "instruction": "{account_id} sells {text}"},
            ]
        )
    )
    worded, plain = fit("minilm", instructions=str(path)), fit("minilm")
    assert worded.tokenizer_id != plain.tokenizer_id
    path.unlink()  # the tokenizer has them now
    write_encoder(worded, tmp_path / "encoder")
    table = read(worded, ads(30, seed=3))
    wanted = worded.encode(table)
    found = open_encoder(tmp_path / "encoder").encode(table["ad_id"].to_numpy(), contents_of(table))
    np.testing.assert_array_equal(found, wanted)
    same_text = table.with_columns(text=pl.lit("milk"))
    assert len(read_contents(same_text, plain.config)[0]) == 1
    assert len(read_contents(same_text, worded.config)[0]) == 6  # of three accounts, two conversion types


@needs_extra
def test_a_text_of_a_hundred_thousand_characters_gets_a_sid():
    tokenizer = fit(("words", "minilm"))
    texts = ["milk " * 20_000, "x" * 100_000, "茶" * 100_000]
    table = ads(4).with_columns(text=pl.Series([*texts, "milk"])).drop("embedding", "price")
    assert tokenizer.encode(table).shape == (4, 3)


@needs_extra
@pytest.mark.parametrize("package", ["tokenizers", minilm.PACKAGE])
def test_without_the_extra_fitting_says_what_to_install(package, monkeypatch):
    if package == "tokenizers":
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    minilm.open_model.cache_clear()
    minilm.model_files.cache_clear()
    try:
        with pytest.raises(SentenceModelError, match="not installed: run `make minilm-setup`"):
            fit("minilm")
    finally:
        minilm.open_model.cache_clear()
        minilm.model_files.cache_clear()


@pytest.fixture(scope="module")
def of_sentences(tmp_path_factory):
    """Folder of an encoder with a sentence model."""
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    write_encoder(fit("minilm"), folder)
    return folder


@needs_extra
def test_a_sidecar_without_the_extra_says_what_to_install(of_sentences, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        BundleError, match="encoder: embedding minilm: expected the package tokenizers, which is"
    ):
        open_encoder(of_sentences)


@needs_extra
def test_a_sidecar_needs_no_weights_of_its_own(of_sentences, monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    assert isinstance(open_encoder(of_sentences), JoinedEncoder)


@needs_extra
@pytest.mark.parametrize("file", [SENTENCE_WEIGHTS, WORD_PIECES])
def test_a_bundle_without_its_sentence_model_is_refused(of_sentences, tmp_path, file):
    folder = shutil.copytree(of_sentences, tmp_path / "encoder")
    (folder / file).unlink()
    with pytest.raises(BundleError, match=f"{file}: not readable"):
        open_encoder(folder)


@needs_extra
def test_a_sidecar_that_computes_other_vectors_is_refused(of_sentences, tmp_path):
    folder = shutil.copytree(of_sentences, tmp_path / "encoder")
    content = json.loads((folder / SETTINGS).read_text())
    content["minilm"]["golden"][0][0] += 1
    (folder / SETTINGS).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="expected the golden vectors of its tokenizer"):
        open_encoder(folder)


@needs_extra
def test_a_tokenizer_of_another_machines_vectors_is_refused_when_it_is_used(tmp_path):
    tokenizer = fit("minilm")
    tokenizer.embedder.sentences.golden[2, 3] += 1
    tokenizer.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    with pytest.raises(SentenceModelError, match="golden vectors"):
        loaded.encode(read(loaded, ads()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding": ()}, "at least 1 item"),
        ({"embedding": ("words", "words")}, "expected each part once"),
        ({"embedding": ("bag",)}, "'words', 'minilm' or 'given'"),
        ({"embedding": "bag", "instructions": "x.yaml"}, "instructions: expected embedding: minilm"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig.model_validate(settings)


def test_a_projection_that_float64_could_not_add_exactly_is_refused():
    embedder = fit(("words", "given")).embedder
    components = embedder.components.copy()
    for value in (5000.0, np.nan):
        components[0, -1] = value
        with pytest.raises(ValueError, match="expected a finite projection of length <= 4096"):
            Joined(words=embedder.words, sentences=None, given=embedder.given, components=components)
