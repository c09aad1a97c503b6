"""A tokenizer as a folder: arrays as safetensors, the rest as JSON, the sha256 of both in a manifest."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from serving.files import new_folder, sha256

FORMAT_VERSION = 1
MANIFEST = "tokenizer.json"
ARRAYS = "arrays.safetensors"
EMBEDDER = "embedder.json"


class TokenizerError(ValueError):
    """A tokenizer folder that must not be used: missing, corrupted, or of a newer format."""


def content_id(config: dict[str, Any], embedder: dict[str, Any], *, arrays: dict[str, np.ndarray]) -> str:
    """Return 16 hex digits of the sha256 over config, embedder metadata and arrays (dtype, shape, bytes)."""
    digest = hashlib.sha256(_canonical([config, embedder]))
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(_canonical([name, array.dtype.str, list(array.shape)]))
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def write_folder(
    folder: Path, config: dict[str, Any], *, embedder: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """Write a tokenizer, whole or not at all.

    An older tokenizer at `folder` is replaced, with whatever was derived from it in the same folder.

    Raises:
        TokenizerError: `folder` holds something that is not a tokenizer.
    """
    # A mistyped path must not cost the user a folder.
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists()):
        raise TokenizerError(f"{folder}: expected an empty folder or a tokenizer to replace, got neither")
    with new_folder(folder, replace=True) as fresh:
        # Not save_file: it makes the file readable for its owner only, and the indexer may be another user.
        data = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        (fresh / ARRAYS).write_bytes(data)
        (fresh / EMBEDDER).write_bytes(_canonical(embedder))
        manifest = {
            "format_version": FORMAT_VERSION,
            "tokenizer_id": content_id(config, embedder, arrays=arrays),
            "config": config,
            "sha256": {name: sha256(fresh / name) for name in (ARRAYS, EMBEDDER)},
        }
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def read_folder(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Return (tokenizer id, config, embedder metadata, arrays) after checking every byte.

    Raises:
        TokenizerError: a file is missing or changed, the format is newer, or the id is not the content's.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(_read(path))
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path}: not a tokenizer manifest ({error!r})") from error
    # Before anything else is looked at: a newer format may have changed all the rest.
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise TokenizerError(f"{path}: expected format version <= {FORMAT_VERSION}, got {version!r}: upgrade")
    try:
        stated_id, config, sums = manifest["tokenizer_id"], manifest["config"], dict(manifest["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"{path}: not a tokenizer manifest ({error!r})") from error
    content = {name: _read(folder / name) for name in (ARRAYS, EMBEDDER)}
    for name, data in content.items():
        wanted, actual = sums.get(name), hashlib.sha256(data).hexdigest()
        if wanted != actual:
            raise TokenizerError(f"{folder / name}: corrupted, expected sha256 {wanted}, got {actual}")
    try:
        embedder, arrays = json.loads(content[EMBEDDER]), safetensors.numpy.load(content[ARRAYS])
    except (ValueError, SafetensorError) as error:
        raise TokenizerError(f"{folder}: unreadable although its sha256 is right ({error!r})") from error
    actual = content_id(config, embedder, arrays=arrays)
    if actual != stated_id:
        raise TokenizerError(f"{path}: expected tokenizer id {stated_id}, the content gives {actual}")
    return actual, config, embedder, arrays


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: expected a readable file of a tokenizer ({error.strerror})") from error


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
