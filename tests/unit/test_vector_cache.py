"""Vectors kept by content: what is computed again, what a kill costs, and files that are damaged."""

import sqlite3

import numpy as np
import pytest

import training.tokenizer.vector_cache as module
from training.tokenizer.vector_cache import VectorCache


class Model:
    """Vectors of texts, and which texts it was asked for."""

    def __init__(self, *, dies_at=None):
        self.asked, self._dies_at = [], dies_at

    def __call__(self, text):
        if text == self._dies_at:
            raise KeyboardInterrupt
        self.asked.append(text)
        return np.array([len(text), *text.encode()[:2]], np.int16)


TEXTS = [f"{i:03} text" for i in range(40)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kept" / "vectors.sqlite"


def test_each_text_is_computed_once_and_read_after_that(path):
    model = Model()
    cache = VectorCache(path, model="m")
    wanted = [model(text) for text in TEXTS]
    model.asked.clear()
    np.testing.assert_array_equal(cache.vectors(TEXTS[:30], model), wanted[:30])
    np.testing.assert_array_equal(VectorCache(path, model="m").vectors(TEXTS[::-1], model), wanted[::-1])
    assert sorted(model.asked) == TEXTS
    again = Model()
    np.testing.assert_array_equal(cache.vectors(TEXTS, again, workers=3), wanted)
    assert not again.asked
    VectorCache(path, model="another version").vectors(TEXTS, again)
    assert again.asked == TEXTS
    assert cache.vectors([], again) == []


def test_without_a_file_nothing_is_kept():
    model = Model()
    cache = VectorCache(None, model="m")
    assert len(cache.vectors(TEXTS, model)) == len(cache.vectors(TEXTS, model)) == 40
    assert len(model.asked) == 80


def test_a_run_that_is_killed_goes_on_at_its_last_batch(path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 8)
    with pytest.raises(KeyboardInterrupt):
        VectorCache(path, model="m").vectors(TEXTS, Model(dies_at=TEXTS[29]))
    model = Model()
    VectorCache(path, model="m").vectors(TEXTS, model)
    assert model.asked == TEXTS[24:]


def test_a_damaged_row_is_computed_again(path):
    cache = VectorCache(path, model="m")
    wanted = cache.vectors(TEXTS, Model())
    database = sqlite3.connect(path)
    with database:
        key, value = database.execute("SELECT key, value FROM vectors LIMIT 1").fetchone()
        database.execute(
            "UPDATE vectors SET value = ? WHERE key = ?", (bytes([value[0] ^ 1]) + value[1:], key)
        )
    database.close()
    model = Model()
    np.testing.assert_array_equal(cache.vectors(TEXTS, model), wanted)
    assert len(model.asked) == 1


def test_a_file_that_is_no_cache_is_made_anew_and_a_folder_is_refused(path, tmp_path, caplog):
    path.parent.mkdir()
    path.write_bytes(b"no database" * 100)
    model = Model()
    VectorCache(path, model="m").vectors(TEXTS, model)
    assert "no cache of vectors" in caplog.text
    VectorCache(path, model="m").vectors(TEXTS, model)
    assert len(model.asked) == 40
    with pytest.raises(OSError, match="expected a cache of vectors to open"):
        VectorCache(tmp_path, model="m").vectors(TEXTS, model)


def test_damaged_pages_are_made_anew(path, caplog):
    cache, texts = VectorCache(path, model="m"), [f"{i:04} text" for i in range(3000)]
    wanted = cache.vectors(texts, Model())
    content = bytearray(path.read_bytes())
    for page in range(3 * 4096, len(content), 4096):
        content[page : page + 64] = b"\xff" * 64
    path.write_bytes(content)
    model = Model()
    np.testing.assert_array_equal(cache.vectors(texts, model), wanted)
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(cache.vectors(texts, Model(dies_at=texts[0])), wanted)  # kept again
