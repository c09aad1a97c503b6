"""The sentence model: its formulas against PyTorch's, the same bits in every call, files that do not fit."""

import importlib.util
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

import serving.embedding.sentence_model as module
from serving.embedding.exact import mean_vector
from serving.embedding.sentence_model import (
    GOLDEN_TEXTS,
    SentenceFiles,
    SentenceModel,
    SentenceModelError,
    vectors,
)
from training.tokenizer.embedders import minilm

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec(minilm.PACKAGE) is None or importlib.util.find_spec("tokenizers") is None,
    reason="the sentence model is not installed (make minilm-setup)",
)
TEXTS = [
    "grocery, milk",
    "MILK whole, 2%",
    "",
    "größe İstanbul 茶",
    "a",
    "x" * 5000,
    "soft drink " * 400,
    "\x00\u200b[SEP]",
]


@pytest.fixture(scope="module")
def files():
    return minilm.model_files()


@pytest.fixture(scope="module")
def model():
    return minilm.open_model()


def torch_mean(weights, pieces):
    """BERT by PyTorch's own functions in float64."""
    w = {
        name: torch.from_numpy(value).double()
        for name, value in weights.items()
        if "position_ids" not in name
    }

    def norm(x, name):
        return layer_norm(x, (384,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def dense(x, name):
        return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    at = "embeddings."
    x = w[at + "word_embeddings.weight"][pieces] + w[at + "token_type_embeddings.weight"][0]
    x = norm(x + w[at + "position_embeddings.weight"][: len(pieces)], at + "LayerNorm")
    for layer in range(6):
        at = f"encoder.layer.{layer}."
        q, k, v = (
            dense(x, f"{at}attention.self.{part}").reshape(-1, 12, 32).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        mixed = scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(-1, 384)
        x = norm(dense(mixed, at + "attention.output.dense") + x, at + "attention.output.LayerNorm")
        hidden = gelu(dense(x, at + "intermediate.dense"))
        x = norm(dense(hidden, at + "output.dense") + x, at + "output.LayerNorm")
    return x.mean(0).numpy()


@needs_extra
@pytest.mark.parametrize("text", TEXTS[:2] + TEXTS[3:])
def test_float32_and_float64_are_pytorchs(files, model, text):
    weights = load_file(files.weights)
    pieces = np.array(model._pieces.encode(text).ids)
    wanted = torch_mean(weights, torch.from_numpy(pieces))
    np.testing.assert_allclose(mean_vector(weights, pieces), wanted, atol=1e-12)
    (found,) = model._session.run(["mean"], {"pieces": pieces})
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    unit = wanted / np.linalg.norm(wanted)
    np.testing.assert_array_equal(model.steps(text), np.rint(unit * 256))


@needs_extra
def test_the_vector_is_the_one_that_the_models_authors_publish(model):
    """First values of "This is an example sentence", as sentence-transformers gives them."""
    published = [0.0676569, 0.0634959, 0.0487131, 0.0793050, 0.0374480, 0.0026528, 0.0393749, -0.0070984]
    found = vectors([model.steps("This is an example sentence")])[0]
    np.testing.assert_allclose(found[:8], published, atol=0.5 / 256)
    assert np.linalg.norm(found) == pytest.approx(1, abs=0.02)


@needs_extra
def test_a_blank_text_is_zero_and_no_other_is(model):
    assert not model.steps("").any()
    assert not model.steps(" \n\t").any()
    assert all(model.steps(text).any() for text in TEXTS if text.strip())
    assert vectors([]).shape == (0, 384)


@needs_extra
def test_the_same_bits_by_two_threads_at_once_and_by_many_callers(files, model):
    two = SentenceModel(files, threads=2)
    alone = [model.steps(text) for text in TEXTS * 3]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(model.steps, TEXTS * 3)), alone)
    np.testing.assert_array_equal([two.steps(text) for text in TEXTS * 3], alone)


@needs_extra
def test_values_near_the_middle_of_two_steps_are_decided_in_float64(model, monkeypatch):
    """Another machine's float32: an error below `NEAR` in every value changes no bit."""
    monkeypatch.setattr(module, "NEAR", 1e-5)
    texts = [f"{word} {number}" for word in ("bread", "milk", "soap") for number in range(10)]
    wanted = [model.steps(text) for text in texts]
    session, random = model._session, np.random.default_rng(0)

    class OtherMachine:
        def run(self, names, feeds):
            (mean,) = session.run(names, feeds)
            error = random.uniform(-0.9e-5, 0.9e-5, mean.shape) * np.linalg.norm(mean)
            return [(mean + error).astype(np.float32)]

    monkeypatch.setattr(model, "_session", OtherMachine())
    np.testing.assert_array_equal([model.steps(text) for text in texts], wanted)
    monkeypatch.setattr(module, "NEAR", 0.0)
    assert (np.array([model.steps(text) for text in texts]) != wanted).any()


@needs_extra
def test_golden_vectors_of_another_machine_or_model_are_noticed(model):
    golden = np.stack([model.steps(text) for text in GOLDEN_TEXTS])
    model.check(golden)
    golden[3, 7] += 1
    with pytest.raises(SentenceModelError, match=r"one of 'a': -?\d+ instead of -?\d+ in dimension 7"):
        model.check(golden)
    with pytest.raises(SentenceModelError, match="384 dimensions instead of 5"):
        model.check(golden[:, :5])


@needs_extra
@pytest.mark.parametrize("package", ["tokenizers", minilm.PACKAGE])
def test_without_the_extra_it_says_how_to_install_it(files, package, monkeypatch):
    if package == "tokenizers":
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(SentenceModelError, match=r"package tokenizers, .*run `make minilm-setup`"):
            SentenceModel(files)
    else:
        monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
        with pytest.raises(SentenceModelError, match=r"package no-such-package, .*run `make minilm-setup`"):
            minilm.model_files.__wrapped__()


@needs_extra
@pytest.mark.parametrize("broken", ["graph", "weights", "word_pieces", "a weight"])
def test_files_that_cannot_be_read_or_do_not_fit(files, tmp_path, broken):
    (tmp_path / "garbage").write_bytes(b"garbage")
    changes = {broken: tmp_path / "garbage"}
    if broken == "a weight":
        weights = load_file(files.weights)
        del weights["encoder.layer.3.output.dense.bias"]
        save_file(weights, tmp_path / "weights")
        changes = {"weights": tmp_path / "weights"}
    parts = {"graph": files.graph, "weights": files.weights, "word_pieces": files.word_pieces}
    with pytest.raises(SentenceModelError, match="not readable"):
        SentenceModel(SentenceFiles(**(parts | changes)))


@needs_extra
def test_a_wheel_of_other_weights_is_refused(tmp_path, monkeypatch, files):
    folder = tmp_path / "other_wheel" / "model"
    folder.mkdir(parents=True)
    shutil.copy(files.word_pieces, folder)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(minilm, "PACKAGE", "other_wheel")
    with pytest.raises(SentenceModelError, match="model.safetensors: expected sha256 53aa.*, got no"):
        minilm.model_files.__wrapped__()
    (folder / "model.safetensors").write_bytes(json.dumps({}).encode())
    with pytest.raises(SentenceModelError, match="model.safetensors: expected sha256 53aa.*, got 44"):
        minilm.model_files.__wrapped__()
