"""Bundles: what is written, what is refused, and how CURRENT moves."""

import json
import os
import shutil

import numpy as np
import pytest

import export.bundle as module
from export.bundle import write_bundle
from export.parity import ParityError
from serving.files import sha256
from serving.model import current
from serving.model.bundle import BundleError, read_manifest, versions
from serving.model.current import current_version, named_versions, point_current
from serving.model.manifest import Manifest
from tests.pipeline import checkpoint
from tests.tiny import LEVEL_SIZES, SPEC, VALUE_TABLE


@pytest.fixture
def bundles(pipeline, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(pipeline.bundles, tmp_path / "bundles")


def edit(bundle, **changes):
    path = bundle / "manifest.json"
    content = json.loads(path.read_text()) | changes
    gone = {key for key, value in changes.items() if value is None}
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in gone}))


def test_manifest_says_what_the_model_is(pipeline):
    manifest = read_manifest(pipeline.bundles / "1")
    assert (manifest.version, manifest.level_sizes, manifest.features) == (1, LEVEL_SIZES, SPEC)
    assert manifest.tokenizer_id == pipeline.tokenizer_id
    np.testing.assert_array_equal(manifest.value_table, VALUE_TABLE)
    assert manifest.profile_columns == {"age": ("old", "young"), "region": ("east", "north", "west")}
    listed = set(manifest.sha256)
    on_disk = {
        str(p.relative_to(pipeline.bundles / "1")) for p in (pipeline.bundles / "1").rglob("*") if p.is_file()
    }
    assert listed == on_disk - {"manifest.json"}
    assert {"prefix.onnx", "tail_2.onnx", "tail_3.onnx", "tail_4.onnx", "tokenizer/tokenizer.json"} <= listed
    assert manifest.parity_max_error <= 1e-4


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "x").write_text("abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_no_manifest_no_bundle(bundles):
    (bundles / "1" / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"bundles/1: expected manifest.json, found none"):
        read_manifest(bundles / "1")
    assert versions(bundles) == []


def test_missing_file(bundles):
    (bundles / "1" / "tail_3.onnx").unlink()
    with pytest.raises(BundleError, match=r"bundles/1: expected file tail_3.onnx, found none"):
        read_manifest(bundles / "1")


@pytest.mark.parametrize("name", ["prefix.onnx", "tokenizer/arrays.safetensors"])
def test_one_changed_bit(bundles, name):
    file = bundles / "1" / name
    expected = sha256(file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        read_manifest(bundles / "1")
    for part in (name, expected[:16], sha256(file)[:16]):
        assert part in str(caught.value)
    read_manifest(bundles / "1", verify=False)  # asked not to look


FEATURES = SPEC.to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "expected format_version in 2, 3, 4, got 1; another release made it"),
        ({"format_version": 5}, "expected format_version in 2, 3, 4, got 5"),
        ({"format_version": "2"}, "expected format_version in 2, 3, 4, got '2'"),
        ({"format_version": None}, "format_version: Field required"),
        ({"model_version": 7}, "expected model_version 1, got 7"),
        ({"model_version": "x"}, "model_version: .*valid integer, got 'x'"),
        ({"model_version": True}, "model_version: .*valid integer, got True"),
        ({"model_version": 0}, "model_version: .*greater than or equal to 1, got 0"),
        ({"model_version": 10**18}, "model_version: .*less than or equal"),
        ({"tokenizer_id": None}, "tokenizer_id: Field required"),
        ({"tokenizer_id": "../index"}, "tokenizer_id: .*should match pattern .*got '../index'"),
        ({"tokenizer_id": ""}, "tokenizer_id: .*should match pattern"),
        ({"tokenizer_id": "x" * 101}, "tokenizer_id: .*should match pattern"),
        ({"features": 3}, "features: .*got 3"),
        ({"features": FEATURES | {"levels": 0}}, "levels: expected a positive number, got 0"),
        ({"features": FEATURES | {"levels": "3"}}, "features.levels: .*valid integer, got '3'"),
        ({"features": FEATURES | {"colour": 0}}, "features: .*missing: none, unknown: colour"),
        ({"features": {"levels": 3}}, "features: .*missing: .*short_slots"),
        (
            {"features": FEATURES | {"levels": 4}},
            r"features.levels: expected 3 .*, got 4",
        ),
        (
            {"features": FEATURES | {"profile_sizes": [3, 5]}},
            r"profile_sizes: expected \(3, 4\) \(sizes of profile_columns\), got \(3, 5\)",
        ),
        ({"profile_columns": []}, "profile_columns: .*valid dictionary|profile_columns: .*object"),
        (
            {"profile_columns": {"age": ["old"], "region": ["east", "north", "west"]}},
            "profile_sizes: expected",
        ),
        ({"profile_columns": {"age": [1, 2], "region": []}}, "profile_columns.age.0: .*valid string, got 1"),
        ({"level_sizes": []}, "level_sizes: .*at least 1 item"),
        ({"level_sizes": [6, 5, 0]}, "level_sizes.2: .*greater than or equal to 1, got 0"),
        ({"level_sizes": [6, 5]}, "features.levels: expected 2"),
        ({"level_sizes": [6, 5, 7.5]}, "level_sizes.2: .*valid integer, got 7.5"),
        ({"value_means": [0.5, 1.0, 2.0]}, r"len\(value_edges\): expected 2 .*got 3"),
        ({"value_means": [0.5, 1.0, 2.0, float("nan")]}, "value_means.3: .*finite number, got nan"),
        ({"value_means": [0.5, 1.0, 2.0, float("inf")]}, "value_means.3: .*finite number, got inf"),
        ({"value_means": [0.5, 2.0, 1.0, 8.0]}, "value_means: expected ascending values"),
        ({"value_correction": [[1.0, 0.0], [2.0, -1.5]]}, "value_correction: .*got 1.0 \\+ 0.0 before 2.0"),
        ({"value_correction": [[2.0, 0.0], [1.0, 0.0]]}, "value_correction: expected ascending"),
        ({"value_correction": [[1.0, float("nan")]]}, "value_correction.0.1: .*finite number, got nan"),
        ({"value_correction": [[1.0]]}, "value_correction.0.1: Field required"),
        ({"value_means": [0.5, 1.0, 2.0, "8"]}, "value_means.3: .*valid number, got '8'"),
        ({"value_means": []}, "value_means: .*at least 1 item"),
        ({"precision": "fp4"}, "precision: .*'fp32', 'fp16', 'int8' or 'fp8', got 'fp4'"),
        ({"graphs": {}}, r"graphs: expected \['prefix', 'tail_2', 'tail_3', 'tail_4'\] .*, got \[\]"),
        ({"sha256": None}, "sha256: Field required"),
        ({"sha256": {}}, "sha256: expected every graph, missing: prefix.onnx, tail_2.onnx"),
        ({"sha256": {"prefix.onnx": "00"}}, "sha256.prefix.onnx: .*should match pattern .*got '00'"),
    ],
)
def test_manifest_that_does_not_fit(bundles, changes, message):
    edit(bundles / "1", **changes)
    for verify in (True, False):
        with pytest.raises(BundleError, match=f"bundles/1: .*{message}"):
            read_manifest(bundles / "1", verify=verify)


