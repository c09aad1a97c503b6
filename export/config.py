"""What the rendered model repository serves with."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ServingConfig(BaseModel):
    """Settings that rendering writes into the model configs.

    Defaults of batch size, instances and threads are the best of `benchmarks.sweep_triton` on two cores; with
    one core, one scheduler and one thread are better (docs/decisions.md).

    Attributes:
        widths: width plan, beams after each SID level and, after the colon, beams that get a value.
        max_widths: widest plan that a request may ask for; None for `widths`.
        normalise: of each SID level, "codebook" or "live" (e.g. "codebook-codebook-live"): whether the
            probabilities of a level add up to 1 over its whole codebook or over the live children of a beam.
            None for "codebook" throughout.
        max_num_ads: most ads a request may ask for.
        max_exclude: most ads a request may exclude.
        max_batch_size: most requests in one batch.
        graph_calls: "bls": every graph is a Triton model that the scheduler calls; "in_process" (cpu target):
            the scheduler runs the graphs itself, which saves copying keys and values between processes.
        scheduler_instances: beam schedulers side by side; with two, the prefix of one batch can run beside
            the tails of another, where there are cores for it.
        queue_delay_us: how long the scheduler's queue waits for a batch to fill.
        threads: CPU threads of each graph (cpu and onnxruntime targets).
        execution_provider: of ONNX Runtime (onnxruntime target): "cpu", "cuda", or "tensorrt", which compiles
            the graphs when they are first used.
        cuda_graphs: tensorrt target: pad calls to few shapes and launch those as CUDA graphs.
        graph_instances: instances of each graph on each GPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: str = "64-128-256:64"
    max_widths: str | None = None
    normalise: str | None = None
    max_num_ads: int = Field(200, ge=1)
    max_exclude: int = Field(1000, ge=0)
    max_batch_size: int = Field(8, ge=1)
    graph_calls: Literal["bls", "in_process"] = "bls"
    scheduler_instances: int = Field(2, ge=1)
    queue_delay_us: int = Field(0, ge=0)
    threads: int = Field(2, ge=1)
    execution_provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    cuda_graphs: bool = True
    graph_instances: int = Field(1, ge=1)
