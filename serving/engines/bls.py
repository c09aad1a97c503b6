"""Graphs called as Triton models (business logic scripting, BLS): those of the search, and the ranker's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.model.manifest import AD_RANKER
from serving.ranking.ranker import OUTPUT
from serving.search.executor import (
    COPY_LOGPROB,
    Carry,
    keys_and_values,
    prefix_inputs,
    prefix_outputs,
    tail_carry_inputs,
    tail_outputs,
    tail_parent_inputs,
)

logger = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """A graph model failed or is not there."""


class BlsExecutor:
    """`serving.search.executor.Executor` inside Triton's Python backend.

    The carry holds the callee's own tensor objects, so keys and values never pass through NumPy. Triton has
    one preferred memory for all outputs of a call: host memory where graphs run on CPUs; on GPUs device
    memory, so that keys and values stay there, and what the search reads is copied to the host.
    """

    def __init__(
        self,
        triton: Any,
        *,
        levels: int,
        version: int,
        copy_path: bool = False,
        device_memory: bool = False,
    ) -> None:
        """Call version `version` of every graph, so that a batch never mixes model versions.

        Args:
            triton: the module `triton_python_backend_utils`, or a stand-in with the same names.
            levels: SID levels T.
            version: model version.
            copy_path: whether the model has one.
            device_memory: keep outputs on the GPU that made them; needs CuPy to copy scores to the host.
        """
        self._triton, self._last, self._version = triton, levels + 1, version
        self._copy_path = copy_path
        self._cupy = _cupy() if device_memory else None

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        tensor = self._triton.Tensor
        inputs = [tensor(name, values) for name, values in prefix_inputs(slots, profile).items()]
        outputs = self._call("lazyar_prefix", inputs, prefix_outputs(copy_path=self._copy_path))
        if self._copy_path:
            outputs[COPY_LOGPROB] = self._host(outputs[COPY_LOGPROB])
        return self._host(outputs.pop("logprob")), outputs

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        tensor = self._triton.Tensor
        inputs = [carry[name] for name in tail_carry_inputs(level)]
        inputs += [tensor(n, p) for n, p in zip(tail_parent_inputs(level), parents, strict=True)]
        inputs += [tensor("token", token), tensor("allowed", allowed)]
        outputs = self._call(f"lazyar_tail_{level}", inputs, tail_outputs(level, last=level == self._last))
        return self._host(outputs.pop("logprob")), {**carry, **outputs}

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """See `Executor.join`; on the GPU where both calls left their outputs there."""
        name, on_device = keys_and_values(level), self._cupy
        tensors = [first[name], second[name]]
        if on_device is None or any(tensor.is_cpu() for tensor in tensors):
            arrays = [self._host(tensor) for tensor in tensors]
            joined = self._triton.Tensor(name, np.concatenate(arrays, axis=2))
        else:
            arrays = [on_device.from_dlpack(tensor.to_dlpack()) for tensor in tensors]
            joined = self._triton.Tensor.from_dlpack(name, on_device.concatenate(arrays, axis=2))
        return {**second, name: joined}, arrays[0].shape[2]

    def _host(self, tensor: Any) -> np.ndarray:
        if self._cupy is None or tensor.is_cpu():
            return tensor.as_numpy()
        return self._cupy.from_dlpack(tensor.to_dlpack()).get()

    def _call(self, model: str, inputs: list[Any], outputs: list[str]) -> dict[str, Any]:
        return _call(
            self._triton,
            model,
            version=self._version,
            inputs=inputs,
            outputs=outputs,
            device_memory=self._cupy is not None,
        )


class BlsRankGraph:
    """`serving.ranking.ranker.RankGraph` inside Triton's Python backend."""

    def __init__(self, triton: Any, *, version: int) -> None:
        """Call one version; see `BlsExecutor`."""
        self._triton, self._version = triton, version

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `RankGraph`."""
        outputs = _call(
            self._triton,
            f"lazyar_{AD_RANKER}",
            version=self._version,
            inputs=[self._triton.Tensor(name, values) for name, values in inputs.items()],
            outputs=[OUTPUT],
        )
        return outputs[OUTPUT].as_numpy()


def _call(
    triton: Any,
    model: str,
    *,
    version: int,
    inputs: list[Any],
    outputs: list[str],
    device_memory: bool = False,
) -> dict[str, Any]:
    """Output tensors of a model by name."""
    request = triton.InferenceRequest(
        model_name=model,
        model_version=version,
        inputs=inputs,
        requested_output_names=outputs,
        preferred_memory=triton.PreferredMemory(
            triton.TRITONSERVER_MEMORY_GPU if device_memory else triton.TRITONSERVER_MEMORY_CPU
        ),
    )
    response = request.exec()
    if response.has_error():
        raise EngineError(f"{model} version {version}: {response.error().message()}")
    return {t.name(): t for t in response.output_tensors()}


def _cupy() -> Any:
    """CuPy, or None with a line in the log: everything then goes through host memory, which is slower."""
    try:
        import cupy
    except ImportError as error:
        logger.warning("keys and values pass through host memory: CuPy cannot be imported (%s)", error)
        return None
    return cupy
