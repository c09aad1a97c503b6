"""Base arrays of a generation: an `IndexSnapshot` as memory-mapped files, shared by all reader processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from serving.files import new_folder, sha256
from serving.index.layout import BASE_MANIFEST, FORMAT_VERSION, READABLE, IndexStoreError
from serving.index.snapshot import IndexSnapshot
from serving.index.trie import Trie

_TRAITS = ("ad_audiences", "ad_accounts", "account_ids")  # not there where no ad has any; in format 2, never


def write_base(snapshot: IndexSnapshot, folder: Path) -> None:
    """Write a base, whole or not at all. One that is there already is replaced.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    arrays = _arrays(snapshot)
    manifest: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "sequence": snapshot.version,
        "tokenizer_id": snapshot.tokenizer_id,
        "level_sizes": list(snapshot.level_sizes),
        "arrays": {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()},
    }
    with new_folder(folder, replace=True) as work:
        for name, array in arrays.items():
            np.save(work / f"{name}.npy", array, allow_pickle=False)
        files = [work / f"{name}.npy" for name in arrays]
        manifest["bytes"] = {file.name: file.stat().st_size for file in files}
        manifest["sha256"] = {file.name: sha256(file) for file in files}
        (work / BASE_MANIFEST).write_text(json.dumps(manifest))


def check_sizes(folder: Path) -> None:
    """Every file has the length that it was written with; costs no more than looking at the folder.

    Who reads a page of a mapped file that was cut off is ended by SIGBUS.

    Raises:
        IndexStoreError: one is missing, or has another length.
    """
    _check_sizes(folder, _manifest(folder))


def check_base(folder: Path) -> None:
    """Every file holds, to the bit, what was written; reads all of them.

    Raises:
        IndexStoreError: one is missing or has changed.
    """
    read_base(folder)
    for name, expected in _manifest(folder).get("sha256", {}).items():
        try:
            actual = sha256(folder / name)
        except OSError as error:
            raise IndexStoreError(f"{folder / name}: cannot be read: {error}") from error
        if actual != expected:
            raise IndexStoreError(f"{folder / name}: expected sha256 {expected}, got {actual}: it is damaged")


def read_base(folder: Path) -> IndexSnapshot:
    """Map the arrays; costs no memory of its own and hardly any time, whatever their size.

    Raises:
        IndexStoreError: a file is missing, or does not hold what base.json says.
    """
    manifest = _manifest(folder)
    try:
        _check_sizes(folder, manifest)
        arrays = {}
        for name, (dtype, shape) in manifest["arrays"].items():
            # A view as a plain array: `memmap` objects make every small operation slower.
            array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
            if array.dtype.str != dtype or list(array.shape) != shape:
                raise IndexStoreError(
                    f"{folder / name}.npy: expected {dtype} {shape}, "
                    f"got {array.dtype.str} {list(array.shape)}"
                )
            arrays[name] = array
        sizes = tuple(manifest["level_sizes"])
        levels = range(len(sizes))
        child_ptr = tuple(arrays[f"child_ptr.{t}"] for t in levels)
        leaf_ptr = [arrays[f"leaf_ptr.{t}"] for t in levels[:-2]]
        trie = Trie(
            padded_codes=tuple(arrays[f"padded_codes.{t}"] for t in levels),
            child_ptr=child_ptr,
            leaf_ptr=(*leaf_ptr, *(child_ptr[-1:] if len(sizes) > 1 else ())),
            child_table=tuple(arrays.get(f"child_table.{t}") for t in levels),
            mask=arrays["mask"],
        )
        return IndexSnapshot(
            version=int(manifest["sequence"]),
            tokenizer_id=str(manifest["tokenizer_id"]),
            level_sizes=sizes,
            ad_ids=arrays["ad_ids"],
            ad_keys=arrays["ad_keys"],
            trie=trie,
            leaf_ad_ptr=arrays["leaf_ad_ptr"],
            leaf_ads=arrays["leaf_ads"],
            **{name: arrays[name] for name in _TRAITS if name in arrays},
        )
    except IndexStoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexStoreError(f"{folder}: expected a readable base of the index, got: {error!r}") from error


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / BASE_MANIFEST).read_text())
        if manifest["format"] not in READABLE:
            raise IndexStoreError(
                f"{folder}: expected format {' or '.join(map(str, READABLE))}, got {manifest['format']}"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexStoreError(f"{folder}: expected a readable base of the index, got: {error!r}") from error
    return manifest


def _check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    for name, expected in manifest.get("bytes", {}).items():
        try:
            actual = (folder / name).stat().st_size
        except OSError as error:
            raise IndexStoreError(
                f"{folder}: expected a readable base of the index, got: {error!r}"
            ) from error
        if actual != expected:
            raise IndexStoreError(f"{folder / name}: expected {expected} bytes, got {actual}: it is damaged")


def _arrays(snapshot: IndexSnapshot) -> dict[str, np.ndarray]:
    trie = snapshot.trie
    arrays = {name: getattr(snapshot, name) for name in ("ad_ids", "ad_keys", "leaf_ad_ptr", "leaf_ads")}
    arrays["mask"] = trie.mask
    traits = {name: getattr(snapshot, name) for name in _TRAITS}
    arrays |= {name: a for name, a in traits.items() if a is not None and len(a)}
    for name in ("padded_codes", "child_ptr", "child_table"):
        arrays |= {f"{name}.{t}": a for t, a in enumerate(getattr(trie, name)) if a is not None}
    return arrays | {f"leaf_ptr.{t}": a for t, a in enumerate(trie.leaf_ptr[:-1])}
