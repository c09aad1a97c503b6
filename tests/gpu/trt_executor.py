"""`Executor` over TensorRT engines in this process; keys and values stay on the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from serving.search.executor import (
    COPY_LOGPROB,
    Carry,
    keys_and_values,
    prefix_outputs,
    tail_carry_inputs,
    tail_outputs,
    tail_parent_inputs,
)


class TrtExecutor:
    """Engines of one bundle."""

    def __init__(self, trt: Any, cupy: Any, plans: dict[str, Path], *, levels: int) -> None:
        """Load the engines.

        Args:
            trt: the module `tensorrt`.
            cupy: the module `cupy`.
            plans: stem -> plan.
            levels: SID levels T.
        """
        self._trt, self._cupy, self._last = trt, cupy, levels + 1
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._engines, self._contexts = {}, {}
        for stem, path in plans.items():
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            assert engine is not None, f"{path}: TensorRT {trt.__version__} cannot read it"
            self._engines[stem], self._contexts[stem] = engine, engine.create_execution_context()

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        engine = self._engines["prefix"]
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        copy_path = COPY_LOGPROB in names
        outputs = self._run(
            "prefix", {"slots": slots, "profile": profile}, prefix_outputs(copy_path=copy_path)
        )
        if copy_path:
            outputs[COPY_LOGPROB] = outputs[COPY_LOGPROB].get()
        return outputs.pop("logprob").get(), outputs

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        feeds = {name: carry[name] for name in tail_carry_inputs(level)}
        feeds |= dict(zip(tail_parent_inputs(level), parents, strict=True))
        feeds |= {"token": token, "allowed": allowed}
        outputs = self._run(f"tail_{level}", feeds, tail_outputs(level, last=level == self._last))
        return outputs.pop("logprob").get(), {**carry, **outputs}

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """See `Executor.join`."""
        name = keys_and_values(level)
        joined = self._cupy.concatenate([first[name], second[name]], axis=2)
        return {**second, name: joined}, first[name].shape[2]

    def _run(self, stem: str, feeds: dict[str, Any], names: list[str]) -> dict[str, Any]:
        cupy, context, engine = self._cupy, self._contexts[stem], self._engines[stem]
        with self._stream:
            arrays = {n: cupy.ascontiguousarray(cupy.asarray(a)) for n, a in feeds.items()}
            for name, array in arrays.items():
                assert context.set_input_shape(name, array.shape), (
                    f"{stem}: {name} {array.shape}: outside profile"
                )
                context.set_tensor_address(name, array.data.ptr)
            outputs = {}
            for name in names:
                dtype = self._trt.nptype(engine.get_tensor_dtype(name))
                outputs[name] = cupy.empty(tuple(context.get_tensor_shape(name)), dtype)
                context.set_tensor_address(name, outputs[name].data.ptr)
            assert context.execute_async_v3(self._stream.ptr), f"{stem}: execution failed"
        self._stream.synchronize()
        return outputs
