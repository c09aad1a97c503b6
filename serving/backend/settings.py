"""What a deployment serves with: section `serving` of a preset."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.backend.request import RequestLimits
from serving.index.audience import attribute_columns
from serving.load.settings import ControlSettings
from serving.model.manifest import RankerKind
from serving.search.rank import RankBy
from serving.served_log.settings import ServedLogConfig

Rerank = Literal["off"] | RankerKind


class ServingConfig(BaseModel):
    """What a deployment serves with.

    Defaults of batch size, instances and threads are the best of `benchmarks.sweep_triton` on two cores; with
    one core, one scheduler and one thread are better (docs/decisions.md).

    Attributes:
        widths: width plan, beams after each SID level and, after the colon, beams that get a value.
        max_widths: widest plan of all, for requests and load control; None for the ladder's widest.
        normalise: of each SID level, "codebook" or "live" (e.g. "codebook-codebook-live"): whether the
            probabilities of a level add up to 1 over its whole codebook or over the live children of a beam.
            None for "codebook" throughout.
        cold_start: probability of a SID that the model was not trained on, as a multiple of an even share of
            its prefix's (docs/decisions.md); 0 for what the model says, which is next to nothing.
        prune: "exact": beams that cannot be among those of the answer are left out, where that saves time on
            this machine; the answers are the same. "off": never. Graphs on a GPU are searched without.
        rank_by: what ads are ranked by where the request does not say: "probability", or "value", p x the
            expected value, among the beams that get one.
        rerank: what orders the best ads once more where the request does not say: "off", or the ranker that
            the bundle brings (`ad_ranker`): "reward", p x value of a reward model, or "item", the item level
            of the generator.
        rerank_pool: ads by `rank_by` that are ordered then, as many as are asked for at least.
        max_num_ads: most ads a request may ask for.
        max_exclude: most ads, and most accounts, that a request may exclude.
        audience: "on": requests are told apart by their profile, request features and `attributes`, and may
            exclude accounts (docs/audience.md). "off": ads with an audience are shown to nobody.
        attributes: what a request says of itself for audiences only: by name the values that there are, or
            "any" text. In this order they are the tensor `attributes`.
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
        load_control: "adaptive": widths follow the load, see docs/load-control.md; "fixed": always `widths`.
        slo_ms: time within which adaptive load control wants a request answered.
        ladder: plans that load control may take, widest first, `widths` among them; None for steps from a
            quarter of `widths` to 1.6 times.
        max_queue: searches that may wait; a request beyond them is refused where it comes in.
        cache: where results of the last minute are kept: "local" (each scheduler process its own), "redis"
            (GR4AD_CACHE_URL in the server's environment, or cache_url) or "off".
        cache_ttl_s: how long.
        cache_mb: memory of a local cache.
        cache_url: Redis of the cache; passwords belong into GR4AD_CACHE_URL.
        served_log: records of what was answered (docs/feedback.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: str = "64-128-256:64"
    max_widths: str | None = None
    normalise: str | None = None
    cold_start: float = Field(1.0, ge=0, allow_inf_nan=False)
    prune: Literal["exact", "off"] = "exact"
    rank_by: RankBy = "probability"
    rerank: Rerank = "off"
    rerank_pool: int = Field(64, ge=1, le=4096)
    max_num_ads: int = Field(200, ge=1)
    max_exclude: int = Field(1000, ge=0)
    audience: Literal["on", "off"] = "off"
    attributes: dict[str, tuple[str, ...] | Literal["any"]] = {}
    max_batch_size: int = Field(8, ge=1)
    graph_calls: Literal["bls", "in_process"] = "bls"
    scheduler_instances: int = Field(2, ge=1)
    queue_delay_us: int = Field(0, ge=0)
    threads: int = Field(2, ge=1)
    execution_provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    cuda_graphs: bool = True
    graph_instances: int = Field(1, ge=1)
    load_control: Literal["adaptive", "fixed"] = "adaptive"
    slo_ms: float = Field(100.0, gt=0, allow_inf_nan=False)
    ladder: str | None = None
    max_queue: int = Field(1024, ge=1)
    cache: Literal["local", "redis", "off"] = "local"
    cache_ttl_s: float = Field(60.0, gt=0, allow_inf_nan=False)
    cache_mb: int = Field(64, ge=1)
    cache_url: str = "redis://127.0.0.1:6379/0"
    served_log: ServedLogConfig = ServedLogConfig()

    @model_validator(mode="after")
    def _attributes_are_used(self) -> Self:
        if self.attributes and self.audience == "off":
            raise ValueError("attributes: expected none with audience off")
        attribute_columns(self.attributes)
        return self

    @property
    def limits(self) -> RequestLimits:
        """What a request may ask for."""
        return RequestLimits(max_num_ads=self.max_num_ads, max_exclude=self.max_exclude)

    @property
    def control(self) -> ControlSettings | None:
        """Of adaptive load control; None where widths are fixed."""
        if self.load_control == "fixed":
            return None
        return ControlSettings(
            slo_s=self.slo_ms / 1e3,
            instances=self.scheduler_instances,
            max_batch=self.max_batch_size,
            max_queue=self.max_queue,
        )
