"""What is known of an ad besides its id and status, as the index keeps it and encoders read it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

Content = dict[str, Any]
"""account_id, conversion_type and text, and where the ad came with them: `embedding`, a text made by
`pack_vector`; `numbers`, by name of the column; `sid`, a code a level."""

GIVEN_FIELDS = ("embedding", "numbers", "sid")


def pack_vector(values: Sequence[float]) -> str:
    """Float32 in base64: a fifth of the same numbers as JSON, and exact."""
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


def unpack_vector(text: str) -> np.ndarray:
    """Inverse of `pack_vector`, float32 [D]."""
    return np.frombuffer(base64.b64decode(text), "<f4")
