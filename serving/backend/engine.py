"""Who runs the graphs of a model version: Triton models that the scheduler calls, or the scheduler itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from serving.backend.model_settings import ModelSettings
from serving.backend.plans import SearchPlans
from serving.backend.settings import ServingConfig
from serving.engines.bls import BlsExecutor, BlsRankGraph
from serving.engines.ort import OrtGraphs, OrtRankGraph
from serving.engines.padding import PaddedExecutor, PaddedRankGraph, ShapeBuckets
from serving.model.graphs import Graphs, Prepare
from serving.model.manifest import Manifest
from serving.model.placed import placed_files
from serving.ranking.kinds import load_ranker
from serving.ranking.ranker import Ranker, RankGraph
from serving.search.executor import Executor
from serving.search.probe import probe


class Engine(Graphs, Protocol):
    """Graphs of every version that may answer, and what runs them."""

    def executor(self, manifest: Manifest) -> Executor:
        """Engine of one version."""
        ...


class GraphModels:
    """Every graph is a Triton model, and Triton loads it."""

    prepare: Prepare | None = None

    def __init__(self, triton: Any, settings: ModelSettings, *, repository: Path) -> None:
        """Wire up; `triton` is the module `triton_python_backend_utils`, `repository` what it serves."""
        self._triton, self._settings, self._repository = triton, settings, repository

    def files(self, manifest: Manifest) -> dict[Path, str]:
        """What Triton loads of a version."""
        return placed_files(self._repository, manifest)

    def is_loaded(self, manifest: Manifest) -> bool:
        """Whether Triton has every graph of a version."""
        names, version = [f"lazyar_{stem}" for stem in manifest.graphs], str(manifest.version)
        return all(self._triton.is_model_ready(model_name=n, model_version=version) for n in names)

    def probe(self, manifest: Manifest) -> None:
        """See `Graphs`."""
        probe(self.executor(manifest), manifest)
        if manifest.ranker:
            make_ranker(self._triton, self._settings, manifest).probe(manifest)

    def executor(self, manifest: Manifest) -> Executor:
        """See `Engine`."""
        executor = BlsExecutor(
            self._triton,
            levels=manifest.levels,
            version=manifest.version,
            copy_path=manifest.has_copy_path,
            device_memory=self._settings.graph_memory == "device",
        )
        if not self._settings.pad_shapes:
            return executor
        return PaddedExecutor(executor, shape_buckets(manifest, self._settings.serving))


def make_engine(triton: Any, settings: ModelSettings, *, repository: Path) -> Engine:
    """The configured one, see `GraphModels`."""
    if settings.serving.graph_calls == "in_process":
        return OrtGraphs(settings.bundles_folder, threads=settings.serving.threads)
    return GraphModels(triton, settings, repository=repository)


def make_ranker(triton: Any, settings: ModelSettings, manifest: Manifest) -> Ranker:
    """The ranking stage of one version, with its graph where the configured engine has it.

    Raises:
        BundleError: the version has none, or its bundle is not what it should be.
    """
    serving, bundle = settings.serving, settings.bundles_folder / str(manifest.version)
    graph: RankGraph
    if serving.graph_calls == "in_process":
        graph = OrtRankGraph(bundle, threads=serving.threads)
    else:
        graph = BlsRankGraph(triton, version=manifest.version)
    if settings.pad_shapes:
        graph = PaddedRankGraph(graph, batch=shape_buckets(manifest, serving).batch)
    return load_ranker(bundle, manifest, graph, pad_to=serving.rerank_pool)


def shape_buckets(manifest: Manifest, config: ServingConfig) -> ShapeBuckets:
    """What calls are padded to, and CUDA graphs are made for."""
    return ShapeBuckets.of(
        SearchPlans.of(config, levels=manifest.levels).prepared,
        level_sizes=manifest.level_sizes,
        value_buckets=len(manifest.value_table),
        max_batch=config.max_batch_size,
    )
