"""A run folder to measure on: bundle with seeded weights, index of the seeded catalogue, repository."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from benchmarks import catalogue
from export.render import render
from indexer.store.index_store import IndexStore
from serving.backend.settings import ServingConfig
from serving.model.bundle import read_manifest
from training.preset.preset import Preset

ROOT = Path(__file__).parents[1]
_MODEL_SOURCES = ("training/model/*.py", "export/graphs.py", "export/bundle.py", "export/seeded.py")


def prepare(
    run: Path,
    *,
    ads: int,
    preset: Preset,
    rebuild: bool = False,
) -> None:
    """Bundle with seeded weights, index of the seeded catalogue and rendered repository below `run`.

    Bundle and index are made once for a state of the preset and of the model's sources.

    Args:
        run: folder to fill.
        ads: size of the catalogue.
        preset: sizes of the model, and what is served with.
        rebuild: make all anew.
    """
    wanted, stamp = {"bundle": source_digest(preset), "ads": ads}, run / "prepared.json"
    found = json.loads(stamp.read_text()) if stamp.is_file() and not rebuild else {}
    stamp.unlink(missing_ok=True)
    if found.get("bundle") != wanted["bundle"]:
        from export.bundle import write_bundle  # torch takes its seconds only where a model is built
        from export.seeded import seeded_checkpoint

        shutil.rmtree(run / "bundles", ignore_errors=True)
        write_bundle(seeded_checkpoint(preset), run / "bundles", tokenizer=None)
    sizes = read_manifest(run / "bundles" / "1").level_sizes
    if found != wanted:
        shutil.rmtree(run / "index", ignore_errors=True)
        with IndexStore(run / "index") as store:
            store.build(
                catalogue.TOKENIZER_ID,
                sizes,
                ad_ids=np.arange(1, ads + 1),
                sids=catalogue.seeded_sids(ads, sizes),
                statuses=np.full(ads, "active"),
            )
    stamp.write_text(json.dumps(wanted))
    render_settings(run, preset.serving)


def source_digest(preset: Preset, *, of: str = "seeded run") -> str:
    """Of what shapes seeded graphs: the preset and the code that makes them; `of` tells uses apart."""
    shape = preset.model_dump_json(include={"features", "tokenizer", "model"})
    digest = hashlib.sha256(f"{of} {shape}".encode())
    for source in sorted(p for pattern in _MODEL_SOURCES for p in ROOT.glob(pattern)):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def prepare_seeded(preset: Preset, run: Path, *, shared_layers: int, ads: int = 100_000) -> Path:
    """Prepare RUN/triton/k<K> for `measure`; returns the folder of its graphs."""
    folder = run / "triton" / f"k{shared_layers}"
    prepare(folder, ads=ads, preset=with_shared_layers(preset, shared_layers))
    return folder / "bundles" / "1"


def with_shared_layers(preset: Preset, count: int) -> Preset:
    """The preset with another K."""
    return preset.model_copy(update={"model": preset.model.model_copy(update={"shared_layers": count})})


def render_settings(run: Path, serving: ServingConfig) -> None:
    """Render the repository of a prepared run with other serving settings."""
    shutil.rmtree(run / "repository", ignore_errors=True)
    render(run / "bundles", run / "repository", index=run / "index", config=serving)
