"""A bundle's ONNX graphs run in this process with ONNX Runtime: those of the search, and the ranker's."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from serving.model.bundle import BundleError
from serving.model.manifest import AD_RANKER, Manifest, Tensor
from serving.ranking.kinds import load_ranker
from serving.ranking.ranker import OUTPUT
from serving.search.executor import (
    COPY_LOGPROB,
    Carry,
    join_arrays,
    prefix_inputs,
    prefix_outputs,
    tail_carry_inputs,
    tail_outputs,
    tail_parent_inputs,
)
from serving.search.probe import probe

_TYPES = {
    "INT32": "tensor(int32)",
    "INT64": "tensor(int64)",
    "FLOAT": "tensor(float)",
    "FLOAT16": "tensor(float16)",
}


def session_options(*, threads: int) -> onnxruntime.SessionOptions:
    """Settings that let several sessions share a machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle pool threads of one session must not burn the core another session needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def open_session(
    path: str | Path | bytes, *, threads: int = 1, fuse: bool = True
) -> onnxruntime.InferenceSession:
    """Open an ONNX graph on the CPU with settings that let several sessions share a machine.

    Args:
        path: ONNX file, or its content.
        threads: of the graph.
        fuse: whether operations may be fused; False for FP8, whose DequantizeLinear ONNX Runtime would fuse
            into products that it cannot run.
    """
    options = session_options(threads=threads)
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    graph = path if isinstance(path, bytes) else str(path)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def open_checked(path: Path, manifest: Manifest, *, stem: str, threads: int) -> onnxruntime.InferenceSession:
    """Open a copy of a graph, if it is the one that the manifest names. What is hashed is what is opened.

    Args:
        path: ONNX file, outside the bundle.
        manifest: of the graph's version.
        stem: which graph.
        threads: of the graph.

    Raises:
        BundleError: it is another file, or its inputs and outputs are not those of the manifest.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    expected, actual = manifest.sha256[f"{stem}.onnx"], hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise BundleError(
            f"{path}: expected sha256 {expected[:16]}… (graph {stem} of version {manifest.version}), got "
            f"{actual[:16]}…: the file is corrupted, or of another version; render the repository again"
        )
    session = open_session(content, threads=threads)
    for side, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        wanted = [_shown(tensor) for tensor in manifest.graphs[stem][side]]  # type: ignore[index]
        got = [(t.name, t.type, tuple(d if isinstance(d, int) else None for d in t.shape)) for t in found]
        if got != wanted:
            raise BundleError(f"{path}: expected the {side} {wanted} of the manifest, got {got}")
    return session


def _shown(tensor: Tensor) -> tuple[str, str, tuple[int | None, ...]]:
    """As ONNX Runtime says it, but for the names of dynamic dimensions."""
    name, kind, dims = tensor
    return name, _TYPES[kind], tuple(d if isinstance(d, int) else None for d in dims)


class OrtExecutor:
    """`serving.search.executor.Executor` over the ONNX files of one bundle."""

    def __init__(self, bundle: str | Path, *, levels: int, threads: int = 1, fuse: bool = True) -> None:
        """Load `prefix.onnx` and `tail_<level>.onnx` for the levels 2 .. levels + 1.

        Args:
            bundle: folder of the bundle.
            levels: SID levels T.
            threads: threads of each graph.
            fuse: see `open_session`.
        """
        bundle = Path(bundle)
        self._last = levels + 1
        self._prefix = open_session(bundle / "prefix.onnx", threads=threads, fuse=fuse)
        found = {output.name for output in self._prefix.get_outputs()}
        self._prefix_outputs = prefix_outputs(copy_path=COPY_LOGPROB in found)
        self._tails = {
            t: open_session(bundle / f"tail_{t}.onnx", threads=threads, fuse=fuse)
            for t in range(2, levels + 2)
        }

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        names = self._prefix_outputs
        outputs = dict(zip(names, self._prefix.run(names, prefix_inputs(slots, profile)), strict=True))
        return outputs.pop("logprob"), outputs

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        feeds = {name: carry[name] for name in tail_carry_inputs(level)}
        feeds |= dict(zip(tail_parent_inputs(level), parents, strict=True))
        feeds |= {"token": token, "allowed": allowed}
        names = tail_outputs(level, last=level == self._last)
        outputs = dict(zip(names, self._tails[level].run(names, feeds), strict=True))
        logprob = outputs.pop("logprob")
        return logprob, {**carry, **outputs}

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """See `Executor.join`."""
        return join_arrays(level, first, second)


class OrtRankGraph:
    """`serving.ranking.ranker.RankGraph` over the ONNX file of one bundle."""

    def __init__(self, bundle: str | Path, *, threads: int = 1) -> None:
        """Load `ad_ranker.onnx`."""
        self._session = open_session(Path(bundle) / f"{AD_RANKER}.onnx", threads=threads)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `RankGraph`."""
        [worth] = self._session.run([OUTPUT], dict(inputs))
        return worth


def _return_memory() -> None:
    """Hand what versions that are gone left behind to the system.

    glibc keeps freed memory for the thread that asked for it, and each version is opened by one thread and
    dropped by another: 25 to 40 swaps of the demo's graphs held 320 MB instead of 171.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class OrtGraphs:
    """Graphs of model versions for a scheduler that runs them in its own process."""

    def __init__(self, bundles: str | Path, *, threads: int) -> None:
        """Nothing is opened yet.

        Args:
            bundles: folder of bundles.
            threads: threads of each graph.
        """
        self._bundles, self._threads = Path(bundles), threads
        self._ready: tuple[int, OrtExecutor] | None = None  # opened, not yet in use

    def files(self, manifest: Manifest) -> dict[Path, str]:
        """The bundle's own are all there are."""
        return {}

    def is_loaded(self, manifest: Manifest) -> bool:
        """Nobody else loads them, so there is nothing to wait for before `prepare`."""
        return True

    def prepare(self, manifest: Manifest) -> None:
        """Open all graphs of a version, and run them once.

        Raises:
            BundleError: one cannot be opened, or computes something else than the manifest says.
        """
        self._ready = None  # one that no batch took goes first: with the one in use there are two at most
        _return_memory()
        try:
            opened, folder = self._open(manifest), self._bundles / str(manifest.version)
            rank_graph = OrtRankGraph(folder, threads=self._threads) if manifest.ranker else None
        except Exception as error:  # ONNX Runtime raises many kinds
            raise BundleError(
                f"model version {manifest.version}: its graphs cannot be opened: {error}"
            ) from error
        probe(opened, manifest)
        if rank_graph is not None:
            load_ranker(folder, manifest, rank_graph).probe(manifest)
        self._ready = manifest.version, opened

    def probe(self, manifest: Manifest) -> None:
        """Done by `prepare`, which no batch waits for."""

    def executor(self, manifest: Manifest) -> OrtExecutor:
        """Engine of a version. It is the caller's: an older version goes when it is no longer used."""
        ready, self._ready = self._ready, None
        return ready[1] if ready is not None and ready[0] == manifest.version else self._open(manifest)

    def _open(self, manifest: Manifest) -> OrtExecutor:
        folder = self._bundles / str(manifest.version)
        return OrtExecutor(folder, levels=manifest.levels, threads=self._threads)
