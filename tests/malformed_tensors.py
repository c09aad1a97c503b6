"""Requests whose tensors, parameters or names are wrong: a case, and faults `(random, case) -> case`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

_SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
    "BYTES": 4,
}
_ODD = (0, -1, -2, 1, 3, 4, 200, 2**15, -(2**31), 2**31 - 1, 2**40, 2**40 + 1, -(2**63), 2**63 - 1)


@dataclass(frozen=True)
class Tensor:
    """An input as it goes over the wire; nothing makes dtype, shape and data agree."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, name: str, values: np.ndarray) -> Tensor:
        """Honest tensor."""
        return cls(
            name, {"int32": "INT32", "int64": "INT64"}[values.dtype.name], values.shape, values.tobytes()
        )


@dataclass(frozen=True)
class Case:
    """One malformed request.

    Attributes:
        fault: what was done to it.
        protocol: grpc, http (a tensor request as HTTP) or raw (bytes as they are).
        tensors: inputs, for grpc and http.
        parameters: request parameters.
        model: model asked for.
        version: model version asked for; "" is any.
        outputs: outputs asked for; empty is all.
        raw: bytes on the socket, for raw.
        complete: False when the HTTP message never ends as announced, so the server owes no answer.
    """

    fault: str
    protocol: str
    tensors: tuple[Tensor, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    model: str = "gr4ad"
    version: str = ""
    outputs: tuple[str, ...] = ()
    raw: bytes = b""
    complete: bool = True


def overflows(tensor: Tensor) -> bool:
    """Whether the shape fits the data in 64-bit arithmetic only, so that Triton's check lets it through.

    Triton counts a batch of 0 as one of 1.
    """
    sizes = {_SIZES.get(tensor.dtype, 1) * math.prod(shape) for shape in (tensor.shape, tensor.shape[1:])}
    return any(size >= 2**64 and size % 2**64 == len(tensor.data) for size in sizes)


def _pick(random: np.random.Generator, case: Case) -> tuple[int, Tensor]:
    i = int(random.integers(max(len(case.tensors), 1)))
    return (i, case.tensors[i]) if case.tensors else (0, Tensor("profile", "INT32", (1, 2), bytes(8)))


def _put(case: Case, i: int, **changes: Any) -> Case:
    tensors = list(case.tensors or (Tensor("profile", "INT32", (1, 2), bytes(8)),))
    tensors[i] = replace(tensors[i], **changes)
    return replace(case, tensors=tuple(tensors))


def _fitting(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> bytes:
    size = _SIZES[dtype] * math.prod(max(s, 0) for s in shape)
    return random.bytes(min(size, 1_000_000))  # another fault may have made the shape a lie already


def _wrong_dtype(random: np.random.Generator, case: Case) -> Case:
    i, tensor = _pick(random, case)
    dtype = random.choice([d for d in _SIZES if d != tensor.dtype])
    data = _fitting(random, dtype, tensor.shape) if random.random() < 0.7 else tensor.data
    return _put(case, i, dtype=str(dtype), data=data)


def _unknown_dtype(random: np.random.Generator, case: Case) -> Case:
    i, _ = _pick(random, case)
    return _put(case, i, dtype=str(random.choice(["", "int64", "INT128", "FP", "\u00e9", "BYTES " * 50])))


def _wrong_rank(random: np.random.Generator, case: Case) -> Case:
    i, tensor = _pick(random, case)
    shapes = [(), tensor.shape[1:], (1, *tensor.shape), (*tensor.shape, 1), (1,) * 40 + tensor.shape]
    return _put(case, i, shape=shapes[random.integers(len(shapes))])


def _lying_shape(random: np.random.Generator, case: Case) -> Case:
    i, tensor = _pick(random, case)
    odd = [
        (1, -1),
        (-1, 1),
        (1, 2**62),
        (2**32, 2**32),
        (1, 2**31),
        (0, 1),
        (1, 0),
        (1, 7),
        (2**63 - 1, 1),
        (-1, -1),
    ]
    return _put(case, i, shape=odd[random.integers(len(odd))])


def _large_shape(random: np.random.Generator, case: Case) -> Case:
    """A shape that asks for gigabytes, whatever data came."""
    i, _ = _pick(random, case)
    shapes = [(1, 10**10), (10**10, 1), (1, 2**31), (1, 2**40), (2**20, 2**20), (0, 2**62), (2**62, 0)]
    return _put(case, i, shape=shapes[random.integers(len(shapes))])


def _lying_data(random: np.random.Generator, case: Case) -> Case:
    i, tensor = _pick(random, case)
    cut = int(random.integers(len(tensor.data) + 1))
    return _put(
        case, i, data=tensor.data[:cut] if random.random() < 0.5 else tensor.data + random.bytes(1 + cut)
    )


def _random_bits(random: np.random.Generator, case: Case) -> Case:
    i, tensor = _pick(random, case)
    nan = np.tile(np.frombuffer(np.float64("nan").tobytes(), np.uint8), len(tensor.data) // 8 + 1).tobytes()
    return _put(
        case, i, data=random.bytes(len(tensor.data)) if random.random() < 0.6 else nan[: len(tensor.data)]
    )


def _odd_value(random: np.random.Generator, case: Case) -> Case:
    i, tensor = _pick(random, case)
    if tensor.dtype not in ("INT32", "INT64") or len(tensor.data) < 8 or len(tensor.data) % 8:
        return _random_bits(random, case)
    values = np.frombuffer(tensor.data, "<i4" if tensor.dtype == "INT32" else "<i8").copy()
    odd = np.array(_ODD[random.integers(len(_ODD))], np.int64)
    values[random.integers(len(values))] = odd.astype(values.dtype)
    return _put(case, i, data=values.tobytes())


def _odd_num_ads(random: np.random.Generator, case: Case) -> Case:
    odd = np.array([[_ODD[random.integers(len(_ODD))]]], np.int64).astype(np.int32)
    return replace(
        case, tensors=tuple(Tensor.of("num_ads", odd) if t.name == "num_ads" else t for t in case.tensors)
    )


def _missing_inputs(random: np.random.Generator, case: Case) -> Case:
    kept = random.random(len(case.tensors)) < random.random()
    return replace(case, tensors=tuple(t for t, k in zip(case.tensors, kept, strict=True) if k))


def _extra_input(random: np.random.Generator, case: Case) -> Case:
    names = ["", "slots", "history_ad_id", "x" * 10_000, "profile\0", "../../etc/passwd"]
    return replace(
        case, tensors=(*case.tensors, Tensor(names[random.integers(len(names))], "INT32", (1, 1), bytes(4)))
    )


def _twice(random: np.random.Generator, case: Case) -> Case:
    _, tensor = _pick(random, case)
    return replace(case, tensors=(*case.tensors, tensor))


def _other_lengths(random: np.random.Generator, case: Case) -> Case:
    i, tensor = _pick(random, case)
    shape = (1, int(random.integers(0, 2_000)))
    return _put(case, i, shape=shape, data=bytes(_SIZES.get(tensor.dtype, 4) * shape[1]))


def _many_rows(random: np.random.Generator, case: Case) -> Case:
    rows = int(random.choice([0, 2, 8, 9, 100, 1000]))
    alike = random.random() < 0.5
    tensors = [replace(t, shape=(rows, *t.shape[1:]), data=t.data * rows) for t in case.tensors]
    return replace(
        case,
        tensors=tuple(
            t if alike or random.random() < 0.5 else case.tensors[i] for i, t in enumerate(tensors)
        ),
    )


def _huge(random: np.random.Generator, case: Case) -> Case:
    """One tensor of about 1 MB, or a whole history of as much; random, constant or padding."""
    length = int(random.integers(20_000, 50_000))
    fill = random.integers(3)

    def values(dtype: str) -> bytes:
        kind = np.dtype("<i4" if dtype == "INT32" else "<i8")
        if fill == 0:
            return random.bytes(length * kind.itemsize)
        return np.full(length, 1 if fill == 1 else -1, kind).tobytes()

    names = [
        ["history_ad_ids", "history_behaviors", "history_timestamps"],
        ["exclude_ad_ids"],
        ["profile"],
        ["history_ad_ids"],
    ][random.integers(4)]
    kept = [t for t in case.tensors if t.name not in names]
    dtypes = [("INT32" if n in ("history_behaviors", "profile") else "INT64") for n in names]
    return replace(
        case,
        tensors=(*kept, *(Tensor(n, d, (1, length), values(d)) for n, d in zip(names, dtypes, strict=True))),
    )


def _parameters(random: np.random.Generator, case: Case) -> Case:
    names = [
        "width_cap",
        "width_cap",
        "width_cap",
        "deadline_ms",
        "rank_by",
        "priority",
        "timeout",
        "sequence_id",
        "sequence_start",
        "binary_data_output",
        "triton_final_response",
        "",
        "x" * 5_000,
    ]
    values = [
        0,
        -1,
        1,
        2**31,
        2**62,
        True,
        False,
        "",
        "abc",
        "1e3",
        "\u0663",
        "9" * 5_000,
        "null",
        1.5,
        "0x10",
        " 5",
    ]
    count = int(random.integers(1, 4))
    return replace(
        case,
        parameters={
            names[random.integers(len(names))]: values[random.integers(len(values))] for _ in range(count)
        },
    )


def _model(random: np.random.Generator, case: Case) -> Case:
    inner = ["request_features", "beam_scheduler", "ad_resolver", "ad_keys", "lazyar_prefix"]
    names = [*inner, "lazyar_tail_2", "", "gr4ad ", "GR4AD", "../gr4ad", "gr4ad/versions/1", "x" * 5_000]
    return replace(case, model=names[random.integers(len(names))])


def _version(random: np.random.Generator, case: Case) -> Case:
    return replace(
        case, version=["0", "2", "-1", "99999999999999999999", "one", "1.0", " "][random.integers(7)]
    )


def _outputs(random: np.random.Generator, case: Case) -> Case:
    names = ["ad_ids", "ad_keys", "beam_sids", "", "x" * 5_000, "scores"]
    return replace(
        case, outputs=tuple(names[random.integers(len(names))] for _ in range(random.integers(1, 4)))
    )


TENSOR_FAULTS = {
    f.__name__: f
    for f in (
        _wrong_dtype,
        _unknown_dtype,
        _wrong_rank,
        _lying_shape,
        _large_shape,
        _lying_data,
        _random_bits,
        _odd_value,
        _odd_num_ads,
        _missing_inputs,
        _extra_input,
        _twice,
        _other_lengths,
        _many_rows,
        _huge,
        _parameters,
        _model,
        _version,
        _outputs,
    )
}
