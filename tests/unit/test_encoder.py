"""The encoder of a bundle gives the tokenizer's SIDs for any text, and is refused when it does not fit."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import export.encoder as exporter
import indexer.encode.words as module
import training.tokenizer.quantizers.rq_vae as rq_vae
from export.bundle import write_bundle
from export.encoder import write_encoder
from export.parity import ParityError
from export.quantizer_graph import add_codes
from indexer.encode.ad_encoder import AdEncoder
from indexer.encode.bundle_encoder import load_encoder
from serving.files import sha256
from serving.model.bundle import BundleError, read_manifest
from tests.pipeline import checkpoint, small_ads
from tests.unit.test_bundle import edit, fake_graphs
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.graph_nodes import Nodes
from training.tokenizer.quantizers import QUANTIZERS
from training.tokenizer.tokenizer import Tokenizer

WORDS = [
    "milk",
    "bread",
    "soap",
    "tea",
    "salt",
    "größe",
    "pasta",
    "fish",
    "i̇stanbul",
    "茶",
    "apple",
    "2",
    "lb",
]
GRAPH, SETTINGS = "encoder/encoder.onnx", "encoder/encoder.json"


def table(texts, *, seed=0):
    random = np.random.default_rng(seed)
    count = len(texts)
    return pl.DataFrame(
        {
            "ad_id": random.integers(0, 2**63, count),
            "account_id": [f"account {i % 7}" for i in range(count)],
            "conversion_type": [("plain", "köder")[i % 2] for i in range(count)],
            "text": pl.Series(texts, dtype=pl.String),
        }
    )


def fit(**changes):
    random = np.random.default_rng(3)
    texts = [" ".join(random.choice(WORDS, size=5)) for _ in range(300)]
    content = {"codebook_sizes": (16, 8, 4), "hash_size": 64, "embedding_dim": 13, "kmeans_iterations": 5}
    return Tokenizer.fit(table(texts), TokenizerConfig(**(content | changes)))


def encode(encoder, ads):
    return encoder.encode(ads["ad_id"].to_list(), exporter.contents_of(ads))


@pytest.fixture(scope="module", params=[1, 2, 3], ids="ngram_max={}".format)
def pair(request, tmp_path_factory):
    """A tokenizer and its encoder."""
    tokenizer = fit(ngram_max=request.param)
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    write_encoder(tokenizer, folder)
    return tokenizer, AdEncoder(folder)


@pytest.fixture
def bundle(pipeline, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(pipeline.bundles / "1", tmp_path / "bundles" / "1")


# Surrogates are no text: neither a table nor a hash takes them.
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
WORD = st.sampled_from(
    [*WORDS, "MILK", "GRÖSSE", "İSTANBUL", "unknown", "soap,", "(tea)", "milk-bread", "_", "²"]
)
TEXT = ANY | st.lists(WORD | ANY, max_size=30).map(" ".join) | WORD.map(lambda word: f"{word} " * 50)


@given(texts=st.lists(TEXT, min_size=1, max_size=12), seed=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_equals_the_tokenizer_on_any_text(pair, texts, seed):
    tokenizer, encoder = pair
    ads = table(texts, seed=seed)
    wanted, actual = tokenizer.encode(ads), encode(encoder, ads)
    assert actual.dtype == wanted.dtype == np.int32
    np.testing.assert_array_equal(actual, wanted)


@given(text=TEXT)
@settings(max_examples=150, deadline=None)
def test_knows_what_the_tokenizer_has_a_weight_for(pair, text):
    tokenizer, encoder = pair
    assert encoder.knows(text) == bool(tokenizer.embedder.words.features([text]).nnz)


def known_texts(count=2000):
    random = np.random.default_rng(8)
    texts = [" ".join(random.choice(WORDS, size=random.integers(1, 15))) for _ in range(count)]
    return [*texts, "", "zzz", " ".join(random.choice(WORDS, size=60_000))]


def test_equals_the_tokenizer_on_two_thousand_known_texts_and_a_very_long_one(pair):
    tokenizer, encoder = pair
    ads = table(known_texts())
    assert len(np.unique(tokenizer.encode(ads)[:, :3], axis=0)) > 100
    np.testing.assert_array_equal(encode(encoder, ads), tokenizer.encode(ads))


def test_vector_inside_the_graph_is_the_tokenizers_bit_for_bit(pair, tmp_path):
    """Codes would hide a small error of the formula: a look at the float32 vector before the grid."""
    tokenizer, encoder = pair
    write_encoder(tokenizer, tmp_path / "encoder")
    graph = onnx.load(str(tmp_path / GRAPH))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("unit", onnx.TensorProto.FLOAT, ["N", 13]))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    texts = known_texts(500)
    (vectors,) = session.run(["unit"], module.padded([encoder.words.features(text) for text in texts]))
    np.testing.assert_array_equal(vectors, tokenizer.embedder.embed(texts))


@pytest.mark.parametrize("quantizer", sorted(QUANTIZERS))
def test_every_quantizer_gives_the_same_codes_in_the_graph(quantizer, tmp_path, monkeypatch):
    monkeypatch.setattr(rq_vae, "STEPS", 30)
    tokenizer = fit(quantizer=quantizer)
    write_encoder(tokenizer, tmp_path / "encoder")
    encoder, ads = AdEncoder(tmp_path / "encoder"), table(known_texts())
    wanted = tokenizer.encode(ads)
    assert len(np.unique(wanted[:, :3], axis=0)) > 60
    np.testing.assert_array_equal(encode(encoder, ads), wanted)
    alone = np.concatenate([encode(encoder, ads[i]) for i in range(50)])
    np.testing.assert_array_equal(alone, wanted[:50])


def test_a_salted_hash_is_the_encoders_too_and_a_release_without_salts_refuses_it(tmp_path):
    tokenizer = fit(hash_salt="spring-2")
    write_encoder(tokenizer, tmp_path / "encoder")
    encoder, ads = AdEncoder(tmp_path / "encoder"), table(known_texts(100))
    np.testing.assert_array_equal(encode(encoder, ads), tokenizer.encode(ads))
    path = tmp_path / SETTINGS
    settings = json.loads(path.read_text())
    assert settings.pop("hash_salt") == "spring-2"
    path.write_text(json.dumps(settings))  # what such a release would read
    with pytest.raises(BundleError, match="expected the graph of encoder.json"):
        AdEncoder(tmp_path / "encoder")


def test_a_quantizer_without_a_graph_is_refused():
    with pytest.raises(ValueError, match="expected a quantizer with an ONNX form, got object"):
        add_codes(Nodes(), "x", object())


def test_an_ad_alone_gets_the_sid_it_gets_among_others_and_by_two_threads(pair, tmp_path):
    tokenizer, encoder = pair
    ads = table(known_texts(60))
    together = encode(encoder, ads)
    alone = np.concatenate([encode(encoder, ads[row]) for row in range(ads.height)])
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(encode(encoder, ads[::-1])[::-1], together)
    write_encoder(tokenizer, tmp_path / "encoder")
    np.testing.assert_array_equal(encode(AdEncoder(tmp_path / "encoder", threads=2), ads), together)


@pytest.mark.parametrize("elements", [1, 16, 47, 48, 49, 500])
def test_blocks_are_bounded_and_their_borders_show_nowhere(pair, monkeypatch, elements):
    tokenizer, encoder = pair
    ads = table(known_texts(50))
    texts = ads["text"].to_list()
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", elements)
    items = [(text, encoder.words.features(text)) for text in texts]
    blocks = list(module.blocks(items, width=encoder._width))
    assert [item for block in blocks for item in block] == items
    blocks = [[features for _, features in block] for block in blocks]
    assert len(blocks) > 1
    # 16: the codes of the widest level. A block is as long as it may be.
    assert all(len(b) == 1 or len(b) * max(16, *map(len, b)) <= elements for b in blocks)
    for block, after in zip(blocks[:-1], blocks[1:], strict=True):
        assert (len(block) + 1) * max(16, *map(len, [*block, after[0]])) > elements
    np.testing.assert_array_equal(encode(encoder, ads), tokenizer.encode(ads))


def test_no_ads_and_columns_of_different_length(pair):
    _, encoder = pair
    assert encode(encoder, table([])).shape == (0, 4)
    contents = [{"account_id": "a", "conversion_type": "c", "text": text} for text in ("tea", "milk")]
    assert encoder.encode([1, 2], contents).shape == (2, 4)
    with pytest.raises(ValueError, match="zip"):
        encoder.encode([1, 2], contents[:1])


def test_bundle_has_the_encoder_of_its_tokenizer_beside_the_graphs(pipeline):
    bundle = pipeline.bundles / "1"
    manifest = read_manifest(bundle)
    assert {GRAPH, SETTINGS} <= set(manifest.sha256)
    assert set(manifest.graphs) == {"prefix", "tail_2", "tail_3", "tail_4"}
    encoder = load_encoder(bundle)
    assert (encoder.tokenizer_id, encoder.level_sizes) == (pipeline.tokenizer_id, manifest.level_sizes)
    ads = small_ads()
    np.testing.assert_array_equal(encode(encoder, ads), Tokenizer.load(pipeline.tokenizer).encode(ads))


def test_encoder_needs_nothing_that_fits_a_tokenizer(pipeline):
    program = (
        "import sys; from indexer.encode.bundle_encoder import load_encoder\n"
        f"encoder = load_encoder({str(pipeline.bundles / '1')!r})\n"
        "encoder.encode([1], [{'account_id': 'a', 'conversion_type': 'b', 'text': 'apple pear'}])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    loaded = set(json.loads(answer.stdout.decode().replace("'", '"')))
    assert {"onnxruntime", "indexer"} <= loaded
    assert not loaded & {"torch", "sklearn", "scipy", "faiss", "onnx", "polars", "training", "export"}


def test_bundle_from_before_serves_but_has_no_encoder(bundle):
    sums = json.loads((bundle / "manifest.json").read_text())["sha256"]
    shutil.rmtree(bundle / "encoder")
    edit(bundle, sha256={name: value for name, value in sums.items() if not name.startswith("encoder/")})
    read_manifest(bundle)
    with pytest.raises(
        BundleError, match=r"expected encoder/encoder.json, found none: .*`make export` again"
    ):
        load_encoder(bundle)


@pytest.mark.parametrize("name", [GRAPH, SETTINGS])
def test_missing_or_changed_file(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: expected sha256 .*corrupted"):
        load_encoder(bundle)
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"expected file {name}, found none"):
        load_encoder(bundle)
    with pytest.raises(BundleError, match=f"{name}: not readable"):
        AdEncoder(bundle / "encoder")


def test_encoder_of_another_tokenizer(bundle, tmp_path):
    other = fit()
    write_encoder(other, tmp_path / "encoder")
    sums = json.loads((bundle / "manifest.json").read_text())["sha256"]
    shutil.copy(tmp_path / GRAPH, bundle / GRAPH)
    edit(bundle, sha256=sums | {GRAPH: sha256(bundle / GRAPH)})
    with pytest.raises(
        BundleError, match=f"encoder.onnx: expected the graph of encoder.json.*{other.tokenizer_id}"
    ):
        load_encoder(bundle)
    shutil.copy(tmp_path / SETTINGS, bundle / SETTINGS)
    edit(bundle, sha256=sums | {name: sha256(bundle / name) for name in (GRAPH, SETTINGS)})
    with pytest.raises(BundleError, match=rf"bundles/1: expected an encoder .*got {other.tokenizer_id} with"):
        load_encoder(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "expected format_version 1 .*got 2 and 'word_ngrams'; .*make export"),
        ({"analysis": "characters"}, "got 1 and 'characters'"),
        ({"token_pattern": "("}, "not readable: error"),
        ({"vocabulary": ["a"]}, "encoder.onnx: expected the graph of encoder.json"),
        ({"vocabulary": None}, "not readable: TypeError"),
        ({"level_sizes": [16, 8, 4, 65]}, "encoder.onnx: expected the graph of encoder.json"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, change, message):
    write_encoder(fit(), tmp_path / "encoder")
    content = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps(content | change))
    with pytest.raises(BundleError, match=message):
        AdEncoder(tmp_path / "encoder")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_garbage(tmp_path, data):
    write_encoder(fit(), tmp_path / "encoder")
    (tmp_path / SETTINGS).write_bytes(data)
    with pytest.raises(BundleError, match="encoder.json: not readable"):
        AdEncoder(tmp_path / "encoder")


def published(pipeline, tmp_path):
    made = tmp_path / "bundles"
    return made, lambda tokenizer: write_bundle(
        checkpoint(tokenizer_id=pipeline.tokenizer_id), made, tokenizer=tokenizer
    )


def test_encoder_without_parity_publishes_nothing(pipeline, tmp_path, monkeypatch):
    fake_graphs(monkeypatch)
    made, write = published(pipeline, tmp_path)
    # scikit-learn's own pattern, which drops words of one letter.
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "TOKEN_PATTERN", r"(?u)\b\w\w+\b")
        with pytest.raises(ParityError, match=r"encoder: expected the SIDs of .*the bundle is not published"):
            write(pipeline.tokenizer)
    true_graph = exporter.words_graph
    with monkeypatch.context() as patch:
        patch.setattr(
            exporter, "words_graph", lambda idf, components, **k: true_graph(idf * 0 + 1, components, **k)
        )
        with pytest.raises(ParityError, match=r"encoder: expected the SIDs of .* of 1000 differ"):
            write(pipeline.tokenizer)
    assert list(made.iterdir()) == []
    assert load_encoder(write(pipeline.tokenizer)).tokenizer_id == pipeline.tokenizer_id


def test_embedder_without_an_onnx_form_publishes_nothing(pipeline, tmp_path, monkeypatch):
    fake_graphs(monkeypatch)
    made, write = published(pipeline, tmp_path)
    monkeypatch.setattr(Tokenizer, "embedder", property(lambda self: object()))
    with pytest.raises(ValueError, match=r"expected an .* ONNX form \(bag, .*\), got object"):
        write(pipeline.tokenizer)
    assert list(made.iterdir()) == []


def test_without_a_tokenizer_there_is_no_encoder(pipeline, tmp_path, monkeypatch):
    fake_graphs(monkeypatch)
    _, write = published(pipeline, tmp_path)
    bundle = write(None)
    assert not (bundle / "encoder").exists()
    read_manifest(bundle)
    with pytest.raises(BundleError, match="or without a tokenizer"):
        load_encoder(bundle)
