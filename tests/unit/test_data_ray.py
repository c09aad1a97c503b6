"""The data step on Ray itself: the same tables, and a clear word where it is not installed."""

import importlib.util
import json

import polars as pl
import pytest

from benchmarks.event_log import write_log
from training.data import prepare
from training.data.files import NAMES

_MISSING = [name for name in ("ray", "pyarrow", "pandas") if importlib.util.find_spec(name) is None]


def run(folder, out, *options):
    preset = folder / "preset.json"
    data = {
        "source": "parquet",
        "path": str(folder / "log"),
        "split": {"by": "days"},
        "target_behaviors": ["click"],
    }
    preset.write_text(json.dumps({"data": data}))
    return prepare.main(["--config", str(preset), "--out", str(out), *options])


@pytest.mark.slow
@pytest.mark.skipif(bool(_MISSING), reason=f"not installed (requirements-ray.txt): {', '.join(_MISSING)}")
def test_ray_gives_the_same_tables_and_words(tmp_path, capsys, monkeypatch):
    import ray

    write_log(tmp_path / "log", events=60_000, users=2_000, ads=500)
    monkeypatch.setattr(prepare, "_BLOCK", 9_000)
    assert run(tmp_path, tmp_path / "here") == 0
    said = capsys.readouterr().out
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert run(tmp_path, tmp_path / "ray", "--ray") == 0
        assert capsys.readouterr().out == said
        for name in NAMES:
            here, there = (pl.read_parquet(tmp_path / way / f"{name}.parquet") for way in ("here", "ray"))
            assert there.equals(here)
        [part] = (tmp_path / "log" / "events.parquet").glob("part-00000.parquet")
        twice = pl.read_parquet(part)
        pl.concat([twice, twice.tail(3)]).write_parquet(part)
        assert run(tmp_path, tmp_path / "ray", "--ray") == 1
        assert "expected each key once" in capsys.readouterr().err
    finally:
        ray.shutdown()


@pytest.mark.skipif(not _MISSING, reason="Ray is installed")
def test_without_ray_the_packages_are_named(tmp_path, capsys):
    write_log(tmp_path / "log", events=1_000, users=50, ads=20)
    assert run(tmp_path, tmp_path / "ray", "--ray") == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "error: --ray: expected the packages of requirements-ray.txt (pip install --no-deps"
    )
