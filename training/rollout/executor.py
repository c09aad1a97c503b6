"""Executor that runs the split model in PyTorch, for evaluation before export and for calibration."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import nn

from serving.search.executor import COPY_LOGPROB, Carry, keys_and_values, prefix_outputs
from training.model.gr4ad import Generator
from training.model.split import PrefixGraph, split


class TorchExecutor:
    """`serving.search.executor.Executor` over the graphs of a `Generator`."""

    def __init__(self, model: Generator | nn.ModuleDict) -> None:
        """Wrap a model, or its graphs as `split` makes them, on any device; put in evaluation mode."""
        self._graphs = split(model) if isinstance(model, Generator) else model
        self._device = next(self._graphs.parameters()).device

    @torch.no_grad()
    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        graph = cast(PrefixGraph, self._graphs["prefix"])
        found = graph(self._tensor(slots), self._tensor(profile))
        outputs = dict(zip(prefix_outputs(copy_path=graph.has_copy_path), found, strict=True))
        if graph.has_copy_path:
            outputs[COPY_LOGPROB] = outputs[COPY_LOGPROB].cpu().numpy()
        return outputs.pop("logprob").cpu().numpy(), outputs

    @torch.no_grad()
    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        logprob, new_kv = self._graphs[f"tail_{level}"](
            m=carry["m"],
            context_kv=carry["context_kv"],
            context_bias=carry["context_bias"],
            past_kv=[carry[keys_and_values(j)] for j in range(1, level)],
            parents=[self._tensor(p) for p in parents],
            token=self._tensor(token),
            allowed=self._tensor(allowed),
        )
        return logprob.cpu().numpy(), {**carry, keys_and_values(level): new_kv}

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """See `Executor.join`."""
        name = keys_and_values(level)
        return {**second, name: torch.cat([first[name], second[name]], dim=2)}, first[name].shape[2]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self._device)
