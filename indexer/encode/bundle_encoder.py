"""The encoder of a bundle, of whatever kind its tokenizer is."""

from __future__ import annotations

from pathlib import Path

from indexer.encode.ad_encoder import WORD_NGRAMS, AdEncoder
from indexer.encode.encoder import Encoder
from indexer.encode.given import GIVEN_SIDS, GIVEN_VECTORS, SidEncoder, VectorEncoder
from indexer.encode.joined import (
    JOINED,
    SENTENCE_GRAPH,
    SENTENCE_WEIGHTS,
    WORD_PIECES,
    JoinedEncoder,
)
from indexer.encode.settings import FOLDER, GRAPH, SETTINGS, read_settings
from serving.model.bundle import BundleError, check_file, read_manifest
from serving.model.manifest import Manifest

_KINDS: dict[str, type[AdEncoder] | type[VectorEncoder] | type[JoinedEncoder] | type[SidEncoder]] = {
    WORD_NGRAMS: AdEncoder,
    GIVEN_VECTORS: VectorEncoder,
    JOINED: JoinedEncoder,
    GIVEN_SIDS: SidEncoder,
}


def open_encoder(folder: Path, *, threads: int = 1) -> Encoder:
    """Open an encoder's own folder; `load_encoder` is the usual way in.

    Raises:
        BundleError: a file is missing, unreadable or of another format, or they are of two tokenizers.
    """
    return _KINDS[_analysis(folder)](folder, threads=threads)


def load_encoder(bundle: str | Path, *, threads: int = 1) -> Encoder:
    """Open the encoder of a bundle and check it against the bundle's manifest.

    Args:
        bundle: folder of one version.
        threads: of ONNX Runtime.

    Raises:
        BundleError: the bundle has no encoder, or one that is corrupted or of another tokenizer.
    """
    bundle = Path(bundle)
    # The graphs of the model are not ours to hash: they are hundreds of times the size.
    manifest = read_manifest(bundle, verify=False)
    _check(bundle, SETTINGS, manifest)
    if _analysis(bundle / FOLDER) != GIVEN_SIDS:  # of which there is no graph
        _check(bundle, GRAPH, manifest)
    for file in (SENTENCE_GRAPH, SENTENCE_WEIGHTS, WORD_PIECES):
        if f"{FOLDER}/{file}" in manifest.sha256:
            _check(bundle, file, manifest)
    encoder = open_encoder(bundle / FOLDER, threads=threads)
    wanted = manifest.tokenizer_id, manifest.level_sizes
    actual = encoder.tokenizer_id, encoder.level_sizes
    if wanted != actual:
        raise BundleError(
            f"bundle {bundle}: expected an encoder of tokenizer {wanted[0]} with levels {wanted[1]}, got "
            f"{actual[0]} with {actual[1]}; run `make export` again"
        )
    return encoder


def _analysis(folder: Path) -> str:
    return read_settings(folder, analyses=tuple(_KINDS), read=lambda content: content["analysis"])


def _check(bundle: Path, file: str, manifest: Manifest) -> None:
    name = f"{FOLDER}/{file}"
    if name not in manifest.sha256:
        raise BundleError(
            f"bundle {bundle}: expected {name}, found none: the bundle was made by an earlier release or "
            "without a tokenizer; run `make export` again"
        )
    check_file(bundle, name, manifest.sha256[name])
