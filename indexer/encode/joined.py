"""SIDs of new ads whose embedding is the sum of several parts: words, a sentence model, what ads come with.

Gives what a tokenizer with a list in `tokenizer.embedding`, or `minilm`, gives
(`training.tokenizer.embedders.joined`). A part that an ad lacks is a zero: the others place it.

Letters: N ads, T levels = codebooks + the hash level.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indexer.encode.given import GivenInputs
from indexer.encode.graph_encoder import GraphEncoder
from indexer.encode.remembered import Remembered
from indexer.encode.words import Features, WordColumns, blocks, padded
from indexer.events.content import Content
from serving.embedding.instructions import Instructions
from serving.embedding.sentence_model import (
    DIM,
    SentenceFiles,
    SentenceModel,
    SentenceModelError,
    vectors,
)
from serving.model.bundle import BundleError

JOINED = "joined"
SENTENCE_GRAPH, SENTENCE_WEIGHTS, WORD_PIECES = "minilm.onnx", "minilm.safetensors", "word_pieces.json"
_REMEMBERED = 2**14  # sentences: 12 MiB of vectors


class JoinedEncoder(GraphEncoder):
    """Parts of an ad -> codes, and the hash level."""

    analysis = JOINED

    def __init__(self, folder: str | Path, *, threads: int = 1) -> None:
        """See `GraphEncoder`; the folder holds the sentence model too, where it is a part.

        Raises:
            BundleError: also for a sentence model whose extra is not installed, or that computes otherwise.
        """
        super().__init__(folder, threads=threads)
        if self._golden is None:
            return
        folder = Path(folder)
        parts = SentenceFiles(folder / SENTENCE_GRAPH, folder / SENTENCE_WEIGHTS, folder / WORD_PIECES)
        try:
            model = SentenceModel(parts, threads=threads)
            model.check(self._golden)
        except SentenceModelError as error:
            raise BundleError(f"{folder}: {error}") from error
        self._steps = Remembered(model.steps, most=_REMEMBERED)

    def _read(self, content: dict[str, Any]) -> None:
        super()._read(content)
        words, sentences, given = (content.get(part) for part in ("words", "minilm", "given"))
        self.words = WordColumns(words) if words else None
        self._given = GivenInputs(given, optional=True) if given else None
        self._golden = np.array(sentences["golden"], np.int16) if sentences else None
        templates = sentences["instructions"] if sentences else None
        self._instructions = Instructions(templates) if templates else None
        dense = (DIM if sentences else 0) + (self._given.width if self._given else 0)
        self._feature_count = dense + (len(self.words) if self.words else 0)
        self._width = max(*self.level_sizes[:-1], self._dim, dense)

    def refusal(self, content: Content) -> str | None:
        """See `Encoder`: an embedding of another width, or a number of an unknown name."""
        return self._given.refusal(content) if self._given else None

    def knows(self, text: str) -> bool:
        """See `Encoder`: a sentence model knows all but a blank text."""
        if self._given or (self._golden is not None and text.strip()):
            return True
        return self.words is not None and self.words.knows(text)

    def _codes(self, contents: Sequence[Content]) -> np.ndarray:
        distinct: dict[Hashable, Content] = {}
        keys = [self._key(content) for content in contents]
        for key, content in zip(keys, contents, strict=True):
            distinct.setdefault(key, content)
        row = {key: at for at, key in enumerate(distinct)}
        items = ((content, self._features(content)) for content in distinct.values())
        inputs = (self._inputs(block) for block in blocks(items, width=self._width))
        return self._run(inputs)[[row[key] for key in keys]]

    def _key(self, content: Content) -> Hashable:
        """Equal for ads that get equal codes."""
        numbers = tuple(sorted(content.get("numbers", {}).items()))
        fields = (content["account_id"], content["conversion_type"]) if self._instructions else ()
        return (content["text"], content.get("embedding"), numbers, fields)

    def _features(self, content: Content) -> Features:
        return self.words.features(content["text"]) if self.words else []

    def _inputs(self, block: list[tuple[Content, Features]]) -> dict[str, np.ndarray]:
        contents = [content for content, _ in block]
        found: dict[str, np.ndarray] = {}
        if self.words:
            found |= padded([features for _, features in block])
        if self._golden is not None:
            found["sentences"] = vectors([self._steps(self._sentence(content)) for content in contents])
        if self._given:
            found |= self._given.inputs(contents)
        return found

    def _sentence(self, content: Content) -> str:
        text: str = content["text"]
        if self._instructions is None:
            return text
        return self._instructions.sentence(content["account_id"], content["conversion_type"], text)
