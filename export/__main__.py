"""Checkpoint -> bundle -> model repository: `python -m export --config ... --run ...`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from export.bundle import point_current, write_bundle
from export.config import ServingConfig
from export.parity import ParityError
from export.render import SOURCE, TARGETS, RenderError, render
from export.seeded import seeded_checkpoint
from serving.bundle import BundleError, read_manifest
from training.checkpoint import CheckpointError, load_checkpoint
from training.config import ConfigError, load_section


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("--config", required=True, help="preset, e.g. configs/demo.yaml")
    parser.add_argument("--run", required=True, type=Path, help="run folder with model/ and tokenizer/")
    parser.add_argument(
        "--repository", type=Path, default=SOURCE, help="model repository to fill (model_repository)"
    )
    parser.add_argument("--index", type=Path, help="index that will be served (default: RUN/index)")
    parser.add_argument(
        "--target",
        choices=TARGETS,
        default="cpu",
        help="cpu: Python backend with ONNX Runtime, for the server of the wheel; "
        "onnxruntime, tensorrt: Triton's own backends",
    )
    parser.add_argument("--render-only", action="store_true", help="render for the bundles that are there")
    parser.add_argument(
        "--seeded-weights",
        action="store_true",
        help="random weights in the preset's shape instead of RUN/model: benchmarks, compile checks",
    )
    parser.add_argument(
        "--activate", type=int, metavar="VERSION", help="serve an earlier version again; exports nothing"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    bundles = arguments.run / "bundles"
    try:
        if arguments.activate is not None:
            read_manifest(bundles / str(arguments.activate))
            point_current(bundles, arguments.activate)
            print(f"{bundles}/CURRENT -> {arguments.activate}")
            return
        config = load_section(
            arguments.config, "serving", ServingConfig, overrides=tuple(arguments.overrides)
        )
        if not arguments.render_only:
            overrides = tuple(arguments.overrides)
            checkpoint = (
                seeded_checkpoint(arguments.config, overrides=overrides)
                if arguments.seeded_weights
                else load_checkpoint(arguments.run / "model" / "checkpoint")
            )
            torch.set_num_threads(int(checkpoint.training["threads"]))
            evaluation = arguments.run / "model" / "evaluation.json"
            quality = json.loads(evaluation.read_text()) if evaluation.is_file() else {}
            print("exporting prefix and tails to ONNX …", file=sys.stderr, flush=True)
            bundle = write_bundle(
                checkpoint,
                bundles,
                quality=quality,
                tokenizer=None if arguments.seeded_weights else arguments.run / "tokenizer",
            )
            content = read_manifest(bundle).content
            print(
                f"bundle {bundle}: {len(content['graphs'])} graphs, parity with PyTorch within "
                f"{content['parity_max_error']:.1e}, {content['export_seconds']} s"
            )
        models = render(
            bundles,
            arguments.repository,
            index=arguments.index or arguments.run / "index",
            config=config,
            target=arguments.target,
        )
    except (
        BundleError,
        CheckpointError,
        ConfigError,
        ParityError,
        RenderError,
        ValueError,
        OSError,
    ) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{arguments.repository}: {', '.join(models)} (target {arguments.target})")


if __name__ == "__main__":
    main()
