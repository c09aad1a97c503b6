"""The load generator of the benchmarks against the tiny deployment."""

import numpy as np

from benchmarks.burst import burst
from tests.serving import ask


def test_a_burst_counts_every_request_and_keeps_the_answers(server, pipeline):
    tensors = [ask.request(seed=seed) for seed in range(3)]
    seen = burst(server.grpc_url, tensors, concurrency=3, requests=9)
    assert seen.failures == []
    assert (seen.total, seen.completed, len(seen.latencies)) == (9, 9, 9)
    assert sorted(seen.answers) == [0, 1, 2]
    reference = ask.Reference.of(pipeline)
    for at, answer in seen.answers.items():
        expected = reference.answer(tensors[at])
        np.testing.assert_array_equal(answer["sids"][0], expected["sids"])
        np.testing.assert_allclose(answer["scores"][0], expected["scores"], atol=1e-5)


def test_a_burst_of_seconds_ends_and_failures_count(server):
    bad = ask.request() | {"num_ads": np.zeros((1, 1), np.int32)}
    seen = burst(server.grpc_url, [ask.request(), bad], concurrency=2, seconds=0.5)
    assert seen.total > 0
    assert len(seen.latencies) <= seen.completed <= seen.total
    assert seen.failures
    assert all("num_ads: expected 1..40" in text for text in seen.failures)
    assert list(seen.answers) == [0]
