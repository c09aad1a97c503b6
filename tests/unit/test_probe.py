"""What graphs compute is held against the manifest, and what lies in a repository against both."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from serving.engines.ort import OrtExecutor, OrtGraphs, open_checked
from serving.files import sha256
from serving.model.bundle import BundleError, read_manifest
from serving.search.probe import probe
from tests.unit.test_bundle import edit

GRAPHS = ("prefix", "tail_2", "tail_3", "tail_4")


@pytest.fixture
def bundle(pipeline, tmp_path):
    return shutil.copytree(pipeline.bundles / "1", tmp_path / "bundles" / "1")


def tried(bundle, **changes):
    """Probe the graphs of a bundle whose manifest says something else."""
    manifest = read_manifest(bundle).model_copy(update=changes)
    probe(OrtExecutor(bundle, levels=manifest.levels), manifest)


def test_graphs_that_are_what_the_manifest_says(pipeline, bundle, plain_graphs):
    tried(bundle)
    for graph in plain_graphs.glob("*.onnx"):
        shutil.copy(graph, bundle)
    edit(
        bundle,
        sha256=read_manifest(bundle, verify=False).sha256
        | {f"{stem}.onnx": sha256(bundle / f"{stem}.onnx") for stem in GRAPHS},
    )
    tried(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level_sizes": (5, 5, 7)}, r"prefix: expected scores of 5 codes, got the shape \(6,\)"),
        ({"level_sizes": (7, 5, 7)}, "prefix: expected scores of 7 codes"),
        ({"level_sizes": (6, 4, 7)}, "tail_2: expected probabilities of 4 codes .* got a sum of 0"),
        ({"level_sizes": (6, 6, 7)}, "tail_2: expected probabilities of 6|level 2 of its graphs fails"),
        ({"level_sizes": (6, 5, 6)}, "tail_3: expected probabilities of 6 codes"),
        ({"level_sizes": (6, 5, 8)}, "level [34] of its graphs fails|tail_3: expected"),
        ({"value_means": (0.5, 1.0, 2.0)}, "tail_4: expected probabilities of 3 codes"),
        ({"value_means": (0.5, 1.0, 2.0, 8.0, 9.0)}, "tail_4: expected|level 4 of its graphs fails"),
    ],
)
def test_a_manifest_of_another_model(bundle, changes, message):
    with pytest.raises(BundleError, match=message):
        tried(bundle, **changes)


@pytest.mark.parametrize("stem", GRAPHS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(bundle, stem, value):
    """A training that diverged: the graph opens, the hash fits, and no score means anything."""
    path = bundle / f"{stem}.onnx"
    graph = onnx.load(str(path))
    largest = max(graph.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    weights = numpy_helper.to_array(largest).copy()
    weights[:] = value
    largest.CopyFrom(numpy_helper.from_array(weights, name=largest.name))
    onnx.save(graph, str(path))
    sums = read_manifest(bundle, verify=False).sha256
    edit(bundle, sha256=sums | {path.name: sha256(path)})
    with pytest.raises(BundleError, match=f"{stem}: expected .* got a sum of (nan|inf)|{stem}.*nan"):
        tried(bundle)
    graphs = OrtGraphs(bundle.parent, threads=1)
    with pytest.raises(BundleError, match=stem):
        graphs.prepare(read_manifest(bundle))


def test_a_graph_of_another_shape(bundle):
    """Of the same hash as the manifest's, but with the tensors of another graph."""
    shutil.copy(bundle / "tail_2.onnx", bundle / "tail_3.onnx")
    with pytest.raises(BundleError, match="model version 1: level 3 of its graphs fails: .*parent_2"):
        probe(OrtExecutor(bundle, levels=3), read_manifest(bundle, verify=False))


def test_a_copy_is_opened_only_if_it_is_the_graph_of_the_manifest(bundle, tmp_path):
    manifest, copy = read_manifest(bundle), tmp_path / "model.onnx"
    shutil.copy(bundle / "tail_2.onnx", copy)
    session = open_checked(copy, manifest, stem="tail_2", threads=1)
    assert [i.name for i in session.get_inputs()] == [n for n, *_ in manifest.graphs["tail_2"]["inputs"]]
    with pytest.raises(BundleError, match=r"model.onnx: expected sha256 .*graph tail_3 of version 1"):
        open_checked(copy, manifest, stem="tail_3", threads=1)
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(BundleError, match="model.onnx: expected sha256 .* render the repository again"):
        open_checked(copy, manifest, stem="tail_2", threads=1)


@pytest.mark.parametrize(
    ("side", "change"),
    [
        ("inputs", lambda tensors: tensors[::-1]),
        ("inputs", lambda tensors: [(n + "x", k, d) for n, k, d in tensors]),
        ("outputs", lambda tensors: [(n, "FLOAT16", d) for n, _, d in tensors]),
        ("outputs", lambda tensors: [(n, k, (*d, 1)) for n, k, d in tensors]),
        ("outputs", lambda tensors: tensors[:1]),
    ],
)
def test_a_graph_whose_tensors_are_not_those_of_the_manifest(bundle, side, change):
    manifest = read_manifest(bundle)
    tensors = manifest.graphs["tail_2"] | {side: tuple(change(manifest.graphs["tail_2"][side]))}
    other = manifest.model_copy(update={"graphs": manifest.graphs | {"tail_2": tensors}})
    with pytest.raises(BundleError, match=f"tail_2.onnx: expected the {side} .* of the manifest, got"):
        open_checked(bundle / "tail_2.onnx", other, stem="tail_2", threads=1)
