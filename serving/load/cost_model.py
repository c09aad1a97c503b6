"""What a batch costs on this machine now, learnt from the batches that it ran.

seconds(k requests, r rows each) = batch + k * request + k * r * row

batch: paid once a search (calls, host); request: paid once a request (prefix); row: paid for every beam that
a tail sees. All three are >= 0.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple


class BatchCost(NamedTuple):
    """One finished search.

    Attributes:
        requests: rows of the batch (users).
        rows: beams that the tails saw for each of them, see `serving.load.ladder.searched_rows`.
        seconds: wall time of the search.
    """

    requests: int
    rows: float
    seconds: float


@dataclass(frozen=True)
class CostSettings:
    """How the estimate starts and how fast it moves.

    Attributes:
        batch_share: part of a lone base request's time that is paid once a search, before anything is known.
        request_share: part that is paid once a request; the rest is paid by the row.
        base_request_s: seconds of a lone base request, where the configuration knows them; None: the first
            measurements tell.
        forget: weight of the past after one more batch; 0.995 remembers about 200 batches.
        ridge: how strongly the shares stick to the ones above while no data contradicts them.
        longest_s: longer measurements are thrown away.
    """

    batch_share: float = 0.4
    request_share: float = 0.1
    base_request_s: float | None = None
    forget: float = 0.995
    ridge: float = 0.005
    longest_s: float = 60.0

    def __post_init__(self) -> None:
        """Reject settings that cannot be learnt from."""
        shares = (self.batch_share, self.request_share, 1 - self.batch_share - self.request_share)
        if not all(s > 0 for s in shares):
            raise ValueError(f"cost: expected shares > 0 with a sum < 1, got {shares[:2]}")
        if not (0.5 <= self.forget < 1 and self.ridge > 0 and self.longest_s > 0):
            raise ValueError(f"cost: expected forget in [0.5, 1), ridge and longest_s > 0, got {self}")
        if self.base_request_s is not None and not 0 < self.base_request_s <= self.longest_s:
            raise ValueError(
                f"cost: expected base_request_s in (0, {self.longest_s}], got {self.base_request_s}"
            )


class CostModel:
    """Weighted least squares with forgetting, in relative errors.

    A measurement is divided by what the starting shares say of it, so errors are relative ones, and the three
    unknowns are factors on those shares, all near one number. The ridge pulls them towards their common
    level: directions that the data does not show (a steady load has one batch size and one rung) keep the
    shape they had instead of running off. Outliers are clipped at 3 deviations; when most of the last batches
    are off to the same side, the machine has changed and the estimate jumps.
    """

    WINDOW = 9  # last batches that are asked whether the machine has changed
    SWEEPS = 4

    def __init__(self, *, base_rows: float, settings: CostSettings | None = None) -> None:
        """Start with nothing but the shares.

        Args:
            base_rows: rows of the configured plan.
            settings: see `CostSettings`.
        """
        if not base_rows > 0:
            raise ValueError(f"cost: expected base_rows > 0, got {base_rows}")
        self._settings = settings or CostSettings()
        s = self._settings
        self._shares = (s.batch_share, s.request_share, (1 - s.batch_share - s.request_share) / base_rows)
        self._factors = [s.base_request_s or 0.0] * 3
        self._gram = [0.0] * 6  # of the shares: 00 01 02 11 12 22
        self._moment = [0.0] * 3
        self._weight, self._level = 0.0, 0.0
        self._deviation = 0.3  # relative, of a measurement from its prediction
        self._recent: deque[float] = deque(maxlen=self.WINDOW)
        self.observed, self.discarded = 0, 0
        if s.base_request_s is not None:  # worth five batches
            self._weight, self._level = 5.0, 5.0 * s.base_request_s

    @property
    def known(self) -> bool:
        """Whether there is anything to predict from."""
        return self._weight > 0

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """Seconds a batch, a request, a row."""
        f, s = self._factors, self._shares
        return f[0] * s[0], f[1] * s[1], f[2] * s[2]

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
        if not (1e-9 < seconds <= self._settings.longest_s and 0 < requests <= 1e6 and 0 < rows <= 1e9):
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
        reach = 3.0 * self._deviation
        error = min(max(ratio - 1.0, -reach), reach)
        # 1.25: mean absolute to standard deviation of a normal error
        self._deviation += 0.02 * (1.25 * min(abs(ratio - 1.0), 1.0) - self._deviation)
        self._deviation = min(max(self._deviation, 0.05), 0.5)
        # Large searches must not outweigh small ones: errors are relative to the prediction.
        level = self._level / self._weight if self.known else seconds / whole
        scale = min(max(predicted / level, whole / 5), whole * 5)
        self._learn(*(p / scale for p in parts), level=predicted * (1.0 + error) / scale)
        return True

    def _learn(self, x: float, y: float, z: float, *, level: float) -> None:
        keep, g, m = self._settings.forget, self._gram, self._moment
        g[0], g[1], g[2] = keep * g[0] + x * x, keep * g[1] + x * y, keep * g[2] + x * z
        g[3], g[4], g[5] = keep * g[3] + y * y, keep * g[4] + y * z, keep * g[5] + z * z
        m[0], m[1], m[2] = keep * m[0] + x * level, keep * m[1] + y * level, keep * m[2] + z * level
        self._weight, self._level = keep * self._weight + 1.0, keep * self._level + level
        ridge = self._settings.ridge
        pull = ridge * self._level / self._weight
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
        self._weight, self._level = keep * self._weight, keep * ratio * self._level