@pytest.mark.parametrize("name", ["../1/prefix.onnx", "/etc/passwd", "a/../b", "./x", "a//b", "", ".hidden"])
def test_files_are_inside_the_bundle(bundles, name):
    sums = read_manifest(bundles / "1").sha256 | {name: "0" * 64}
    edit(bundles / "1", sha256=sums)
    with pytest.raises(BundleError, match="sha256: expected names of files inside the bundle, got"):
        read_manifest(bundles / "1")


@pytest.mark.parametrize("name", ["seen_sids.npy", "encoder/encoder.json", "tokenizer/more"])
def test_a_file_that_the_manifest_leaves_out(bundles, name):
    """Whoever reads it would read something that nobody has vouched for."""
    sums = {k: v for k, v in read_manifest(bundles / "1").sha256.items() if k != name}
    edit(bundles / "1", sha256=sums)
    (bundles / "1" / name).write_bytes(b"anything")
    with pytest.raises(BundleError, match=f"bundles/1: .*expected every file, lacks {name}"):
        read_manifest(bundles / "1")
    (bundles / "1" / name).unlink()
    (bundles / "1" / ".nfs0001").write_bytes(b"of the file system")
    read_manifest(bundles / "1")


def test_remarks_of_another_release_are_left_alone(bundles):
    before = read_manifest(bundles / "1")
    edit(bundles / "1", remark="x")
    assert read_manifest(bundles / "1").model_dump() == before.model_dump()


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b"\xff\xfe\x00", b"", b"[" * 300_000, b"9" * 5_000, b'{"format_version": 2}']
)
def test_unreadable_manifest(bundles, text):
    (bundles / "1" / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match="bundles/1: manifest.json: "):
        read_manifest(bundles / "1")


