"""Stands for a trainer: makes weights, saves them, publishes them. A process of its own, at low priority.

python -m benchmarks.loop.trainer --run RUN --config .. --set ..

A line on its input asks for one publish; a line of JSON says when the weights were ready and published
(seconds of the machine's monotonic clock), which version they are, and what CPU time it took.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import torch

from export.gate_requests import random_requests
from export.publish import Place
from export.publisher import Publisher
from export.seeded import seeded_checkpoint
from serving.backend.priority import yield_to_servers
from serving.files import read_object
from serving.model.bundle import MANIFEST
from training.loop.checkpoint import Checkpoint, load_checkpoint
from training.loop.retention import save_checkpoint
from training.preset.preset import Preset, add_preset_arguments
from training.spec import ModelSpec

NOISE = 0.05  # of the standard deviation of each weight: answers differ, and are as good


def weights(base: Checkpoint, *, step: int) -> Checkpoint:
    """The base with noise, another one for each step."""
    random = torch.Generator().manual_seed(step)
    with torch.no_grad():
        model = base.spec.empty()
        model.load_state_dict(base.model.state_dict())
        for weight in model.parameters():
            scale = NOISE * float(weight.std()) if weight.numel() > 1 else 0.0
            weight += scale * torch.randn(weight.shape, generator=random)
    return dataclasses.replace(base, model=model.eval(), step=step)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop.trainer", description=__doc__)
    add_preset_arguments(parser)
    parser.add_argument("--run", required=True, type=Path)
    arguments = parser.parse_args()
    yield_to_servers()
    torch.set_num_threads(1)
    run, preset = arguments.run, Preset.load(arguments.config, arguments.overrides)
    spec = ModelSpec.from_json(read_object(run / "bundles" / "1" / MANIFEST))
    base = dataclasses.replace(seeded_checkpoint(preset), spec=spec)
    place = Place(run / "bundles", run / "repository", run / "index", preset.serving)

    def load(name: str) -> None:
        raise RuntimeError(f"expected a server that follows by itself, got {name} to load")

    requests = random_requests(base, count=preset.publish.gate_requests, seed=0)
    publisher = Publisher(place, preset, load, requests)
    print("ready", flush=True)
    for step, _ in enumerate(sys.stdin, start=1):
        made = weights(base, step=step)
        ready, cpu = time.monotonic(), time.process_time()
        path = save_checkpoint(run / "model", made, keep=2, fresh=step == 1)
        version = publisher.publish(load_checkpoint(path))
        said = {"version": version, "ready": ready, "published": time.monotonic()}
        print(json.dumps(said | {"cpu_s": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    main()
