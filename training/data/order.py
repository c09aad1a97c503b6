"""The order of training requests: global batches as a pure function of the step.

Letters: N requests.
"""

from __future__ import annotations

import numpy as np

WINDOW = 16  # batches whose requests are sorted by size together


class BatchOrder:
    """Which requests make up the global batch of a step; every process of a run computes the same.

    A batch pads to its largest number of targets, so requests of similar size go together: of a window of
    shuffled requests, sorted by size, each batch takes a run, and the batches come in random order.
    """

    def __init__(self, sizes: np.ndarray, *, batch_size: int, seed: int) -> None:
        """Remember the sizes.

        Args:
            sizes: int [N], padded length that each request asks for.
            batch_size: requests a batch; all of them when there are fewer.
            seed: of the run.
        """
        self.sizes, self.seed = sizes, seed
        self.batch_size = min(batch_size, len(sizes))
        self.batches = len(sizes) // self.batch_size
        self._epoch, self._order = -1, np.zeros((0, 0), np.int64)

    def __call__(self, step: int) -> tuple[int, np.ndarray]:
        """Epoch and requests of a step; within an epoch no request comes twice."""
        epoch, at = divmod(step, self.batches)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._of_epoch(epoch)
        return epoch, self._order[at]

    def _of_epoch(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.sizes))[: self.batches * self.batch_size]
        windows = np.array_split(order, range(WINDOW * self.batch_size, len(order), WINDOW * self.batch_size))
        runs = [
            random.permutation(w[np.argsort(self.sizes[w], kind="stable")].reshape(-1, self.batch_size))
            for w in windows
        ]
        return np.concatenate(runs)
