"""Swing: how strongly two contents belong together, by the pairs of baskets that hold both.

    s(i, j) = sum over pairs u < v of baskets that hold i and j of 1 / (alpha + |I_u n I_v|)
    strength(i, j) = s(i, j) / pop(j)^p

I_u are the contents of basket u, pop(j) the baskets of j. Two baskets that share much say little about each
pair of what they share. GR4AD names Swing (arXiv 2602.22732, UA-SID) and no formula; this is the one of
Yang et al., "Large Scale Product Graph Construction for Recommendation in E-commerce" (arXiv 2010.05525),
over baskets and with a discount by popularity, without which best-sellers are everybody's neighbours.

Of a content with very many baskets a sample is counted: those of the smallest hash, the same ones for
everybody, so that samples of two contents meet. Contents are counted one after the other, a block a task, so
memory is bounded by a block, and neither blocks nor workers nor threads change a bit of the result.

Letters: B baskets, N contents.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, vstack
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from training.workers import Here, Workers

ALPHA = 1.0  # smooths 1 / |I_u n I_v|; held-out recall does not depend on it
KEPT = 200  # neighbours of a content that are kept, the strongest; bounds the result
_BLOCK = 2048  # contents of a task
_ARRAYS = ("ptr", "contents", "content_ptr", "baskets", "popularity")
_FOUND = ("strengths", "neighbours", "lengths")


@dataclass(frozen=True)
class _Block:
    folder: Path
    start: int
    stop: int
    power: float


def swing(
    baskets: csr_matrix,
    *,
    baskets_per_content: int,
    popularity_power: float,
    workers: Workers | None = None,
    scratch: Path | None = None,
) -> csr_matrix:
    """Strength of each content's `KEPT` strongest neighbours, float32 [N, N]; of equal ones the first.

    Args:
        baskets: ones, [B, N].
        baskets_per_content: counted baskets of a content.
        popularity_power: p.
        workers: who counts; None for this process.
        scratch: folder that all workers see by this path, for temporary files; None for the system's own.
    """
    count = baskets.shape[1]
    popularity = np.bincount(baskets.indices, minlength=count)
    sampled = _sampled(baskets, baskets_per_content)
    arrays = (baskets.indptr, baskets.indices, sampled.indptr, sampled.indices, popularity)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="swing-") as name:
        folder = Path(name).absolute()
        for array_name, array in zip(_ARRAYS, arrays, strict=True):
            np.save(folder / f"{array_name}.npy", array)
        blocks = [
            _Block(folder, start, min(start + _BLOCK, count), popularity_power)
            for start in range(0, count, _BLOCK)
        ]
        progress = tqdm(blocks, desc="swing", unit="block", disable=None, leave=False)
        (workers or Here())(_strengths, progress)
        found = [_read(block, count=count) for block in blocks]
    return vstack([csr_matrix((0, count), dtype=np.float32), *found]).tocsr()


def _sampled(baskets: csr_matrix, most: int) -> csr_matrix:
    """Baskets of each content, at most so many, those of the smallest hash: [N, B]."""
    contents = baskets.indices
    rows = np.repeat(np.arange(baskets.shape[0]), np.diff(baskets.indptr))
    # Fibonacci hashing: spreads numbers that follow each other.
    hashed = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    order = np.lexsort((hashed, contents))
    place = np.arange(len(order)) - np.searchsorted(contents[order], contents[order])
    kept = order[place < most]
    entries = (np.ones(len(kept), np.uint8), (contents[kept], rows[kept]))
    return csr_matrix(entries, shape=baskets.shape[::-1])


def _strengths(block: _Block) -> int:
    """Count a block of contents, and write its three arrays of a sparse matrix; returns its entries."""
    ptr, contents, content_ptr, baskets, popularity = (
        np.load(block.folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS
    )
    strengths, neighbours, lengths = [np.empty(0, np.float32)], [np.empty(0, np.int32)], [0]
    # A worker's BLAS may have other threads, which add in another order.
    with threadpool_limits(limits=1):
        for content in range(block.start, block.stop):
            rows = baskets[content_ptr[content] : content_ptr[content + 1]]
            found, score = _of_one(content, [contents[ptr[row] : ptr[row + 1]] for row in rows])
            strength = (score / popularity[found] ** block.power).astype(np.float32)
            best = np.sort(np.lexsort((found, -strength))[:KEPT])
            strengths.append(strength[best])
            neighbours.append(found[best].astype(np.int32))
            lengths.append(len(best))
    arrays = np.concatenate(strengths), np.concatenate(neighbours), np.cumsum(lengths)
    for name, array in zip(_FOUND, arrays, strict=True):
        np.save(block.folder / f"{name}-{block.start}.npy", array)
    return len(arrays[0])


def _read(block: _Block, *, count: int) -> csr_matrix:
    """What `_strengths` wrote, float32 [contents of the block, N]."""
    strengths, neighbours, ptr = (np.load(block.folder / f"{name}-{block.start}.npy") for name in _FOUND)
    return csr_matrix((strengths, neighbours, ptr), shape=(block.stop - block.start, count))


def _of_one(content: int, baskets: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of a content, ascending, and s of each, from the baskets that hold it."""
    if len(baskets) < 2:
        return np.empty(0, np.int64), np.empty(0)
    every = np.concatenate(baskets)
    row = np.repeat(np.arange(len(baskets)), [len(basket) for basket in baskets])
    # What a single basket holds is in no pair of baskets.
    column_of, column, holders = np.unique(every, return_inverse=True, return_counts=True)
    shared = holders > 1
    place = np.cumsum(shared) - 1
    kept = shared[column]
    held = np.zeros((len(baskets), int(shared.sum())), np.float32)  # [baskets, shared contents]
    held[row[kept], place[column[kept]]] = 1
    weight = 1.0 / (ALPHA + held @ held.T)  # [baskets, baskets]; the counts are exact in float32
    np.fill_diagonal(weight, 0)
    score = 0.5 * (held * (weight @ held)).sum(axis=0)  # each pair is met from both sides
    found = column_of[shared]
    others = found != content
    return found[others], score[others]
