"""Every subset of the outputs that a client may ask for."""

from __future__ import annotations

import itertools

import numpy as np
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from examples.client import AD_KEYS, OUTPUTS, infer_inputs, send
from tests.serving.ask import request

PLAN = (4, 8, 16, 6)


def test_every_subset_of_the_outputs_is_what_the_whole_answer_says(server):
    tensors = request()
    every = (*OUTPUTS, AD_KEYS)
    whole = send(server.grpc_url, tensors, outputs=every)
    assert set(whole[AD_KEYS].ravel()) == {b""}  # the ads of this deployment are numbers
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    failed = {}
    for size in range(1, len(every) + 1):
        for names in itertools.combinations(every, size):
            wanted = [tritonclient.grpc.InferRequestedOutput(name) for name in names]
            try:
                answer = client.infer("gr4ad", infer_inputs(tensors), outputs=wanted, client_timeout=20)
            except InferenceServerException as error:
                failed[names] = str(error)
                continue
            assert {o.name for o in answer.get_response().outputs} == set(names)
            for name in names:
                if name == "beam_widths":  # the plan's of a pruned search, else what there is
                    assert answer.as_numpy(name).shape == whole[name].shape
                    assert (answer.as_numpy(name) <= PLAN).all()
                    continue
                exact = name == AD_KEYS or whole[name].dtype != np.float32
                same = np.testing.assert_array_equal if exact else _close
                same(answer.as_numpy(name), whole[name], err_msg=name)
    client.close()
    assert not failed


def _close(actual, expected, err_msg):
    np.testing.assert_allclose(actual, expected, atol=1e-5, err_msg=err_msg)
