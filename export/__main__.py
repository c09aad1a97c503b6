"""Checkpoint -> bundle -> model repository: `python -m export --config ... --run ...`.

Versions of a running server: `python -m export versions | publish | canary | rollback | pin`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from export.arguments import make_parser
from export.builder import Builder, BuildError
from export.bundle import write_bundle
from export.calibrate import CalibrationError
from export.commands import COMMANDS
from export.commands import main as run_command
from export.engines import EngineError, EngineFolder
from export.gate import Gate, GateError, summary
from export.gate_requests import GateRequests, held_out_requests, random_requests
from export.graph_config import GraphConfigError
from export.int8 import QuantizeError
from export.kept import check_precision, check_ranker, kept_bundles
from export.lower import Lowering
from export.made_from import EVALUATION, made_from, newest
from export.parity import ParityError
from export.pbtxt import RenderError
from export.ranker import load_ranker
from export.render import ENGINES, render
from export.rendered import write_attributes
from export.reward_ranker import REWARD
from export.seeded import seeded_checkpoint
from export.tensorrt import build_bundles
from serving.backend.settings import ServingConfig
from serving.index.layout import IndexStoreError
from serving.inputs import RECORD, is_up_to_date
from serving.model.bundle import MANIFEST, BundleError, read_manifest
from serving.model.current import point_current
from serving.model.manifest import RankerKind
from serving.search.normalise import parse_normalise
from serving.search.widths import WidthPlan
from training.loop.checkpoint import Checkpoint, CheckpointError, NonFiniteError, load_checkpoint
from training.loop.retention import find_checkpoint
from training.model.fp8 import MissingPackageError
from training.model.gr4ad import Generator
from training.preset.precision import Precision
from training.preset.preset import ConfigError, Preset
from training.recipes.fine_tune_fp8 import load_fine_tuned
from training.reward.reward_model import RewardModel, kinds_of


def main() -> None:
    """Command line."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        run_command(sys.argv[1:])
        return
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.render_only and arguments.precision:
        parser.error("--precision is of a new export, --render-only makes none")
    if arguments.ranker and arguments.seeded_weights:
        parser.error("--ranker: expected a trained model, got --seeded-weights")
    bundles = arguments.run / "bundles"
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
        # What can be missing is asked for before the work; what serves changes last.
        builder, version = None, None
        if not arguments.render_only:
            check_precision(arguments.precision or preset.precision.precision, arguments.target)
            builder = Builder("tensorrt") if arguments.target == "tensorrt" else None
            version = _bundle(arguments, preset)
        models = _render(arguments, preset.serving, version=version, builder=builder)
        write_attributes(bundles, preset.serving)
        if version is not None:
            point_current(bundles, version)
    except (
        BuildError,
        BundleError,
        CalibrationError,
        CheckpointError,
        ConfigError,
        EngineError,
        GateError,
        GraphConfigError,
        IndexStoreError,
        MissingPackageError,
        NonFiniteError,
        ParityError,
        QuantizeError,
        RenderError,
        ValueError,
        OSError,
    ) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{arguments.repository}: {', '.join(models)} (target {arguments.target})")


def _render(
    arguments: argparse.Namespace, config: ServingConfig, *, version: int | None, builder: Builder | None
) -> list[str]:
    """Fill the repository, and build engines that are not there; returns names of the models."""
    bundles = arguments.run / "bundles"
    index = arguments.index or arguments.run / "index"
    folder = EngineFolder(arguments.engines or arguments.run / ENGINES)

    def place() -> list[str]:
        return render(
            bundles,
            arguments.repository,
            index=index,
            config=config,
            target=arguments.target,
            engines=folder.folder,
            device=builder.device if builder else None,
            serving=version,
        )

    if arguments.target == "tensorrt":
        if builder is None:
            try:
                return place()
            except EngineError as error:
                _say(str(error))
                builder = Builder("tensorrt")
        _say("building TensorRT engines that are not there yet")
        chosen = kept_bundles(bundles, arguments.target, index=index, serving=version)
        build_bundles(builder, bundles, chosen, config=config, folder=folder)
    return place()