def test_an_export_publishes_no_manifest_that_serving_would_refuse(pipeline, bundles, monkeypatch):
    fake_graphs(monkeypatch)
    monkeypatch.setattr(module, "graph_shapes", lambda folder: {})
    with pytest.raises(BundleError, match="graphs: expected"):
        write_bundle(checkpoint(tokenizer_id=pipeline.tokenizer_id), bundles, tokenizer=pipeline.tokenizer)
    assert sorted(p.name for p in bundles.iterdir()) == ["1", "CURRENT", "CURRENT.named"]


BAD = [b"2\n", b"", b"one", b"-1", b"+1", b" 1", b"1 ", b"01", b"1.0", b"../1", b"\xff", b"1\n\n", b"1\n2\n"]
BAD += ["²".encode(), "١".encode(), b"9" * 5_000, b"1" + b"0" * 18, b"0"]


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text)[:12])
def test_current_that_names_nothing(bundles, text):
    (bundles / "CURRENT").write_bytes(text)
    with pytest.raises(BundleError, match="CURRENT: expected .*got"):
        current_version(bundles)


def test_current_that_is_no_file(bundles):
    current = bundles / "CURRENT"
    current.unlink()
    for make in (current.mkdir, lambda: current.symlink_to("gone"), lambda: os.mkfifo(current)):
        make()
        with pytest.raises(BundleError, match="CURRENT: expected the version to serve, got: "):
            current_version(bundles)
        current.rmdir() if current.is_dir() else current.unlink()


@pytest.mark.parametrize("name", ["²", "02", "-2", "2 ", "1" * 19, "9" * 200, "0", "x"])
def test_folders_that_are_no_versions(bundles, name):
    shutil.copytree(bundles / "1", bundles / name)
    assert versions(bundles) == [1]


def test_current_missing_or_incomplete(bundles):
    assert current_version(bundles) == 1
    (bundles / "2").mkdir()
    point_current(bundles, 2)
    with pytest.raises(BundleError, match=r"expected one of the complete versions \[1\], got '2'"):
        current_version(bundles)
    (bundles / "CURRENT").unlink()
    with pytest.raises(BundleError, match=r"CURRENT: expected the version to serve, got: .*make export"):
        current_version(bundles)


def copies(bundles, *numbers):
    for number in numbers:
        shutil.copytree(bundles / "1", bundles / str(number))
        edit(bundles / str(number), model_version=number)


def test_what_current_named_is_remembered(bundles):
    copies(bundles, 2, 3, 4)
    for version in (2, 3, 2, 4, 1):
        point_current(bundles, version)
    assert named_versions(bundles) == [1, 4, 2, 3]
    shutil.rmtree(bundles / "2")
    assert named_versions(bundles) == [1, 4, 3]
    (bundles / "CURRENT").write_text("x")  # whoever damaged it did not damage what it named before
    assert named_versions(bundles) == [1, 4, 3]


