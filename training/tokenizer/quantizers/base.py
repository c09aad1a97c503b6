"""What the tokenizer asks of a quantizer."""

from typing import Protocol, Self

import numpy as np

from training.preset.tokenizer import TokenizerConfig

Arrays = dict[str, np.ndarray]


class Quantizer(Protocol):
    """Vector -> codes, coarse to fine. N points, D dimensions, L levels.

    An encoder's graph follows each of them, see `export/quantizer_graph.py`.
    """

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        config: TokenizerConfig,
        *,
        weights: np.ndarray | None = None,
        start: np.ndarray | None = None,
    ) -> Self:
        """Learn from x, float32 [N, D]; the order of the points does not matter.

        Args:
            x: finite, |x| <= 2.
            config: sizes of the levels, seed, iterations.
            weights: [N], > 0; 1 each where left out. A weight counts as copies of its point.
            start: int [N, levels], codes that the points have by an older quantizer, to begin with; it may
                be ignored.

        Raises:
            ValueError: x cannot be quantised with these settings; says which level and why.
        """
        ...

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level, length L."""
        ...

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Return codes int32 [N, L] of x, float32 [N, D]; a row depends on that row alone, to the last bit.

        Raises:
            ValueError: x is not finite [N, D] within |x| <= 2.
        """
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the reconstruction float32 [N, D] of codes int [N, l], the first l <= L levels.

        Raises:
            ValueError: wrong number of levels, or a code outside its level.
        """
        ...

    def state(self) -> Arrays:
        """Return the learnt arrays, enough for `from_state`."""
        ...

    @classmethod
    def from_state(cls, arrays: Arrays) -> Self:
        """Rebuild a quantizer that encodes bit for bit as the one that gave the state.

        Raises:
            KeyError: an array is missing.
            ValueError: the arrays do not fit together.
        """
        ...


def check_codes(codes: np.ndarray, level_sizes: tuple[int, ...]) -> np.ndarray:
    """Codes to decode, int [N, l] of the first l levels.

    Raises:
        ValueError: wrong number of levels, or a code outside its level.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not 1 <= codes.shape[1] <= len(level_sizes):
        raise ValueError(f"expected codes [N, 1..{len(level_sizes)}], got {list(codes.shape)}")
    for level, (column, size) in enumerate(zip(codes.T, level_sizes, strict=False), start=1):
        # NumPy would read a negative code from the end of the codebook.
        if column.size and not 0 <= column.min() <= column.max() < size:
            span = f"{column.min()}..{column.max()}"
            raise ValueError(f"level {level}: expected codes 0..{size - 1}, got {span}")
    return codes
