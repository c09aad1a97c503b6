"""Publishing into a running server: the order of things, who wins, and what a failure leaves."""

import dataclasses
import subprocess
import sys
import threading

import pytest

from export import publish as module
from export.publish import Place, PublishError, publish
from serving.files import sha256
from serving.model.bundle import BundleError, read_manifest
from serving.model.current import current_version
from tests.pipeline import copy_of, serving_config
from tests.tiny import SPEC
from tests.unit.test_bundle import edit
from tests.unit.test_scheduler import add_version

GRAPHS = ["lazyar_prefix", "lazyar_tail_2", "lazyar_tail_3", "lazyar_tail_4"]


@pytest.fixture
def place(pipeline, tmp_path):
    made = copy_of(pipeline, tmp_path)
    add_version(made.bundles, 2)
    return Place(made.bundles, made.repository, made.index, serving_config())


def files(place):
    return {
        str(path.relative_to(place.repository)): sha256(path)
        for path in place.repository.rglob("*")
        if path.is_file()
    }


def loaded_versions(place, name):
    return {path.name for path in (place.repository / name).iterdir() if path.is_dir()}


def test_graphs_are_there_before_they_are_loaded_and_current_moves_last(place):
    seen = []

    def load(name):
        assert current_version(place.bundles) == 1
        for graph in GRAPHS:  # all of them, before the first one is loaded
            assert loaded_versions(place, graph) == {"1", "2"}
        seen.append(name)

    assert publish(2, place, load=load)
    assert seen == GRAPHS
    assert current_version(place.bundles) == 2


@pytest.mark.parametrize("at", range(5))
def test_a_failure_leaves_all_as_it_was(place, monkeypatch, at):
    """A graph that the server does not load, or a disk that is full when CURRENT is to move."""
    before, calls = files(place), []

    def load(name):
        calls.append((name, loaded_versions(place, name)))
        if at < 4 and len(calls) == at + 1:
            raise ConnectionError("the server is gone")

    def full(*_):
        raise OSError(28, "No space left on device")

    if at == 4:
        monkeypatch.setattr(module, "point_current", full)
    expected = f"version 2: {GRAPHS[at]} was not loaded: the server is gone" if at < 4 else "No space"
    with pytest.raises((PublishError, OSError), match=expected):
        publish(2, place, load=load)
    assert files(place) == before
    assert current_version(place.bundles) == 1
    tried = GRAPHS[: at + 1]
    # What the server had taken of the new version is unloaded by loading what is there now.
    assert calls[len(tried) :] == [(name, {"1"}) for name in tried]
    monkeypatch.undo()
    assert publish(2, place, load=lambda name: None)


def test_a_failure_puts_back_configs_too(place):
    before = files(place)
    other = dataclasses.replace(place, config=place.config.model_copy(update={"threads": 1, "max_queue": 7}))

    def load(name):
        raise RuntimeError("out of memory")

    with pytest.raises(PublishError, match="out of memory"):
        publish(2, other, load=load)
    assert files(place) == before


def test_a_version_that_is_not_whole_is_not_published(place):
    before = files(place)
    (place.bundles / "2" / "tail_3.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="tail_3.onnx: expected sha256"):
        publish(2, place, load=lambda name: pytest.fail("loaded"))
    with pytest.raises(BundleError, match="bundles/9: expected manifest.json, found none"):
        publish(9, place, load=lambda name: pytest.fail("loaded"))
    assert files(place) == before
    assert current_version(place.bundles) == 1


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"features": SPEC.to_json() | {"max_history": 17}}, "features"),
        ({"graphs": {"FLOAT": "FLOAT16"}}, "tensors"),
    ],
)
def test_a_version_of_another_shape_needs_a_repository_of_its_own(place, changes, what):
    """Its config would take the graphs of the version in use away."""
    if what == "tensors":
        graphs = read_manifest(place.bundles / "2").graphs
        changes = {
            "graphs": {
                stem: {
                    side: [[n, changes["graphs"].get(k, k), d] for n, k, d in tensors]
                    for side, tensors in sides.items()
                }
                for stem, sides in graphs.items()
            }
        }
    edit(place.bundles / "2", **changes)
    before = files(place)
    with pytest.raises(PublishError, match=f"version 2: expected the {what} of version 1, which serves"):
        publish(2, place, load=lambda name: pytest.fail("loaded"))
    assert files(place) == before


def test_the_latest_wins(place):
    """Version 2 waits while 3 is being published, and is not taken any more."""
    add_version(place.bundles, 3)
    inside, go, results = threading.Event(), threading.Event(), {}

    def slow(name):
        inside.set()
        assert go.wait(10)

    def run(version, load):
        results[version] = publish(version, place, load=load)

    late = threading.Thread(target=run, args=(3, slow))
    late.start()
    assert inside.wait(10)
    early = threading.Thread(target=run, args=(2, lambda name: pytest.fail("loaded")))
    early.start()
    early.join(0.2)
    assert early.is_alive()
    go.set()
    late.join(10)
    early.join(10)
    assert results == {3: True, 2: False}
    assert current_version(place.bundles) == 3
    assert publish(2, place, load=lambda name: None, roll_back=True)
    assert current_version(place.bundles) == 2


def test_what_serves_stays_loaded_through_a_row_of_publishes(place):
    """Each load takes away only what was replaced two publishes ago."""
    for version in range(2, 7):
        if version > 2:
            add_version(place.bundles, version)
        assert publish(version, place, load=lambda name: None)
        assert loaded_versions(place, "lazyar_prefix") == {str(version - 1), str(version)}


def test_a_server_that_runs_the_graphs_itself_loads_nothing(place):
    config = place.config.model_copy(update={"graph_calls": "in_process"})
    assert publish(2, dataclasses.replace(place, config=config), load=lambda name: pytest.fail("loaded"))
    assert current_version(place.bundles) == 2


def test_the_command(place, tmp_path):
    """As an operator calls it, with a command that notes what it was to load."""
    note = tmp_path / "note.py"
    note.write_text("import pathlib, sys\npathlib.Path(sys.argv[1]).open('a').write(sys.argv[2] + '\\n')\n")
    listed = tmp_path / "loaded"
    command = [sys.executable, "-m", "export", "publish", "--config=configs/demo.yaml", f"--run={tmp_path}"]
    command += [f"--repository={place.repository}", "--set=serving.widths=4-8-16:6"]

    def run(load, *more):
        words = [*command, f"--load={load}", *more]
        return subprocess.run(words, capture_output=True, text=True, timeout=120)

    failed = run("false")
    assert failed.returncode == 1
    assert "error: model version 2: lazyar_prefix was not loaded: " in failed.stderr
    assert "Traceback" not in failed.stderr
    done = run(f"{sys.executable} {note} {listed}")
    assert (done.returncode, done.stdout) == (0, "version 2 serves\n"), done.stderr
    assert listed.read_text().split() == GRAPHS
    again = run("false", "--version=1")
    assert (again.returncode, again.stdout) == (0, "version 1 is not the latest: nothing to do\n")
