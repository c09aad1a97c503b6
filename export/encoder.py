"""A tokenizer's encoder beside the graphs of a bundle: new ads get the SIDs that the tokenizer would give.

Letters: N ads, T levels of a SID.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
from onnx import helper

from export.encoder_graph import encoder_graph, vectors_graph
from export.parity import ParityError
from indexer.encode.ad_encoder import WORD_NGRAMS
from indexer.encode.bundle_encoder import open_encoder
from indexer.encode.given import GIVEN_SIDS, GIVEN_VECTORS
from indexer.encode.settings import FORMAT_VERSION, GRAPH, SETTINGS, graph_metadata
from indexer.events.content import Content, pack_vector
from training.tokenizer.embedders.given_vectors import GivenVectors
from training.tokenizer.embedders.projected import ProjectedWords
from training.tokenizer.embedders.words import TOKEN_PATTERN
from training.tokenizer.given_sids import GivenSids
from training.tokenizer.tokenizer import Tokenizer


def write_encoder(tokenizer: Tokenizer | GivenSids, folder: Path) -> None:
    """Write `encoder.onnx` and `encoder.json` into a new folder and check them against the tokenizer.

    Of given SIDs there is no graph: an ad brings its own.

    Raises:
        ValueError: the tokenizer's embedder has no ONNX form.
        ParityError: the encoder does not give the tokenizer's SIDs.
    """
    graph, more = _of(tokenizer)
    settings = {
        "format_version": FORMAT_VERSION,
        "tokenizer_id": tokenizer.tokenizer_id,
        "level_sizes": tokenizer.level_sizes,  # the last one is the hash's, but for given SIDs
        **more,
    }
    folder.mkdir()
    if graph is not None:
        metadata = graph_metadata(
            tokenizer.tokenizer_id,
            tokenizer.level_sizes,
            features=len(more["vocabulary" if "vocabulary" in more else "columns"]),
            dim=more["embedding_dim"],
        )
        helper.set_model_props(graph, metadata)
        onnx.save(graph, str(folder / GRAPH))
    (folder / SETTINGS).write_text(json.dumps(settings))
    check_encoder(tokenizer, folder)


def _of(tokenizer: Tokenizer | GivenSids) -> tuple[onnx.ModelProto | None, dict[str, Any]]:
    """Graph and settings of a kind of tokenizer."""
    if isinstance(tokenizer, GivenSids):
        return None, {"analysis": GIVEN_SIDS}
    embedder = tokenizer.embedder
    if isinstance(embedder, GivenVectors):
        graph = vectors_graph(
            embedder.dim,
            mean=embedder.mean,
            std=embedder.std,
            scale=embedder.scale,
            codebooks=tokenizer.codebooks,
        )
        more = {"analysis": GIVEN_VECTORS, "embedding_dim": embedder.dim, "columns": embedder.columns}
        return graph, more
    if not isinstance(embedder, ProjectedWords):
        raise ValueError(
            f"tokenizer {tokenizer.tokenizer_id}: expected an embedder with an ONNX form (bag, tfidf_svd, "
            f"given), got {type(embedder).__name__}: write one in encoder_graph.py, or export without the "
            "tokenizer"
        )
    arrays, metadata = embedder.state()
    vocabulary: dict[str, int] = metadata["vocabulary"]
    return encoder_graph(arrays["idf"], arrays["components"], codebooks=tokenizer.codebooks), {
        "analysis": WORD_NGRAMS,
        "token_pattern": TOKEN_PATTERN,
        "ngram_max": metadata["ngram_max"],
        "embedding_dim": arrays["components"].shape[0],
        "vocabulary": sorted(vocabulary, key=vocabulary.__getitem__),  # n-gram i is column i
    }


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
            f"encoder: expected the SIDs of tokenizer {tokenizer.tokenizer_id}, {len(wrong)} of {count} "
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
    if settings["analysis"] == WORD_NGRAMS:
        texts = _texts(settings["vocabulary"], count=count, random=random)
    elif settings["analysis"] == GIVEN_VECTORS:
        dim = settings["embedding_dim"]
        vectors = random.standard_normal((count, dim)) * 10.0 ** random.integers(-20, 19, (count, 1))
        vectors[:2] = 0
        if dim:
            more["embedding"] = vectors.astype(np.float32).tolist()
        for name in settings["columns"]:
            values = random.standard_normal(count) * 10.0 ** random.integers(-3, 9, count)
            more[name] = [None if i % 7 == 0 else v for i, v in enumerate(values.tolist())]
    else:
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
