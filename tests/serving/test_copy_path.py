"""A version with a copy path on a real server: requests as any other, answers of the same functions."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from examples.client import send
from export.bundle import write_bundle
from export.render import render
from launcher.triton_server import TritonServer
from serving.model.bundle import read_manifest
from serving.model.current import point_current
from tests.pipeline import checkpoint, copy_of, exported, serving_config
from tests.serving.ask import Reference, assert_same, request
from tests.tiny import COPYING_SPEC, copying_model


@pytest.mark.parametrize("graph_calls", ["bls", "in_process"])
def test_habits_speak_on_a_server(pipeline, copying_graphs, tmp_path, graph_calls):
    deployed = copy_of(pipeline, tmp_path)
    found, model = checkpoint(tokenizer_id=deployed.tokenizer_id), copying_model()
    found = replace(found, model=model, spec=replace(found.spec, model=model.config, features=model.spec))
    with exported(copying_graphs):
        bundle = write_bundle(found, deployed.bundles, tokenizer=deployed.tokenizer)
    manifest = read_manifest(bundle)
    assert manifest.features == COPYING_SPEC
    point_current(deployed.bundles, manifest.version)
    shutil.rmtree(deployed.repository)
    config = serving_config().model_copy(update={"graph_calls": graph_calls})
    render(deployed.bundles, deployed.repository, index=deployed.index, config=config)
    reference, plain = Reference.of(deployed), Reference.of(pipeline)
    with TritonServer(deployed.repository) as server:
        for seed, history in enumerate((0, 1, 6, 16, 60)):
            tensors = request(history=history, rows=2, num_ads=9, seed=seed)
            answer = send(server.grpc_url, tensors)
            for row in range(2):
                assert_same(answer, reference.answer(tensors, row), row=row)
        # Habits lift what the user had.
        tensors = request(history=3, num_ads=40)
        places = [
            np.isin(ads, tensors["history_ad_ids"][0]).nonzero()[0].mean()
            for ads in (send(server.grpc_url, tensors)["ad_ids"][0], plain.answer(tensors)["ad_ids"])
        ]
        assert places[0] < places[1]
