"""Engines of the ablations: the exported graphs, and the ways of using them that gr4ad does without.

Letters: B requests, n beams, C children, V codes of a level, R tail layers, d width.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np

from benchmarks.seeded_run import source_digest, with_shared_layers
from export.graphs import export_graphs
from export.int8 import quantize_int8
from export.parity import check_parity
from export.seeded import seeded_checkpoint
from serving.search.executor import Carry, Executor, join_arrays
from training.preset.preset import Preset


def seeded_graphs(preset: Preset, run: Path, *, shared_layers: int) -> Path:
    """Folder below `run` with graphs of a preset's shape and seeded weights, made once a source state.

    Args:
        preset: sizes.
        run: run folder.
        shared_layers: K.

    Raises:
        ParityError: the graphs do not compute what the model computes.
    """
    preset = with_shared_layers(preset, shared_layers)
    folder = run / "graphs" / f"k{shared_layers}"
    stamp, wanted = folder / "made_from", source_digest(preset)
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model = seeded_checkpoint(preset).model
        export_graphs(model, folder)
        check_parity(model, folder)
        stamp.write_text(wanted)
    return folder


def quantized(graphs: Path) -> Path:
    """INT8 graphs beside a folder of FP32 ones, made anew (seconds)."""
    folder = graphs.parent / f"{graphs.name}-int8"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    quantize_int8(graphs, folder)
    return folder


class Timed:
    """An executor that adds up the seconds spent in it; the rest of a search is the host's share."""

    def __init__(self, inner: Executor) -> None:
        """Wrap."""
        self._inner, self.seconds = inner, 0.0

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        began = time.perf_counter()
        try:
            return self._inner.prefix(slots, profile)
        finally:
            self.seconds += time.perf_counter() - began

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        began = time.perf_counter()
        try:
            return self._inner.tail(level, carry, parents=parents, token=token, allowed=allowed)
        finally:
            self.seconds += time.perf_counter() - began

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """See `Executor.join`."""
        return self._inner.join(level, first, second)


class FullVocabulary:
    """Scores every code of the codebook for every beam, masks what is not a child, and sorts all of it."""

    def __init__(self, inner: Executor, level_sizes: tuple[int, ...]) -> None:
        """Wrap."""
        self._inner, self._sizes = inner, level_sizes

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        return self._inner.prefix(slots, profile)

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`; the value level has no children to choose from."""
        if level > len(self._sizes):
            return self._inner.tail(level, carry, parents=parents, token=token, allowed=allowed)
        batch, n = token.shape
        size = self._sizes[level - 1]
        codes = np.broadcast_to(np.arange(size, dtype=np.int32), (batch, n, size))
        logprob, carry = self._inner.tail(
            level, carry, parents=parents, token=token, allowed=np.ascontiguousarray(codes)
        )
        mask = np.zeros((batch, n, size + 1), bool)
        np.put_along_axis(mask, np.where(allowed >= 0, allowed, size), True, 2)
        masked = np.where(mask[..., :size], logprob, -np.inf)  # [B, n, V]
        np.argsort(-masked.reshape(batch, -1), axis=1)
        return np.take_along_axis(masked, np.maximum(allowed, 0), 2), carry

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """See `Executor.join`."""
        return self._inner.join(level, first, second)


class KvPerBeam:
    """Every beam is a request of its own, with its own copy of the context's keys and values."""

    def __init__(self, inner: Executor) -> None:
        """Wrap."""
        self._inner = inner

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        return self._inner.prefix(slots, profile)

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        batch, n = token.shape
        owner = np.repeat(np.arange(batch), n)  # [B n]
        feeds = {name: carry[name][owner] for name in ("m", "context_kv", "context_bias", "past_kv_1")}
        for j, parent in enumerate(parents, start=2):
            rows = np.take_along_axis(carry[f"past_kv_{j}"], parent[:, None, :, None], 2)  # [B, 2 R, n, d]
            feeds[f"past_kv_{j}"] = np.ascontiguousarray(rows.transpose(0, 2, 1, 3)).reshape(
                batch * n, rows.shape[1], 1, -1
            )
        logprob, new = self._inner.tail(
            level,
            feeds,
            parents=[np.zeros((batch * n, 1), np.int32) for _ in parents],
            token=token.reshape(batch * n, 1),
            allowed=allowed.reshape(batch * n, 1, -1),
        )
        name = f"past_kv_{level}"
        if name in new:
            rows = new[name].reshape(batch, n, -1, new[name].shape[-1])
            carry = {**carry, name: np.ascontiguousarray(rows.transpose(0, 2, 1, 3))}
        return logprob.reshape(batch, n, -1), carry

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """See `Executor.join`."""
        return join_arrays(level, first, second)
