"""The encoder's folder in a bundle: `encoder.json`, and `encoder.onnx` where something is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime

from serving.engines.ort import open_session
from serving.files import read_object
from serving.model.bundle import BundleError

FORMAT_VERSION = 1
FOLDER = "encoder"  # in the bundle
GRAPH = "encoder.onnx"
SETTINGS = "encoder.json"

Read = TypeVar("Read")


def read_settings(folder: Path, *, analyses: tuple[str, ...], read: Callable[[dict[str, Any]], Read]) -> Read:
    """What `read` makes of the settings.

    Raises:
        BundleError: they are missing, unreadable, or of another format or kind than `analyses`.
    """
    path = folder / SETTINGS
    try:
        content = read_object(path)
        found = content["format_version"], content["analysis"]
        if found[0] != FORMAT_VERSION or found[1] not in analyses:
            raise BundleError(
                f"{path}: expected format_version {FORMAT_VERSION} and analysis {' or '.join(analyses)}, got "
                f"{found[0]!r} and {found[1]!r}; another release made it: run `make export` again"
            )
        return read(content)
    except BundleError:
        raise
    except Exception as error:  # of whatever `read` does with what it finds
        raise BundleError(f"{path}: not readable: {type(error).__name__}: {error}") from error


def open_graph(folder: Path, *, threads: int, metadata: dict[str, str]) -> onnxruntime.InferenceSession:
    """The graph, if it says of itself what the settings say.

    Raises:
        BundleError: it is missing, unreadable, or of another tokenizer.
    """
    path = folder / GRAPH
    try:
        session = open_session(path, threads=threads)
    except Exception as error:  # ONNX Runtime raises many kinds
        raise BundleError(f"{path}: not readable: {type(error).__name__}: {error}") from error
    actual = session.get_modelmeta().custom_metadata_map
    if actual != metadata:
        raise BundleError(f"{path}: expected the graph of {SETTINGS}, {metadata}, got {actual}")
    return session


def graph_metadata(
    tokenizer_id: str, level_sizes: tuple[int, ...], *, features: int, dim: int, hash_salt: str = ""
) -> dict[str, str]:
    """What `encoder.onnx` says of itself, so that it is not run with the settings of another one.

    A salt is named where there is one: a release that knows none refuses the graph then.
    """
    salted = {"hash_salt": hash_salt} if hash_salt else {}
    return salted | {
        "tokenizer_id": tokenizer_id,
        "level_sizes": " ".join(map(str, level_sizes)),
        "features": str(features),
        "embedding_dim": str(dim),
    }
