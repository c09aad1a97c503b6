"""A sentence model in ONNX Runtime: texts -> vectors of the same bits in every call and on every machine.

The model is all-MiniLM-L6-v2: a BERT of 6 layers, the mean over word pieces, length 1. ONNX Runtime adds in
another order in another batch, with padding, and on another kind of processor, so

* a call takes one text, without padding;
* vectors lie on a grid of 1 / 256: a value that float32 has within `NEAR` of the middle between two steps is
  decided in float64 (`serving.embedding.exact`), which no order of addition moves that far;
* a few golden vectors are computed anew when a model is opened for a tokenizer, and must be equal.

Letters: N texts, L word pieces of one text, D = 384 dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import safetensors.numpy
from safetensors import SafetensorError

from serving.embedding.exact import mean_vector
from serving.engines.ort import session_options

DIM = 384
STEPS = 256  # of the grid in 1; on the demo's texts the noise in a cosine is .0016
# float32 is at most 1.5e-7 from float64 on the demo's texts; so near the middle are 5 % of them.
NEAR = 3e-7
MAX_PIECES = 256  # as the model was trained; what is behind them is not read
GOLDEN_TEXTS = (
    "grocery, soft drinks, sft drnk 2 liter btl carb incl, 2 ltr, national brand",
    "A woman's black leather boot, size 7.5 (waterproof)!",
    "größe İstanbul 茶 🎮 naïve",
    "a",
    "unknown " * 300,
    "3 x 500 ml shampoo-conditioner; 2-in-1",
)


class SentenceModelError(ValueError):
    """A sentence model that must not be used: missing, unreadable, or one that computes other vectors."""


@dataclass(frozen=True)
class SentenceFiles:
    """What a model is opened from.

    Attributes:
        graph: ONNX without weights, as a file or its content.
        weights: safetensors; their names are those that the graph wants.
        word_pieces: JSON of the package `tokenizers`.
    """

    graph: Path | bytes
    weights: Path
    word_pieces: Path


class SentenceModel:
    """Texts -> vectors."""

    def __init__(self, files: SentenceFiles, *, threads: int = 1) -> None:
        """Open a model.

        Args:
            files: of the model.
            threads: of ONNX Runtime; vectors do not depend on it.

        Raises:
            SentenceModelError: the package `tokenizers` is not installed, or a file is missing or unreadable.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise SentenceModelError(
                "embedding minilm: expected the package tokenizers, which is not installed: run "
                "`make minilm-setup` (pip install --no-deps -r requirements-minilm.txt)"
            ) from error
        try:
            self._pieces = Tokenizer.from_file(str(files.word_pieces))
            self._pieces.no_padding()
            self._pieces.enable_truncation(MAX_PIECES)
            self._weights = safetensors.numpy.load_file(files.weights)
        except (OSError, SafetensorError) as error:
            raise SentenceModelError(f"{files.weights}: not readable ({error})") from error
        except Exception as error:  # `tokenizers` raises no type of its own
            raise SentenceModelError(f"{files.word_pieces}: not readable ({error})") from error
        options = session_options(threads=threads)
        values = {n: v for n, v in self._weights.items() if v.dtype == np.float32 and "pooler" not in n}
        options.add_external_initializers(
            list(values), [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in values.values()]
        )
        graph = files.graph if isinstance(files.graph, bytes) else str(files.graph)
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises many kinds
            name = files.weights if isinstance(files.graph, bytes) else files.graph
            raise SentenceModelError(f"{name}: not readable ({error})") from error

    def steps(self, text: str) -> np.ndarray:
        """Steps of the grid, int16 [D], of one text; all zero for one that is blank.

        Many threads may call it at once.
        """
        if not text.strip():
            return np.zeros(DIM, np.int16)
        pieces = np.array(self._pieces.encode(text).ids, np.int64)  # [L]
        (mean,) = self._session.run(["mean"], {"pieces": pieces})
        scaled = _unit(mean.astype(np.float64)) * STEPS
        if (np.abs(scaled - np.floor(scaled) - 0.5) < NEAR * STEPS).any():
            scaled = _unit(mean_vector(self._weights, pieces)) * STEPS
        return np.rint(scaled).astype(np.int16)

    def check(self, golden: np.ndarray) -> None:
        """Whether this machine computes the vectors of `GOLDEN_TEXTS`, int16 [., D], as another one did.

        Raises:
            SentenceModelError: it computes others.
        """
        for text, wanted in zip(GOLDEN_TEXTS, golden, strict=True):
            found = self.steps(text)
            if not np.array_equal(found, wanted):
                raise SentenceModelError(
                    f"embedding minilm: expected the golden vectors of its tokenizer, got another one of "
                    f"{text[:40]!r}: {_difference(found, wanted)}; this is another model, or a machine that "
                    "computes otherwise, and SIDs would be wrong"
                )


def vectors(steps: Sequence[np.ndarray]) -> np.ndarray:
    """Vectors float32 [N, D] of N rows of steps; each value is exact."""
    return np.stack(steps).astype(np.float32) / STEPS if len(steps) else np.zeros((0, DIM), np.float32)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt(vector @ vector)


def _difference(found: np.ndarray, wanted: np.ndarray) -> str:
    if found.shape != wanted.shape:
        return f"{len(found)} dimensions instead of {len(wanted)}"
    axis = int((found != wanted).argmax())
    return f"{found[axis]} instead of {wanted[axis]} in dimension {axis}"