def test_the_memory_is_bounded(bundles):
    copies(bundles, *range(2, 31))
    for version in range(2, 31):
        point_current(bundles, version)
    assert named_versions(bundles) == list(range(30, 14, -1))


@pytest.mark.parametrize("damage", [None, b"", b"2\nx\n", b"\xff", "²\n".encode(), b"1" * 5_000, "folder"])
def test_older_versions_stand_in_for_a_history_that_is_gone(bundles, damage):
    copies(bundles, 2, 3, 4)
    point_current(bundles, 3)
    history = bundles / "CURRENT.named"
    history.unlink()
    if damage == "folder":
        history.mkdir()
    elif damage is not None:
        history.write_bytes(damage)
    assert named_versions(bundles) == [3, 2, 1]


def test_a_full_disk_leaves_the_version_that_serves(bundles, monkeypatch):
    copies(bundles, 2)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(current, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        point_current(bundles, 2)
    assert current_version(bundles) == 1


def fake_graphs(monkeypatch, *, content=b"graph"):
    """Skip the slow part: these tests are about files."""
    stems = ("prefix", "tail_2", "tail_3", "tail_4")

    def write(model, folder, **_):
        for stem in stems:
            (folder / f"{stem}.onnx").write_bytes(content)

    monkeypatch.setattr(module, "export_graphs", write)
    monkeypatch.setattr(module, "write_skeletons", lambda graphs, target: None)
    nothing = {"inputs": [], "outputs": []}
    monkeypatch.setattr(module, "graph_shapes", lambda folder: dict.fromkeys(stems, nothing))
    monkeypatch.setattr(module, "check_parity", lambda *a, **k: 0.0)


def test_parity_mismatch_publishes_nothing(pipeline, bundles, monkeypatch):
    before = sorted(p.name for p in bundles.iterdir())
    fake_graphs(monkeypatch)

    def mismatch(*_, **__):
        raise ParityError("parity: expected 1e-4, got 0.3")

    monkeypatch.setattr(module, "check_parity", mismatch)
    with pytest.raises(ParityError):
        write_bundle(checkpoint(tokenizer_id=pipeline.tokenizer_id), bundles, tokenizer=pipeline.tokenizer)
    assert sorted(p.name for p in bundles.iterdir()) == before
    assert current_version(bundles) == 1


def test_tokenizer_of_another_model_is_refused(pipeline, bundles, monkeypatch):
    fake_graphs(monkeypatch)
    with pytest.raises(ValueError, match=f"expected tokenizer other .*got {pipeline.tokenizer_id}"):
        write_bundle(checkpoint(tokenizer_id="other"), bundles, tokenizer=pipeline.tokenizer)
    assert sorted(p.name for p in bundles.iterdir()) == ["1", "CURRENT", "CURRENT.named"]


def test_next_version_then_rollback(pipeline, bundles, monkeypatch):
    fake_graphs(monkeypatch)
    (bundles / "2").mkdir()
    (bundles / "2" / "leftover").write_text("of a crash")
    (bundles / ".2.new").mkdir()
    ready = checkpoint(tokenizer_id=pipeline.tokenizer_id)
    made = write_bundle(ready, bundles, tokenizer=pipeline.tokenizer, quality={"recall": 0.5})
    assert made == bundles / "2"
    assert read_manifest(made).quality == {"recall": 0.5}
    assert not (made / "leftover").exists()
    assert current_version(bundles) == 2
    point_current(bundles, 1)
    assert current_version(bundles) == 1
    # a new export never takes the number of a version that was rolled back from
    assert write_bundle(ready, bundles, tokenizer=pipeline.tokenizer, activate=False) == bundles / "3"
    assert current_version(bundles) == 1
    assert versions(bundles) == [1, 2, 3]


def test_a_manifest_of_before_the_attribution_window_is_read(pipeline):
    content = json.loads((pipeline.bundles / "1" / "manifest.json").read_text())
    del content["features"]["attribution_window_s"]
    assert Manifest.parse(json.dumps(content)).features.attribution_window_s == 0