def _bundle(arguments: argparse.Namespace, preset: Preset) -> int:
    """Version of the bundle of these inputs; the newest one where it was made from them, or a new one."""
    if arguments.seeded_weights:
        return _export(arguments, preset)
    bundles = arguments.run / "bundles"
    record, version = bundles / RECORD, newest(bundles)
    inputs = made_from(
        arguments.run,
        find_checkpoint(_model(arguments), arguments.checkpoint),
        preset=preset,
        precision=arguments.precision or preset.precision.precision,
        fine_tuned=arguments.fine_tuned,
        ranker=_ranker_kind(arguments, preset),
        version=version,
    )
    outputs = [bundles / str(version) / MANIFEST]
    if not is_up_to_date(record, inputs, outputs=outputs, fresh=arguments.fresh):
        record.unlink(missing_ok=True)
        version = _export(arguments, preset)
        replace(inputs, values=inputs.values | {"bundle": version}).save(record)
    return version


def _export(arguments: argparse.Namespace, preset: Preset) -> int:
    """Write the next bundle; returns its version, which does not serve yet."""
    precision: Precision = arguments.precision or preset.precision.precision
    if arguments.fine_tuned and precision != "fp8":
        raise ValueError(f"--fine-tuned: expected precision fp8, got {precision}")
    if arguments.fine_tuned and arguments.seeded_weights:
        raise ValueError("--fine-tuned: expected a trained model, got --seeded-weights")
    if arguments.seeded_weights:
        checkpoint, fine_tuned = seeded_checkpoint(preset), None
    else:
        trained = find_checkpoint(_model(arguments), arguments.checkpoint)
        checkpoint = load_checkpoint(trained)
        fine_tuned = load_fine_tuned(arguments.run, trained) if arguments.fine_tuned else None
    ranker, kind = None, _ranker_kind(arguments, preset)
    if kind is not None:
        ranker = load_ranker(kind, arguments.run, checkpoint)
        trees = isinstance(ranker, RewardModel) and "trees" in kinds_of(ranker.about.serves)
        check_ranker(trees, arguments.target, where=f"{arguments.run / REWARD}: ")
    torch.set_num_threads(int(checkpoint.settings["threads"]))
    evaluation = _model(arguments) / EVALUATION
    quality = json.loads(evaluation.read_text()) if evaluation.is_file() else {}
    if quality and quality.get("step") != checkpoint.step:
        _say(f"{evaluation}: of step {quality.get('step')}, left out of the bundle of step {checkpoint.step}")
        quality = {}
    lowering = None
    if precision != "fp32":
        lowering = _lowering(arguments, checkpoint, precision=precision, preset=preset, fine_tuned=fine_tuned)
    _say("exporting prefix and tails to ONNX")
    bundle = write_bundle(
        checkpoint,
        arguments.run / "bundles",
        quality=quality,
        tokenizer=None if arguments.seeded_weights else arguments.run / "tokenizer",
        lowering=lowering,
        ranker=ranker,
        activate=False,
    )
    manifest = read_manifest(bundle)
    print(
        f"bundle {bundle}: {len(manifest.graphs)} graphs, {precision}, parity of FP32 with PyTorch within "
        f"{manifest.parity_max_error:.1e}, {manifest.export_seconds} s"
    )
    if manifest.quality_precision:
        print(summary(manifest.quality_precision, precision=precision))
    return int(bundle.name)


def _lowering(
    arguments: argparse.Namespace,
    checkpoint: Checkpoint,
    *,
    precision: Precision,
    preset: Preset,
    fine_tuned: Generator | None,
) -> Lowering:
    levels = len(checkpoint.spec.level_sizes)
    config, serving = preset.precision, preset.serving

    def draw(part: Literal["train", "validation"], count: int) -> GateRequests:
        if arguments.seeded_weights:
            return random_requests(checkpoint, count=count, seed=config.seed + (part == "train"))
        return held_out_requests(
            arguments.run, checkpoint.spec, preset=preset, count=count, seed=config.seed, part=part
        )

    _say("random requests" if arguments.seeded_weights else "reading validation requests")
    gate = Gate(
        requests=draw("validation", config.gate_requests),
        config=config,
        plan=WidthPlan.parse(serving.widths, levels=levels),
        normalise=parse_normalise(serving.normalise, levels=levels) if serving.normalise else None,
        threads=serving.threads,
    )
    calibration = draw("train", config.calibration_requests) if precision == "fp8" else None
    return Lowering(precision, gate, calibration, fine_tuned)


def _ranker_kind(arguments: argparse.Namespace, preset: Preset) -> RankerKind | None:
    """What becomes the ranking stage of a new bundle."""
    wanted = preset.serving.rerank
    if arguments.seeded_weights:
        return None
    return arguments.ranker or (None if wanted == "off" else wanted)


def _model(arguments: argparse.Namespace) -> Path:
    """Folder with the checkpoints, and beside them how good they are."""
    return Path(arguments.model or arguments.run / "model")


def _say(text: str) -> None:
    print(f"{text} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
