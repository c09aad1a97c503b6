"""Sentence vectors of the texts that were met last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from threading import Lock

import numpy as np


class Remembered:
    """A function of texts that knows the last vectors it made, by the digest of the text.

    Many ads share a text. The texts themselves are not kept: one may be long, and a vector never is.
    """

    def __init__(self, make: Callable[[str], np.ndarray], *, most: int) -> None:
        """Of `make`, and how many vectors are kept."""
        self._make, self._most = make, most
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def __call__(self, text: str) -> np.ndarray:
        """The vector of a text. Many threads may call at once."""
        key = blake2b(text.encode(), digest_size=32).digest()
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        vector = self._make(text)
        with self._lock:
            self._known[key] = vector
            if len(self._known) > self._most:
                self._known.popitem(last=False)
        return vector
