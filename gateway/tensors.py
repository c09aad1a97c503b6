"""Tensors of KServe v2: their types, and their elements as bytes and as JSON.

Of the bytes of a tensor nothing is taken on trust: its shape must say exactly what came.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gateway.errors import invalid, shown

SIZES = {
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
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Bytes of an element, by datatype; BYTES has none: each of its elements begins with its length."""

_NUMPY = {
    "BOOL": np.dtype("?"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
} | {
    f"{kind}{8 * size}": np.dtype(f"<{kind[0].lower()}{size}")
    for kind in ("INT", "UINT")
    for size in (1, 2, 4, 8)
}
_LENGTH = struct.Struct("<I")


def check_datatype(name: str, datatype: Any) -> str:
    """The datatype of an input.

    Raises:
        HttpError: 400.
    """
    if not isinstance(datatype, str) or (datatype not in SIZES and datatype != "BYTES"):
        raise invalid(
            f"input {name!r}: expected one of {', '.join(SIZES)}, BYTES as datatype, got {shown(datatype)}"
        )
    return datatype


def check_shape(name: str, shape: Any, *, dims: int, most: int) -> int:
    """Number of elements of a shape.

    Args:
        name: of the input.
        shape: from JSON.
        dims: most dimensions.
        most: most elements, also if dimensions of 0 were left out.

    Raises:
        HttpError: 400.
    """
    if not isinstance(shape, list) or len(shape) > dims:
        raise invalid(f"input {name!r}: expected a shape of at most {dims} dimensions, got {shown(shape)}")
    if any(type(size) is not int or size < 0 for size in shape):
        raise invalid(f"input {name!r}: expected whole numbers >= 0 as shape, got {shown(shape)}")
    # Bounded without the zeros too: [10 ** 18, 0] holds nothing, and not everybody who multiplies it knows.
    if math.prod(size for size in shape if size) > most:
        raise invalid(f"input {name!r}: expected a shape of at most {most:,} elements, got {shown(shape)}")
    return math.prod(shape)


def check_bytes(name: str, data: bytes, *, datatype: str, count: int) -> None:
    """That data are the elements of a shape.

    Raises:
        HttpError: 400.
    """
    if datatype != "BYTES":
        size = count * SIZES[datatype]
        if len(data) != size:
            wanted = f"{size:,} bytes for {count:,} elements of {datatype}"
            raise invalid(f"input {name!r}: expected {wanted}, got {len(data):,}")
        return
    found = sum(1 for _ in _elements(data))
    if found != count:
        raise invalid(f"input {name!r}: expected {count:,} elements of BYTES, got {found:,} or a part of one")


def from_json(name: str, data: Any, *, datatype: str, count: int) -> bytes:
    """Bytes of a tensor whose elements came as JSON, flat or nested.

    Raises:
        HttpError: 400, another number of elements or elements that are not of the datatype.
    """
    if not isinstance(data, list):
        raise invalid(f"input {name!r}: expected a list as data, got {shown(data)}")
    if datatype == "BYTES":
        texts = list(_flat(data))
        if not all(isinstance(text, str) for text in texts):
            raise invalid(f"input {name!r}: expected texts as data of BYTES")
        made = b"".join(_LENGTH.pack(len(raw)) + raw for raw in map(str.encode, texts))
        found = len(texts)
    else:
        values = _numbers(name, data, datatype)
        made, found = values.tobytes(), values.size
    if found != count:
        raise invalid(
            f"input {name!r}: expected {count:,} elements in data, as its shape says, got {found:,}"
        )
    return made


def to_json(raw: bytes, *, datatype: str) -> list[Any]:
    """Elements of a tensor of an answer, flat.

    Raises:
        HttpError: 400, a datatype that JSON has no numbers for.
    """
    if datatype == "BYTES":
        return [element.decode(errors="replace") for element in _elements(raw)]
    if datatype == "BF16":
        raise invalid("expected binary_data for an output of BF16")
    return np.frombuffer(raw, _NUMPY[datatype]).tolist()


def _numbers(name: str, data: list[Any], datatype: str) -> np.ndarray:
    if datatype in ("FP16", "BF16"):
        raise invalid(f"input {name!r}: expected binary_data_size for {datatype}, got data")
    wanted = _NUMPY[datatype]
    if datatype == "UINT64":  # NumPy makes floats of numbers on both sides of 2 ** 63
        return _unsigned(name, data)
    try:
        values = np.array(data)
    except (ValueError, OverflowError):
        raise invalid(f"input {name!r}: expected numbers in lists of equal lengths as data") from None
    if values.size == 0 and values.dtype.kind == "f":  # NumPy's type for nothing
        return values.astype(wanted)
    # A float is no whole number, nor is true. What the type cannot hold comes out as another number.
    kinds = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[wanted.kind]
    if values.dtype.kind not in kinds:
        raise invalid(f"input {name!r}: expected {datatype} as data, got {shown(data)}")
    with np.errstate(over="ignore", invalid="ignore"):
        made = values.astype(wanted)
    if not (np.isfinite(made).all() if wanted.kind == "f" else (made == values).all()):
        raise invalid(f"input {name!r}: expected numbers that {datatype} can hold as data")
    return made


def _unsigned(name: str, data: list[Any]) -> np.ndarray:
    values = list(_flat(data))
    if not all(type(value) is int and 0 <= value < 1 << 64 for value in values):
        raise invalid(f"input {name!r}: expected UINT64 as data, got {shown(data)}")
    return np.array(values, _NUMPY["UINT64"])


def _flat(data: Sequence[Any]) -> Iterator[Any]:
    for item in data:
        if isinstance(item, list):
            yield from _flat(item)  # as deep as the parser let it be
        else:
            yield item


def _elements(data: bytes) -> Iterator[bytes]:
    """Elements of BYTES; what is cut off counts as one more."""
    at = 0
    while at < len(data):
        end = at + _LENGTH.size
        if end <= len(data):
            end += _LENGTH.unpack_from(data, at)[0]
        yield data[at + _LENGTH.size : end]
        if end > len(data):
            yield b""
            return
        at = end
