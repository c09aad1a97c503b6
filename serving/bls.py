"""Executor that calls the graphs as Triton models (business logic scripting, BLS)."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.executor import Carry, prefix_outputs, tail_carry_inputs, tail_outputs, tail_parent_inputs


class EngineError(RuntimeError):
    """A graph model failed or is not there."""


class BlsExecutor:
    """`serving.executor.Executor` inside Triton's Python backend.

    The carry holds the callee's own tensor objects, so keys and values never pass through NumPy. All outputs
    are
    asked for in host memory: `as_numpy` of the scores needs it, and Triton has one preference for a whole
        request.
    """

    def __init__(self, triton: Any, *, levels: int, version: int) -> None:
        """Call version `version` of every graph, so that a batch never mixes model versions.

        Args:
            triton: the module `triton_python_backend_utils`, or a stand-in with the same names.
            levels: SID levels T.
            version: model version.
        """
        self._triton, self._last, self._version = triton, levels + 1, version

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        tensor = self._triton.Tensor
        outputs = self._call(
            "lazyar_prefix", [tensor("slots", slots), tensor("profile", profile)], prefix_outputs()
        )
        return outputs.pop("logprob").as_numpy(), outputs

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        tensor = self._triton.Tensor
        inputs = [carry[name] for name in tail_carry_inputs(level)]
        inputs += [tensor(n, p) for n, p in zip(tail_parent_inputs(level), parents, strict=True)]
        inputs += [tensor("token", token), tensor("allowed", allowed)]
        outputs = self._call(f"lazyar_tail_{level}", inputs, tail_outputs(level, last=level == self._last))
        return outputs.pop("logprob").as_numpy(), {**carry, **outputs}

    def _call(self, model: str, inputs: list[Any], outputs: list[str]) -> dict[str, Any]:
        request = self._triton.InferenceRequest(
            model_name=model,
            model_version=self._version,
            inputs=inputs,
            requested_output_names=outputs,
            preferred_memory=self._triton.PreferredMemory(self._triton.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            raise EngineError(f"{model} version {self._version}: {response.error().message()}")
        return {t.name(): t for t in response.output_tensors()}
