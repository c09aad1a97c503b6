"""Executor that runs the PyTorch model, for evaluation before export."""

from __future__ import annotations

import numpy as np
import torch

from serving.executor import Carry, prefix_outputs
from training.model.gr4ad import Generator
from training.model.split import PrefixGraph, TailGraph


class TorchExecutor:
    """`serving.executor.Executor` over a `Generator`."""

    def __init__(self, model: Generator) -> None:
        """Wrap a model; it is used in evaluation mode."""
        model.eval()
        self._prefix = PrefixGraph(model)
        self._tails = {t: TailGraph(model, t) for t in range(2, model.levels + 2)}

    @torch.no_grad()
    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        outputs = dict(zip(prefix_outputs(), self._prefix(_tensor(slots), _tensor(profile)), strict=True))
        return outputs.pop("logprob").numpy(), outputs

    @torch.no_grad()
    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        past = [carry[f"past_kv_{j}"] for j in range(1, level)]
        logprob, new_kv = self._tails[level](
            carry["m"],
            carry["context_kv"],
            carry["context_bias"],
            past,
            [_tensor(p) for p in parents],
            _tensor(token),
            _tensor(allowed),
        )
        return logprob.numpy(), {**carry, f"past_kv_{level}": new_kv}


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
