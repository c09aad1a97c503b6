"""What can be said to `python -m export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from export.kept import TARGETS
from export.render import SOURCE
from serving.model.manifest import RankerKind
from training.preset.precision import PRECISIONS
from training.preset.preset import add_preset_arguments


def make_parser() -> argparse.ArgumentParser:
    """The arguments of an export."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Checkpoint -> bundle -> model repository.",
        epilog="Versions of a running server: python -m export versions | publish | canary | rollback | pin "
        "(--help).",
    )
    add_preset_arguments(parser)
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
        "onnxruntime, tensorrt: Triton's own backends; for tensorrt, engines that are not there yet are "
        "built, on the GPU host, inside its Triton container (an exported bundle: --render-only)",
    )
    parser.add_argument(
        "--engines",
        type=Path,
        help="target tensorrt: folder of python -m export.tensorrt (default: RUN/engines)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the graphs (default: precision.precision of the preset, fp32 unless it says otherwise). "
        "int8: for CPUs; fp16, fp8: for GPUs. All below fp32 are compared with FP32 on validation requests "
        "of RUN/data, and published only if they pass the thresholds of the preset's section `precision` "
        "(seeded weights: compared only)",
    )
    parser.add_argument(
        "--fine-tuned",
        action="store_true",
        help="fp8: quantize the model that `make fine-tune-fp8` left; still compared with the original in "
        "FP32",
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="folder with checkpoints/ and their evaluation.json: of a post-trained model, "
        "RUN/model/post_trained/OBJECTIVE (default: RUN/model)",
    )
    parser.add_argument(
        "--checkpoint", default="latest", help="latest, best (by validation) or a name: step-000400 [latest]"
    )
    parser.add_argument(
        "--ranker",
        nargs="?",
        const="reward",
        choices=get_args(RankerKind),
        help="give the bundle a ranking stage, also where serving.rerank is off: requests may ask for it. "
        "reward [alone]: RUN/reward; item: the item level of the model [serving.rerank]",
    )
    parser.add_argument("--fresh", action="store_true", help="make a bundle, also where the newest will do")
    parser.add_argument("--render-only", action="store_true", help="render for the bundles that are there")
    parser.add_argument(
        "--seeded-weights",
        action="store_true",
        help="random weights in the preset's shape instead of a trained model: benchmarks, compile checks",
    )
    return parser
