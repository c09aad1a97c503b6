"""What the live index is measured on: a seeded bundle with an encoder, its index, a Triton and a sidecar."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import catalogue
from benchmarks.seeded_run import source_digest
from export.render import render
from indexer.store.index_store import IndexStore
from launcher.indexer_process import IndexerProcess
from serving.backend.settings import ServingConfig
from serving.model.bundle import read_manifest
from training.preset.preset import Preset
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.embedders.tfidf_svd import TfidfSvd
from training.tokenizer.embedders.words import Words
from training.tokenizer.quantizers.residual import Level
from training.tokenizer.quantizers.rq_kmeans import RqKmeans
from training.tokenizer.tokenizer import Tokenizer

CONFIG = "configs/bench.yaml"
WORDS, DIM = 4_000, 64


def seeded_tokenizer(level_sizes: tuple[int, ...], *, seed: int = 0) -> Tokenizer:
    """Tokenizer of those level sizes that knows the words w0 .. w3999; as costly as a fitted one."""
    random = np.random.default_rng(seed)
    words = Words(
        {f"w{i}": i for i in range(WORDS)}, 1, idf=random.uniform(1.0, 9.0, WORDS).astype(np.float32)
    )
    embedder = TfidfSvd(words, components=random.standard_normal((DIM, WORDS)).astype(np.float32))
    books = []
    for level, size in enumerate(level_sizes[:-1]):
        book = random.standard_normal((size, DIM))
        # Of about the length of what a level leaves to the next.
        books.append((book / np.linalg.norm(book, axis=1, keepdims=True) * 0.8**level).astype(np.float32))
    config = TokenizerConfig(
        codebook_sizes=level_sizes[:-1],
        hash_size=level_sizes[-1],
        embedding="tfidf_svd",
        quantizer="rq_kmeans",
        embedding_dim=DIM,
        ngram_max=1,
    )
    return Tokenizer(config, embedder, quantizer=RqKmeans([Level.of(book) for book in books]))


def text(random: np.random.Generator) -> str:
    """Text of an ad that the seeded tokenizer understands."""
    return " ".join(f"w{i}" for i in random.integers(0, WORDS, 8))


def prepare(run: Path, *, ads: int, preset: Preset | None = None) -> tuple[ServingConfig, str]:
    """Bundle and repository below `run`, made once; index made anew. Returns settings and tokenizer id.

    Args:
        run: folder to fill.
        ads: size of the catalogue.
        preset: sizes of the model; None for preset bench.
    """
    preset = preset or Preset.load(CONFIG)
    stamp, wanted = run / "prepared.json", {"bundle": source_digest(preset, of="index")}
    if not stamp.is_file() or json.loads(stamp.read_text()) != wanted:
        from export.bundle import write_bundle  # torch takes its seconds only where a model is built
        from export.seeded import seeded_checkpoint

        shutil.rmtree(run, ignore_errors=True)
        checkpoint = seeded_checkpoint(preset)
        tokenizer = seeded_tokenizer(checkpoint.spec.level_sizes)
        tokenizer.save(run / "tokenizer")
        spec = replace(checkpoint.spec, tokenizer_id=tokenizer.tokenizer_id)
        write_bundle(replace(checkpoint, spec=spec), run / "bundles", tokenizer=run / "tokenizer")
        stamp.write_text(json.dumps(wanted))
    manifest = read_manifest(run / "bundles" / "1", verify=False)
    build_index(run / "index", ads=ads, level_sizes=manifest.level_sizes, tokenizer_id=manifest.tokenizer_id)
    shutil.rmtree(run / "repository", ignore_errors=True)
    render(run / "bundles", run / "repository", index=run / "index", config=preset.serving)
    return preset.serving, manifest.tokenizer_id


def build_index(index: Path, *, ads: int, level_sizes: tuple[int, ...], tokenizer_id: str) -> float:
    """Index of the seeded catalogue with given SIDs, ads 1 .. `ads`; returns the seconds it took."""
    shutil.rmtree(index, ignore_errors=True)
    sids = catalogue.seeded_sids(ads, level_sizes)
    began = time.monotonic()
    with IndexStore(index) as store:
        store.build(
            tokenizer_id,
            level_sizes,
            ad_ids=np.arange(1, ads + 1),
            sids=sids,
            statuses=np.full(ads, "active"),
        )
    return time.monotonic() - began


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sidecar(run: Path, *options: str, cores: Iterable[int] | None = None) -> IndexerProcess:
    """The sidecar of RUN/index and RUN/bundles; its log is RUN/sidecar.log."""
    paths = f"--index={run.absolute() / 'index'}", f"--bundles={run.absolute() / 'bundles'}"
    return _Pinned(*paths, *options, log_file=run / "sidecar.log", cores=cores)


class _Pinned(IndexerProcess):
    """Keeps to these cores."""

    def __init__(self, *options: str, log_file: Path, cores: Iterable[int] | None) -> None:
        super().__init__(*options, log_file=log_file)
        self._cores = set(cores or os.sched_getaffinity(0))

    def start(self, *, ready: bool = True, timeout_s: float = 60.0) -> IndexerProcess:
        super().start(ready=ready, timeout_s=timeout_s)
        assert self.process is not None
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():  # of each of its threads
            os.sched_setaffinity(int(task.name), self._cores)
        return self
