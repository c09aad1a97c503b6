"""Where a process computes and with whom: CPU or CUDA, float32 or bfloat16, alone or under torchrun."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.data.batch import Batch
from training.loop.config import DeviceName, TrainingPrecision


class DeviceError(RuntimeError):
    """The device that a preset asks for is not there."""


@dataclass(frozen=True)
class Device:
    """One process of a run.

    Attributes:
        device: where tensors live.
        precision: fp32, or bf16: products in bfloat16 (autocast); weights and optimizer stay float32.
        rank: of this process.
        world: number of processes.
    """

    device: torch.device = torch.device("cpu")
    precision: TrainingPrecision = "fp32"
    rank: int = 0
    world: int = 1

    @classmethod
    @contextlib.contextmanager
    def join(cls, name: DeviceName = "auto", precision: TrainingPrecision = "fp32") -> Iterator[Device]:
        """This process's device; under torchrun it belongs to the group of all processes inside the block.

        Args:
            name: auto is cuda where there is a GPU. Under torchrun each process of a host takes a GPU of its
                own.
            precision: of products.

        Raises:
            DeviceError: no such GPU, or one that does not compute in bfloat16.
        """
        local = int(os.environ.get("LOCAL_RANK", "0"))
        alone = cls(_device(name, local), precision)
        if alone.device.type == "cuda":
            torch.cuda.set_device(alone.device)
            if precision == "bf16" and not torch.cuda.is_bf16_supported():
                raise DeviceError(f"precision: expected fp32 on {alone.device}, which has no bfloat16")
        if "RANK" not in os.environ:
            yield alone
            return
        dist.init_process_group("nccl" if alone.device.type == "cuda" else "gloo")
        try:
            yield replace(alone, rank=dist.get_rank(), world=dist.get_world_size())
        finally:
            dist.destroy_process_group()

    def autocast(self) -> contextlib.AbstractContextManager:
        """What forward passes run in; no change in fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model` as training runs it: with several processes, gradients are averaged over them."""
        if self.world == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def put(self, batch: Batch[np.ndarray]) -> Batch[Tensor]:
        """A batch on the device."""
        return batch.map(self._tensor)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, new; every process must call it."""
        tensor = tensor.clone()
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def fetch(self, numbers: Tensor) -> Callable[[], list[float]]:
        """Start to copy numbers to the host.

        Returns:
            A function that waits until they are there, but not for what the device was given after them.
        """
        copied = numbers.to("cpu", non_blocking=True)
        if self.device.type != "cuda":
            return copied.tolist
        arrived = torch.cuda.Event()
        arrived.record()

        def wait() -> list[float]:
            arrived.synchronize()
            return copied.tolist()

        return wait

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # so that the copy runs beside the step before
        return tensor.to(self.device, non_blocking=True)


def _device(name: DeviceName, local: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if local >= torch.cuda.device_count():
        raise DeviceError(
            f"device: expected a GPU for process {local} of this host, "
            f"found {torch.cuda.device_count()} (torch {torch.__version__})"
        )
    return torch.device("cuda", local)
