"""What a request may measure before Triton sees anything of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of all at once.

    Attributes:
        body_bytes: of a body, as it comes and unpacked.
        json_bytes: of its JSON, which takes up to twenty times as much once it is parsed.
        pending_bytes: of all bodies that are being read or answered.
        inputs: tensors in.
        outputs: tensors asked for by name.
        dims: dimensions of a tensor.
        parameters: of a request or of a tensor.
        text: characters of a name, an id or a text parameter.
    """

    body_bytes: int = 16 << 20
    json_bytes: int = 2 << 20
    pending_bytes: int = 256 << 20
    inputs: int = 64
    outputs: int = 64
    dims: int = 16
    parameters: int = 32
    text: int = 1000
