"""A real server with settings other than the default ones."""

import shutil

import numpy as np
import pytest

from examples.client import send
from export.render import render
from launcher.triton_server import TritonServer
from serving.backend.settings import ServingConfig
from tests.pipeline import WIDTHS
from tests.serving.ask import Reference, assert_same, request

LIVE = ("codebook", "live", "live")


@pytest.fixture(scope="module", params=["bls", "in_process"])
def other(request, pipeline, tmp_path_factory):
    """Graphs as models or inside the scheduler; live levels, room for wider plans, an odd name in a path."""
    config = ServingConfig(
        widths=WIDTHS,
        max_widths="6-20-40:20",
        normalise="-".join(LIVE),
        graph_calls=request.param,
        load_control="fixed",
        cache="off",
    )
    folder = tmp_path_factory.mktemp("settings")
    repository, bundles = folder / request.param, folder / "of \"others\" \\n '$x' {}"
    shutil.copytree(pipeline.bundles, bundles)
    render(bundles, repository, index=pipeline.index, config=config)
    with TritonServer(repository) as running:
        yield running
        assert running.poll() is None, f"the server died: {running.log_tail(30)}"


@pytest.mark.parametrize("widths", [None, "2-3-5:2", "6-20-40:20", "900-900-900:900"])
def test_answers_equal_the_search_in_this_process(other, pipeline, widths):
    reference = Reference.of(pipeline)
    used = {None: WIDTHS, "900-900-900:900": "6-20-40:20"}.get(widths, widths)
    for seed in range(3):
        tensors = request(seed=seed)
        answer = send(other.grpc_url, tensors, parameters={"widths": widths} if widths else None)
        expected = reference.answer(tensors, widths=used, normalise=LIVE)
        assert_same(answer, expected)
        np.testing.assert_array_equal(answer["beam_widths"][0], expected["beam_widths"])
        assert bool(answer["degraded"].item()) == (widths == "2-3-5:2")


def test_graphs_inside_the_scheduler_are_no_models(other):
    names = {v.model for v in other.admin.versions()}
    inside = "in_process" in other.options.repository.name
    assert any(n.startswith("lazyar_") for n in names) != inside
