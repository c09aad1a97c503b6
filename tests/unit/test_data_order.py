"""The order of requests: every one once an epoch, a pure function of the step."""

import numpy as np

from training.data.order import BatchOrder


def test_every_request_once_an_epoch_and_similar_sizes_together():
    sizes = np.random.default_rng(0).integers(1, 9, 400)
    order = BatchOrder(sizes, batch_size=4, seed=0)
    first = [order(i) for i in range(100)]
    assert {e for e, _ in first} == {0}
    assert sorted(np.concatenate([r for _, r in first]).tolist()) == list(range(400))
    padding = sum(len(r) * sizes[r].max() - sizes[r].sum() for _, r in first)
    assert padding < 0.05 * sizes.sum()  # a random order pads by about a half
    again = BatchOrder(sizes, batch_size=4, seed=0)
    np.testing.assert_array_equal(again(57)[1], first[57][1])  # a pure function of the step
    assert (
        np.concatenate([order(100 + i)[1] for i in range(100)]) != np.concatenate([r for _, r in first])
    ).any()


def test_fewer_requests_than_a_batch():
    epoch, rows = BatchOrder(np.ones(3, int), batch_size=4, seed=0)(7)
    assert (epoch, sorted(rows.tolist())) == (7, [0, 1, 2])
