"""Precisions a bundle can have, and what a precision below FP32 must keep of the quality."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["fp32", "fp16", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class PrecisionConfig(BaseModel):
    """Precision of the graphs, and the gate that one below FP32 must pass.

    Attributes:
        precision: used unless the command line names another.
        min_overlap50: of the 50 best SIDs with FP32 graphs, the share that must be among the 50 best of the
            lower precision; mean over requests.
        max_recall50_loss: most of recall@50 that may be lost, relative to FP32.
        max_value_error: largest mean absolute error of expected values, relative to their mean.
        gate_requests: validation requests drawn (seeded); all of them when there are fewer.
        gate_batch_size: requests a search; activations of a batch share their INT8 scale.
        calibration_requests: training requests that FP8 ranges are measured on (seeded); all of them when
            there are fewer.
        fp8_rest: what FP8 graphs are besides their FP8 products.
        fp8_keep: patterns of weights ("*head*.weight", "layers.0.ffn.?.weight") whose products stay out of
            FP8.
        seed: of the draws of requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision = "fp32"
    min_overlap50: float = Field(0.9, ge=0, le=1)
    max_recall50_loss: float = Field(0.02, ge=0)
    max_value_error: float = Field(0.05, ge=0)
    gate_requests: int = Field(400, ge=1)
    gate_batch_size: int = Field(16, ge=1)
    calibration_requests: int = Field(256, ge=1)
    fp8_rest: Literal["fp16", "fp32"] = "fp16"
    fp8_keep: tuple[str, ...] = ()
    seed: int = 0
