"""Base arrays of a generation: an `IndexSnapshot` as memory-mapped files, shared by all reader processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from serving.files import new_folder
from serving.index.layout import BASE_MANIFEST, FORMAT_VERSION, IndexStoreError
from serving.index.snapshot import IndexSnapshot
from serving.index.trie import Trie


def write_base(snapshot: IndexSnapshot, folder: Path) -> None:
    """Write a base, whole or not at all. One that is there already is replaced.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    arrays = _arrays(snapshot)
    manifest = {
        "format": FORMAT_VERSION,
        "sequence": snapshot.version,
        "tokenizer_id": snapshot.tokenizer_id,
        "level_sizes": list(snapshot.level_sizes),
        "arrays": {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()},
    }
    with new_folder(folder, replace=True) as work:
        for name, array in arrays.items():
            np.save(work / f"{name}.npy", array, allow_pickle=False)
        (work / BASE_MANIFEST).write_text(json.dumps(manifest))


def read_base(folder: Path) -> IndexSnapshot:
    """Map the arrays; costs no memory of its own and hardly any time, whatever their size.

    Raises:
        IndexStoreError: a file is missing, or does not hold what base.json says.
    """
    try:
        manifest = json.loads((folder / BASE_MANIFEST).read_text())
        if manifest.get("format") != FORMAT_VERSION:
            raise IndexStoreError(f"{folder}: expected format {FORMAT_VERSION}, got {manifest.get('format')}")
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
        )
    except IndexStoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexStoreError(f"{folder}: expected a readable base of the index, got: {error!r}") from error


def _arrays(snapshot: IndexSnapshot) -> dict[str, np.ndarray]:
    trie = snapshot.trie
    arrays = {name: getattr(snapshot, name) for name in ("ad_ids", "ad_keys", "leaf_ad_ptr", "leaf_ads")}
    arrays["mask"] = trie.mask
    for name in ("padded_codes", "child_ptr", "child_table"):
        arrays |= {f"{name}.{t}": a for t, a in enumerate(getattr(trie, name)) if a is not None}
    return arrays | {f"leaf_ptr.{t}": a for t, a in enumerate(trie.leaf_ptr[:-1])}
