"""w_user: how much the targets of a user weigh, by what the user was worth.

Letters: U users of the log.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.model.features import BEHAVIORS
from training.data.log import EventLog
from training.data.parts import TRAIN, Parts
from training.data.values import ValueBuckets

BUCKETS = 10
LARGEST = 4.0  # of a weight, the smallest is 1 / LARGEST: the best tenth is not to be all that is learnt from


def user_weights(log: EventLog, parts: Parts, *, target_behaviors: Sequence[str]) -> npt.NDArray[np.float32]:
    """Weights float32 [U] of mean 1 over the users with a training target.

    A user is worth the sum of the values of his targets in the training part. Of equal-frequency buckets of
    it, a weight is the bucket's mean, as a multiple of the mean of all, clipped. So one large order moves a
    user by a bucket and not by its sum. Who had no target there is in the lowest bucket.

    Args:
        log: events.
        parts: which of them are the training part's; no other is looked at.
        target_behaviors: names of `BEHAVIORS`.
    """
    codes = [BEHAVIORS[name] for name in target_behaviors]
    targets = log.outcomes((parts.event == TRAIN) & np.isin(log.behavior, codes))
    rows = log.exposures.user_row[log.exposures.request[targets]]
    users = len(log.user_ids)
    worth = np.bincount(rows, weights=np.maximum(log.value[targets], 0), minlength=users)
    known = np.bincount(rows, minlength=users) > 0
    if not worth.any():
        return np.ones(users, np.float32)
    worth = worth.astype(np.float32)
    buckets = ValueBuckets.fit(worth[known], buckets=BUCKETS)
    means = buckets.means[buckets.encode(worth)].astype(np.float64)
    clipped = np.clip(means / means[known].mean(), 1 / LARGEST, LARGEST)
    return (clipped / clipped[known].mean()).astype(np.float32)
