"""A new version is hashed once, beside the batches, when its graphs are there; a bad one is refused once."""

import gc
import shutil
import threading
import weakref

import pytest

from serving.engines import ort
from serving.files import sha256
from serving.index.reader import IndexReader
from serving.model import active_model, bundle, version_watch
from serving.model.active_model import ActiveModel
from serving.model.bundle import BundleError, read_manifest
from serving.model.current import point_current
from tests.recording import FakeGraphs
from tests.tiny import SPEC
from tests.unit.test_scheduler import add_version, deployment
from tests.waiting import wait_until

__all__ = ["deployment"]


@pytest.fixture
def hashed(monkeypatch):
    """(thread, file) of every file that is hashed; reading one waits for `hashed.go`."""

    class Hashed(list):
        go = threading.Event()

    found, real = Hashed(), bundle.sha256
    found.go.set()

    def recorded(path):
        found.append((threading.get_ident(), path.name))
        assert found.go.wait(10)
        return real(path)

    monkeypatch.setattr(bundle, "sha256", recorded)
    return found


@pytest.fixture
def follow(deployment, hashed):
    """Makes an `ActiveModel` of version 1, with what was hashed for it forgotten."""
    readers = []

    def make(**options):
        readers.append(IndexReader(deployment[1], tokenizer_id=deployment[2]))
        graphs = FakeGraphs(**options)
        active = ActiveModel(deployment[0], reader=readers[-1], graphs=graphs, features=SPEC)
        hashed.clear()
        active.refresh()  # the graphs of the first version are tried
        return active

    yield make
    for reader in readers:
        reader.close()


def names_of(deployment, version):
    names = read_manifest(deployment[0] / str(version), verify=False).sha256
    return sorted(name.split("/")[-1] for name in names)


def publish(deployment, version):
    add_version(deployment[0], version)
    point_current(deployment[0], version)


def known(active, version):
    wait_until(lambda: version in active._watch._known, what=f"the watch has seen version {version}")


def test_files_are_hashed_once_in_another_thread_while_graphs_load(deployment, hashed, follow):
    ready = set()
    active = follow(is_loaded=lambda manifest: manifest.version in ready)
    publish(deployment, 2)
    known(active, 2)
    for _ in range(5):
        assert not active.refresh()
    ready.add(2)
    assert active.refresh()
    assert active.manifest.version == 2
    assert sorted(name for _, name in hashed) == names_of(deployment, 2)
    assert threading.get_ident() not in {thread for thread, _ in hashed}


def test_a_server_that_nobody_asks_is_ready_for_a_new_version(deployment, hashed, follow):
    active = follow()
    for version in (2, 3):
        publish(deployment, version)
        known(active, version)
    assert active.refresh()
    assert active.manifest.version == 3


def test_batches_go_on_while_files_are_hashed(deployment, hashed, follow):
    active = follow()
    hashed.go.clear()
    publish(deployment, 2)
    assert not active.refresh()
    wait_until(lambda: hashed, what="the first file")
    for _ in range(5):
        assert not active.refresh()
    assert len(hashed) == 1  # where the thread stands
    publish(deployment, 3)  # it is overtaken
    assert not active.refresh()
    hashed.go.set()
    wait_until(active.refresh, what="version 3")
    assert active.manifest.version == 3


def test_going_back_needs_no_hash(deployment, hashed, follow):
    active = follow()
    publish(deployment, 2)
    known(active, 2)
    assert active.refresh()
    hashed.clear()
    for version in (1, 2, 1):
        point_current(deployment[0], version)
        assert active.refresh()
        assert active.manifest.version == version
    assert hashed == []


def test_a_corrupted_version_is_refused_once_until_its_files_change(deployment, hashed, follow, caplog):
    active = follow()
    add_version(deployment[0], 2)
    graph = deployment[0] / "2" / "tail_2.onnx"
    good = graph.read_bytes()
    graph.write_bytes(good[:-1] + b"?")
    point_current(deployment[0], 2)
    known(active, 2)
    count = len(hashed)
    for _ in range(5):
        assert not active.refresh()
        active._watch.look()
    assert len(hashed) == count
    assert active.manifest.version == 1
    refusals = [r.getMessage() for r in caplog.records if "stays in use" in r.message]
    assert len(refusals) == 1
    assert "tail_2.onnx: expected sha256" in refusals[0]
    graph.write_bytes(good)
    wait_until(active.refresh, what="version 2")
    assert active.manifest.version == 2


