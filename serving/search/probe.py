"""One small search through the graphs of a version, to see that they compute what its manifest says.

Scores are log-probabilities over a whole codebook. So those of all codes add up to 1 where the codebook of
the graph has the size that the manifest says, and not where weights are no numbers. A copy path must leave
all to the model where there is no history.

Letters: T SID levels, V codes of a level, S context slots, P profile columns.
"""

from __future__ import annotations

import numpy as np

from serving.model.bundle import BundleError
from serving.model.manifest import Manifest
from serving.search.executor import COPY_LOGPROB, Executor

TOLERANCE = 1e-4  # the softmax is in FP32, whatever the precision of the weights


def probe(executor: Executor, manifest: Manifest) -> None:
    """Score every code of every level for a user without history, along the last code of each.

    Raises:
        BundleError: a graph fails, or its scores are not those of a codebook of the manifest's size.
    """
    spec, version = manifest.features, manifest.version
    codebooks = [*manifest.level_sizes, len(manifest.value_means)]
    slots = np.zeros((1, spec.rows, spec.columns), np.int32)
    profile = np.zeros((1, len(spec.column_sizes)), np.int32)
    level = 1
    try:
        logprob, carry = executor.prefix(slots, profile)
        _check(logprob[0], codebooks[0], where=f"model version {version}: prefix")
        if manifest.has_copy_path:
            _check_copies(carry[COPY_LOGPROB], habits=spec.habits, where=f"model version {version}: prefix")
        for level in range(2, manifest.levels + 2):
            logprob, carry = executor.tail(
                level,
                carry,
                parents=[np.zeros((1, 1), np.int32) for _ in range(2, level)],
                token=np.full((1, 1), codebooks[level - 2] - 1, np.int32),
                allowed=np.arange(codebooks[level - 1], dtype=np.int32)[None, None],
            )
            _check(logprob[0, 0], codebooks[level - 1], where=f"model version {version}: tail_{level}")
    except BundleError:
        raise
    except Exception as error:  # engines raise many kinds
        raise BundleError(f"model version {version}: level {level} of its graphs fails: {error}") from error


def _check(logprob: np.ndarray, codes: int, *, where: str) -> None:
    if logprob.shape != (codes,):
        raise BundleError(f"{where}: expected scores of {codes} codes, got the shape {logprob.shape}")
    total = float(np.exp(logprob.astype(np.float64)).sum())
    if not abs(total - 1.0) <= TOLERANCE:  # true for NaN, too
        raise BundleError(
            f"{where}: expected probabilities of {codes} codes that add up to 1, got a sum of {total:.3g}: "
            "the graph has another codebook, or weights that are not numbers"
        )


def _check_copies(logprob: np.ndarray, *, habits: int, where: str) -> None:
    if logprob.shape[1:] != (1 + habits,):
        raise BundleError(
            f"{where}: copy_logprob: expected numbers of the model and {habits} habits, got the shape "
            f"{logprob.shape}"
        )
    parts = np.exp(logprob[0].astype(np.float64))
    if not (abs(parts[0] - 1.0) <= TOLERANCE and abs(parts.sum() - 1.0) <= TOLERANCE):  # true for NaN, too
        raise BundleError(
            f"{where}: copy_logprob: expected all for the model without a history, got {parts[0]:.3g} of "
            f"{parts.sum():.3g}"
        )
