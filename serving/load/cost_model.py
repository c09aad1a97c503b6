"""What a batch costs on this machine now, learnt from the batches that it ran.

seconds(k requests, r rows each) = batch + k * request + k * r * row

batch: paid once a search (calls, host); request: paid once a request (prefix); row: paid for every beam that
a tail sees. All three are >= 0.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import NormalDist, median
from typing import NamedTuple

_BATCH_SHARE = 0.4  # of a lone base request's time is paid once a search, before anything is known,
_REQUEST_SHARE = 0.1  # and that much once a request; the rest by the row
_FORGET = 0.995  # weight of the past after one more batch: about 200 batches are remembered
_RIDGE = 0.005  # how strongly the shares stick to the ones above while no data contradicts them
_MEASURED = 400  # searches whose times over their predictions are kept
_LONGEST_FACTOR = 8.0  # one pause of a second must not weigh on the next 400
_UNKNOWN = tuple(math.exp(0.3 * NormalDist().inv_cdf((i + 0.5) / 40) - 0.045) for i in range(40))
_LONGEST_S = 60.0  # longer measurements are thrown away


class BatchCost(NamedTuple):
    """One finished search.

    Attributes:
        requests: rows of the batch (users).
        rows: beams that the tails saw for each of them, as they ran.
        seconds: wall time of the search.
    """

    requests: int
    rows: float
    seconds: float


class CostModel:
    """Weighted least squares with forgetting, in relative errors.

    A measurement is divided by what the starting shares say of it, so errors are relative ones, and the three
    unknowns are factors on those shares, all near one number. The ridge pulls them towards their common
    mean: directions that the data does not show (a steady load has one batch size and one rung) keep the
    shape they had instead of running off. Outliers are clipped at 3 deviations; when most of the last batches
    are off to the same side, the machine has changed and the estimate jumps.
    """

    WINDOW = 9  # last batches that are asked whether the machine has changed
    SWEEPS = 4

    def __init__(self, *, base_rows: float) -> None:
        """Start with nothing but the shares; `base_rows` are those of the configured plan."""
        if not base_rows > 0:
            raise ValueError(f"cost: expected base_rows > 0, got {base_rows}")
        self._shares = (_BATCH_SHARE, _REQUEST_SHARE, (1 - _BATCH_SHARE - _REQUEST_SHARE) / base_rows)
        self._factors = [0.0] * 3
        self._gram = [0.0] * 6  # of the shares: 00 01 02 11 12 22
        self._moment = [0.0] * 3
        self._weight, self._targets = 0.0, 0.0  # of all batches, and the sum of what they were learnt as
        self._deviation = 0.3  # relative, of a measurement from its prediction
        self._recent: deque[float] = deque(maxlen=self.WINDOW)
        self.factors: deque[float] = deque(_UNKNOWN, maxlen=_MEASURED)
        """Times of the last searches over what was predicted for them."""
        self.observed, self.discarded = 0, 0

    @property
    def known(self) -> bool:
        """Whether there is anything to predict from."""
        return self._weight > 0

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """Seconds a batch, a request, a row."""
        f, s = self._factors, self._shares
        return f[0] * s[0], f[1] * s[1], f[2] * s[2]

    @property
    def spread(self) -> float:
        """Standard deviation of a search's time over its prediction."""
        return self._deviation

    def seconds(self, requests: float, rows: float) -> float:
        """Predicted time of a search; 0 before anything is known."""
        f, s = self._factors, self._shares
        return f[0] * s[0] + requests * (f[1] * s[1] + rows * f[2] * s[2])

    def longest(self, requests: float, rows: float) -> float:
        """Time that a search keeps within about 19 times of 20."""
        return self.seconds(requests, rows) * (1.0 + 1.65 * self._deviation)

    def observe(self, batch: BatchCost) -> bool:
        """Learn from a search; False where the measurement cannot be one and is thrown away."""
        requests, rows, seconds = batch
        # NaN compares false. A search takes more than a nanosecond, and no batch has a million requests.
        if not (1e-9 < seconds <= _LONGEST_S and 0 < requests <= 1e6 and 0 < rows <= 1e9):
            self.discarded += 1
            return False
        self.observed += 1
        s, f = self._shares, self._factors
        parts = (s[0], requests * s[1], requests * rows * s[2])
        whole = parts[0] + parts[1] + parts[2]
        if not self.known:
            f[:] = [seconds / whole] * 3
        predicted = max(f[0] * parts[0] + f[1] * parts[1] + f[2] * parts[2], 1e-12)
        ratio = seconds / predicted
        self._recent.append(ratio)
        jump = self._change()
        if jump is not None:
            self._jump(jump)
            predicted, ratio = predicted * jump, ratio / jump
            self._recent.clear()
        self.factors.append(min(ratio, _LONGEST_FACTOR))
        reach = 3.0 * self._deviation
        error = min(max(ratio - 1.0, -reach), reach)
        # 1.25: mean absolute to standard deviation of a normal error
        self._deviation += 0.02 * (1.25 * min(abs(ratio - 1.0), 1.0) - self._deviation)
        self._deviation = min(max(self._deviation, 0.05), 0.5)
        # Large searches must not outweigh small ones: errors are relative to the prediction.
        mean = self._targets / self._weight if self.known else seconds / whole
        scale = min(max(predicted / mean, whole / 5), whole * 5)
        self._learn(*(p / scale for p in parts), target=predicted * (1.0 + error) / scale)
        return True

    def _learn(self, x: float, y: float, z: float, *, target: float) -> None:
        keep, g, m = _FORGET, self._gram, self._moment
        g[0], g[1], g[2] = keep * g[0] + x * x, keep * g[1] + x * y, keep * g[2] + x * z
        g[3], g[4], g[5] = keep * g[3] + y * y, keep * g[4] + y * z, keep * g[5] + z * z
        m[0], m[1], m[2] = keep * m[0] + x * target, keep * m[1] + y * target, keep * m[2] + z * target
        self._weight, self._targets = keep * self._weight + 1.0, keep * self._targets + target
        ridge = _RIDGE
        pull = ridge * self._targets / self._weight
        m0, m1, m2 = m[0] + pull, m[1] + pull, m[2] + pull
        g00, g01, g02, g11, g12, g22 = g[0] + ridge, g[1], g[2], g[3] + ridge, g[4], g[5] + ridge
        a, b, c = self._factors
        # Coordinate descent from where the last batch left it; each step is exact and stops at 0.
        for _ in range(self.SWEEPS):
            c = (m2 - g02 * a - g12 * b) / g22
            c = c if c > 0.0 else 0.0
            a = (m0 - g01 * b - g02 * c) / g00
            a = a if a > 0.0 else 0.0
            b = (m1 - g01 * a - g12 * c) / g11
            b = b if b > 0.0 else 0.0
        self._factors[:] = a, b, c

    def _change(self) -> float | None:
        """By how much most of the last batches are off to one side; None where they are not."""
        if len(self._recent) < self.WINDOW:
            return None
        middle = sorted(self._recent)[self.WINDOW // 2]
        bound = 1.0 + max(0.4, 2.0 * self._deviation)  # a median of 9 scatters by 0.4 deviations
        if 1.0 / bound <= middle <= bound:
            return None
        # Those of before the change are still among them.
        return median(r for r in self._recent if (r > bound if middle > bound else r < 1.0 / bound))

    def _jump(self, ratio: float) -> None:
        """Everything got slower or faster by that ratio: keep the shape, at the weight of a few batches."""
        keep = min(self.WINDOW / self._weight, 0.2)
        self._factors[:] = [ratio * f for f in self._factors]
        self._gram[:] = [keep * v for v in self._gram]
        self._moment[:] = [keep * ratio * v for v in self._moment]
        self._weight, self._targets = keep * self._weight, keep * ratio * self._targets