def test_the_engine_is_prepared_after_the_hashes_in_their_thread(deployment, hashed, follow, caplog):
    prepared = []

    def prepare(manifest):
        prepared.append((threading.get_ident(), manifest.version, len(hashed)))
        if manifest.version == 2:
            raise BundleError("model version 2: its graphs cannot be opened")
        if manifest.version == 3:
            raise ZeroDivisionError("a bug")

    active = follow(prepare=prepare)
    assert [version for _, version, _ in prepared] == [1]
    prepared.clear()
    for version in (2, 3):
        publish(deployment, version)
        known(active, version)
        for _ in range(3):
            assert not active.refresh()
            active._watch.look()
    assert "its graphs cannot be opened" in caplog.text
    assert "model version 3: ZeroDivisionError: a bug" in caplog.text
    files = len(names_of(deployment, 2))
    assert [(version, count) for _, version, count in prepared] == [(2, files), (3, 2 * files)]
    assert {thread for thread, *_ in prepared} == {thread for thread, _ in hashed}
    assert threading.get_ident() not in {thread for thread, _ in hashed}
    for version, count in ((4, 3), (1, 4), (4, 5)):  # an engine is prepared again for a version to go back to
        publish(deployment, 4) if count == 3 else point_current(deployment[0], version)
        wait_until(active.refresh, what=f"version {version}")
        assert active.manifest.version == version
        assert [v for _, v, _ in prepared][2:] == [4, 1, 4][: count - 2]


def test_a_version_that_is_slow_to_load_is_asked_for_and_logged_once_a_second(
    deployment, follow, monkeypatch, caplog
):
    asked, clock = [], [50.0]
    monkeypatch.setattr(active_model, "RETRY_S", 1.0)
    active = follow(is_loaded=lambda m: m.version == 1 or asked.append(m.version))
    publish(deployment, 2)
    known(active, 2)
    monkeypatch.setattr(active_model.time, "monotonic", lambda: clock[0])
    for _ in range(5):
        for _ in range(3):
            assert not active.refresh()
        clock[0] += 1.01
    assert asked == [2] * 5
    assert caplog.text.count("its graphs are not loaded") == 1


def test_a_look_that_fails_is_not_the_last_one(deployment, follow, monkeypatch, caplog):
    active, real = follow(), version_watch.read_current

    def fails(*arguments, **options):
        monkeypatch.setattr(version_watch, "read_current", real)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(version_watch, "read_current", fails)
    wait_until(lambda: "ZeroDivisionError" in caplog.text, what="a look that fails")
    publish(deployment, 2)
    wait_until(active.refresh, what="version 2")


def test_a_file_outside_the_bundle_is_a_part_of_the_version(deployment, follow, tmp_path, caplog):
    """What Triton loads is a copy, which can be damaged while the bundle is not."""
    copies, good = tmp_path / "repository", (deployment[0] / "1" / "prefix.onnx").read_bytes()
    copies.mkdir()
    (copies / "1").write_bytes(good)
    active = follow(files=lambda m: {copies / str(m.version): m.sha256["prefix.onnx"]})
    publish(deployment, 2)
    known(active, 2)
    assert not active.refresh()
    assert active.refused.reason == "files"
    assert "expected file 2, found none" in active.refused.text
    (copies / "2").write_bytes(good[:-1] + b"?")
    wait_until(lambda: active.refresh() or "2: expected sha256" in active.refused.text, what="another look")
    assert active.manifest.version == 1
    (copies / "2").write_bytes(good)
    wait_until(active.refresh, what="version 2")
    assert active.refused is None


def test_what_nothing_describes_is_refused_until_something_does(deployment, follow):
    described = {1}

    def files(manifest):
        if manifest.version not in described:
            raise BundleError("engine.json: expected the description of the engine beside it")
        return {deployment[0] / "CURRENT.named": sha256(deployment[0] / "CURRENT.named")}

    point_current(deployment[0], 1)
    active = follow(files=files)
    publish(deployment, 2)
    known(active, 2)
    assert not active.refresh()
    assert (active.refused.reason, active.refused.text[:11]) == ("files", "engine.json")
    described.add(2)
    wait_until(active.refresh, what="version 2")


def test_the_thread_ends_with_its_object(deployment, follow):
    before = set(threading.enumerate())
    active = follow()
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "version-watch"
    del active
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_two_versions_are_in_memory_at_most(pipeline, tmp_path, monkeypatch):
    """One that came and was not taken by a batch goes before the next one is opened."""
    folder = tmp_path / "bundles"
    shutil.copytree(pipeline.bundles, folder)
    for version in (2, 3, 4):
        add_version(folder, version)
    alive, most = weakref.WeakSet(), []
    real = ort.OrtExecutor.__init__

    def counted(self, *arguments, **options):
        alive.add(self)
        gc.collect()
        most.append(len(alive))
        real(self, *arguments, **options)

    monkeypatch.setattr(ort.OrtExecutor, "__init__", counted)
    graphs = ort.OrtGraphs(folder, threads=1)
    in_use = graphs.executor(read_manifest(folder / "1"))
    for version in (2, 3):  # CURRENT moves on, no batch comes
        graphs.prepare(read_manifest(folder / str(version)))
    in_use = graphs.executor(read_manifest(folder / "3"))
    graphs.prepare(read_manifest(folder / "4"))
    assert most == [1, 2, 2, 2]
    assert in_use is not None
