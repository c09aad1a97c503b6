"""Graphs of a precision below FP32, made from the FP32 graphs of a model."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.calibrate import calibrate
from export.fp8 import quantize_fp8
from export.fp16 import convert_to_fp16
from export.gate import Gate
from export.gate_requests import GateRequests
from export.graphs import export_graphs
from export.int8 import quantize_int8
from export.parity import check_parity
from training.model.gr4ad import Generator
from training.preset.precision import Precision


@dataclass(frozen=True)
class Lowering:
    """How a bundle gets a precision below FP32.

    Attributes:
        precision: of its graphs.
        gate: what they must pass, against the FP32 graphs of the model that was trained.
        calibration: training requests that FP8 ranges are measured on; None for other precisions.
        fine_tuned: model whose graphs are quantized instead, see `training.recipes.fine_tune_fp8`.
    """

    precision: Precision
    gate: Gate
    calibration: GateRequests | None = None
    fine_tuned: Generator | None = None

    def __post_init__(self) -> None:
        """Check that the parts go together."""
        if self.precision == "fp32":
            raise ValueError("precision fp32: expected no lowering")
        if (self.precision == "fp8") != (self.calibration is not None):
            raise ValueError(
                f"precision {self.precision}: expected calibration requests for fp8 and for fp8 only"
            )


def lower(
    source: Path, target: Path, lowering: Lowering, *, model: Generator, value_table: np.ndarray
) -> None:
    """Fill `target` with graphs of the lower precision.

    Args:
        source: folder with the FP32 graphs of `model`; not changed.
        target: folder for graphs of the same names.
        lowering: what to make.
        model: the model.
        value_table: float32 [V_value].

    Raises:
        ParityError: the graphs of the fine-tuned model do not compute what it computes.
        CalibrationError, QuantizeError: see there.
    """
    with tempfile.TemporaryDirectory(dir=target) as own:
        if lowering.fine_tuned is not None:
            model, source = lowering.fine_tuned, Path(own)
            export_graphs(model, source)
            check_parity(model, source)
        if lowering.precision == "int8":
            quantize_int8(source, target)
        elif lowering.precision == "fp16":
            convert_to_fp16(source, target)
        else:
            _lower_fp8(source, target, lowering, model=model, value_table=value_table)


def _lower_fp8(
    source: Path, target: Path, lowering: Lowering, *, model: Generator, value_table: np.ndarray
) -> None:
    assert lowering.calibration is not None
    gate = lowering.gate
    ranges = calibrate(
        model,
        lowering.calibration,
        plan=gate.plan,
        value_table=value_table,
        batch_size=gate.config.gate_batch_size,
        normalise=gate.normalise,
    )
    quantize_fp8(source, target, ranges, keep=gate.config.fp8_keep)
    if gate.config.fp8_rest == "fp16":
        convert_to_fp16(target, target)
