"""Bundles: what is written, what is refused, and how CURRENT moves."""

import json
import shutil

import numpy as np
import pytest

import export.bundle as module
from export.bundle import point_current, write_bundle
from export.parity import ParityError
from serving.files import sha256
from serving.model.bundle import BundleError, current_version, read_manifest, versions
from tests.pipeline import checkpoint
from tests.tiny import LEVEL_SIZES, SPEC, VALUE_TABLE


@pytest.fixture
def bundles(pipeline, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(pipeline.bundles, tmp_path / "bundles")


def edit(bundle, **changes):
    path = bundle / "manifest.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_manifest_says_what_the_model_is(pipeline):
    manifest = read_manifest(pipeline.bundles / "1")
    assert (manifest.version, manifest.level_sizes, manifest.features) == (1, LEVEL_SIZES, SPEC)
    assert manifest.tokenizer_id == pipeline.tokenizer_id
    np.testing.assert_array_equal(manifest.value_table, VALUE_TABLE)
    assert manifest.profile_columns == {"age": ("old", "young"), "region": ("east", "north", "west")}
    listed = set(manifest.content["sha256"])
    on_disk = {
        str(p.relative_to(pipeline.bundles / "1")) for p in (pipeline.bundles / "1").rglob("*") if p.is_file()
    }
    assert listed == on_disk - {"manifest.json"}
    assert {"prefix.onnx", "tail_2.onnx", "tail_3.onnx", "tail_4.onnx", "tokenizer/tokenizer.json"} <= listed
    assert manifest.content["parity_max_error"] <= 1e-4


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "expected format_version 2, got 1; another release made it"),
        ({"format_version": 3}, "expected format_version 2, got 3"),
        ({"format_version": "2"}, "expected format_version 2, got '2'"),
        ({"model_version": 7}, "expected model_version 1, got 7"),
        ({"model_version": "x"}, "manifest.json is not readable: ValueError"),
        ({"tokenizer_id": None}, "manifest.json is not readable: KeyError: 'tokenizer_id'"),
        ({"features": 3}, "manifest.json is not readable: AttributeError"),
        ({"features": {"levels": 0}}, "levels: expected a positive number, got 0"),
        ({"features": {"colour": 0}}, "not readable: TypeError: .*colour"),
        ({"profile_columns": []}, "manifest.json is not readable"),
        ({"sha256": None}, "manifest.json is not readable: KeyError: 'sha256'"),
    ],
)
def test_manifest_that_does_not_fit(bundles, changes, message):
    edit(bundles / "1", **changes)
    with pytest.raises(BundleError, match=message):
        read_manifest(bundles / "1")


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe\x00", b""])
def test_unreadable_manifest(bundles, text):
    (bundles / "1" / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match="bundles/1: manifest.json is not readable"):
        read_manifest(bundles / "1")


@pytest.mark.parametrize("text", [b"2\n", b"", b"one", b"-1", b"1.0", b"../1", b"\xff"])
def test_current_that_names_nothing(bundles, text):
    (bundles / "CURRENT").write_bytes(text)
    with pytest.raises(BundleError, match="CURRENT: expected"):
        current_version(bundles)


def test_current_missing_or_incomplete(bundles):
    assert current_version(bundles) == 1
    (bundles / "2").mkdir()
    point_current(bundles, 2)
    with pytest.raises(BundleError, match=r"expected one of the complete versions \[1\], got '2'"):
        current_version(bundles)
    (bundles / "CURRENT").unlink()
    with pytest.raises(BundleError, match=r"CURRENT: expected the version to serve, got: .*make export"):
        current_version(bundles)


def fake_graphs(monkeypatch, *, content=b"graph"):
    """Skip the slow part: these tests are about files."""
    monkeypatch.setattr(
        module, "export_graphs", lambda model, folder, **k: (folder / "prefix.onnx").write_bytes(content)
    )
    monkeypatch.setattr(module, "graph_shapes", lambda folder: {})
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
    assert sorted(p.name for p in bundles.iterdir()) == ["1", "CURRENT"]


def test_next_version_then_rollback(pipeline, bundles, monkeypatch):
    fake_graphs(monkeypatch)
    (bundles / "2").mkdir()
    (bundles / "2" / "leftover").write_text("of a crash")
    (bundles / ".2.new").mkdir()
    ready = checkpoint(tokenizer_id=pipeline.tokenizer_id)
    made = write_bundle(ready, bundles, tokenizer=pipeline.tokenizer, quality={"recall": 0.5})
    assert made == bundles / "2"
    assert read_manifest(made).content["quality"] == {"recall": 0.5}
    assert not (made / "leftover").exists()
    assert current_version(bundles) == 2
    point_current(bundles, 1)
    assert current_version(bundles) == 1
    # a new export never takes the number of a version that was rolled back from
    assert write_bundle(ready, bundles, tokenizer=pipeline.tokenizer, activate=False) == bundles / "3"
    assert current_version(bundles) == 1
    assert versions(bundles) == [1, 2, 3]
