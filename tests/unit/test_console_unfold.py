"""Log p by level against every prefix by plain loops, with and without a copy path."""

import itertools
import math

import numpy as np
import pytest
import torch

from console.unfold import level_scores
from tests import copying
from tests.tiny import copying_model, random_requests, tiny_catalogue, tiny_model
from training.rollout.executor import TorchExecutor


def test_levels_of_a_model_with_a_copy_path_are_those_of_the_mixture():
    slots, profile = copying.requests()
    sids = np.unique(tiny_catalogue()[1], axis=0)[::-1]  # their order does not matter
    for row in range(len(slots)):
        found = level_scores(TorchExecutor(copying_model()), slots[[row]], profile[[row]], sids)
        p = copying.mixture_by_loops(row)
        expected = [
            [math.log(p[tuple(sid[: t + 1])] / p[tuple(sid[:t])]) for t in range(3)] for sid in sids.tolist()
        ]
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_levels_of_a_plain_model_are_its_softmax():
    slots, profile = random_requests(1)
    sids = np.array([[0, 0, 0], [5, 4, 6], [0, 0, 0], [0, 4, 1]], np.int32)
    found = level_scores(TorchExecutor(tiny_model()), slots, profile, sids)
    with torch.no_grad():
        said = tiny_model()(torch.tensor(slots), torch.tensor(profile), torch.tensor(sids[None].tolist()))
    expected = [said.logits[t].double().log_softmax(-1)[0] for t in range(3)]
    for i, t in itertools.product(range(len(sids)), range(3)):
        assert found[i, t] == pytest.approx(float(expected[t][i, sids[i, t]]), abs=1e-4)
