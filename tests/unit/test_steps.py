"""The steps of `make`, one after the other through their command lines: each knows when it is out of date."""

import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

import export.__main__ as export_step
import indexer.__main__ as index_step
import training.tokenizer.__main__ as tokenizer_step
from export.made_from import made_from
from serving.inputs import RECORD, Inputs
from serving.inputs import changes as changes_of
from serving.model.current import current_version
from tests.tiny_log import write_run
from training.data import prepare
from training.data.source_files import source_files
from training.evaluation import __main__ as evaluation_step
from training.loop.retention import find_checkpoint
from training.preset.data import DataConfig
from training.preset.preset import Preset
from training.preset.tokenizer import TokenizerConfig
from training.recipes import pretrain
from training.tokenizer.storage import read_folder

ROOT = Path(__file__).parents[2]
SETTINGS = ("tokenizer.codebook_sizes=[6,5]", "tokenizer.hash_size=16", "tokenizer.embedding_dim=8")
TRAINING = ("training.steps=2", "training.validate_every=2", "evaluation.requests=4")


class Steps:
    """A source and a run folder, and the steps on them."""

    def __init__(self, folder, monkeypatch, capsys):
        self.preset, self.run = write_run(folder, users=6)
        self.source = folder / "source"
        self._monkeypatch, self._capsys = monkeypatch, capsys
        # Made by the steps themselves from here on.
        for file in sorted(self.run.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()

    def __call__(self, main, words, *, sets=()):
        """What a step says."""
        sets = [f"--set={s}" for s in (*SETTINGS, *TRAINING, *sets)]
        line = ["--config", str(self.preset), *map(str, words), *sets]
        self._monkeypatch.setattr(sys, "argv", ["step", *line])
        self._capsys.readouterr()
        code = main(line) if main is prepare.main else main()
        said = self._capsys.readouterr()
        if code:
            raise SystemExit(said.err)
        return said.out

    def data(self, *words, sets=()):
        return self(prepare.main, ("--out", self.run / "data", *words), sets=sets)

    def tokenize(self, *words, sets=()):
        paths = ("--data", self.run / "data", "--out", self.run / "tokenizer")
        return self(tokenizer_step.main, (*paths, *words), sets=sets)

    def train(self, *words, sets=()):
        return self(pretrain.main, ("--run", self.run, *words), sets=sets)

    def evaluate(self, *words, sets=()):
        return self(evaluation_step.main, ("--run", self.run, *words), sets=sets)

    def index(self, *words):
        self._capsys.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["indexer", *words])
        index_step.main()
        return self._capsys.readouterr().out

    def all(self, sets=()):
        """What is done of data, tokenize, train and evaluate."""
        steps = ("data", "tokenize", "train", "evaluate")
        return [name for name in steps if ": up to date" not in getattr(self, name)(sets=sets)]

    def edit(self, name, change):
        path = self.source / f"{name}.parquet"
        change(pl.read_parquet(path)).write_parquet(path)


@pytest.fixture
def steps(tmp_path, monkeypatch, capsys, no_curves):
    torch.set_num_threads(1)
    return Steps(tmp_path, monkeypatch, capsys)


def test_exactly_what_depends_on_a_change_is_done_again(steps):
    assert steps.all() == ["data", "tokenize", "train", "evaluate"]
    assert steps.all() == []
    assert steps.all(["evaluation.cutoffs=[2]"]) == ["evaluate"]
    assert steps.all(["evaluation.cutoffs=[2]"]) == []
    assert steps.all(["serving.slo_ms=7", "training.workers=0"]) == ["evaluate"]  # back to the first cut-offs
    assert steps.all(["training.steps=3"]) == ["train", "evaluate"]
    # Events: semantic IDs learn from them which ads are bought together.
    steps.edit("events", lambda table: table.with_columns(pl.col("value") * 2))
    assert steps.all(["training.steps=4"]) == ["data", "tokenize", "train", "evaluate"]
    # The status of an ad: nothing that is trained knows of it.
    steps.edit(
        "ads",
        lambda table: table.with_columns(
            status=pl.when(pl.col("ad_id") == 0).then(pl.lit("paused")).otherwise(pl.col("status"))
        ),
    )
    assert steps.all(["training.steps=4"]) == ["data", "tokenize", "evaluate"]
    assert steps.all(["training.steps=4"]) == []


def test_semantic_ids_of_words_alone_do_not_depend_on_events(steps):
    words = ["tokenizer.embedding=tfidf_svd"]
    assert steps.all(words) == ["data", "tokenize", "train", "evaluate"]
    steps.edit("events", lambda table: table.with_columns(pl.col("value") * 2))
    assert steps.all([*words, "training.steps=4"]) == ["data", "train", "evaluate"]


def test_steps_say_what_has_changed(steps):
    steps.all()
    assert "out of date: data.split.test 1.0 -> 2.0\n" in steps.data(sets=["data.split.test=2"])
    assert "out of date: data.split.test 2.0 -> 1.0\n" in steps.data()
    steps.edit("users", lambda table: table.with_columns(age=pl.lit("x")))
    assert re.search(r"out of date: users.parquet [0-9a-f]{8} -> [0-9a-f]{8}\n", steps.data())
    assert "tokenizer: up to date" in steps.tokenize()
    assert "out of date: tokenizer.seed 0 -> 1" in steps.tokenize(sets=["tokenizer.seed=1"])


def test_fresh_does_it_again(steps):
    steps.all()
    assert "rows read" in steps.data("--fresh")
    assert "60 ads" in steps.tokenize("--fresh")
    assert "M parameters" in steps.train("--fresh")
    assert "recall" in steps.evaluate("--fresh")


def test_a_changed_tokenizer_is_not_trained_over(steps):
    """`make tokenize train` used to say that it had resumed at the last step, with the old hash size."""
    steps.all()
    before = read_folder(steps.run / "tokenizer")[0]
    with pytest.raises(SystemExit) as ended:
        steps.tokenize("--keep", sets=["tokenizer.hash_size=32"])
    assert ended.value.code == 1
    assert "tokenizer.hash_size 16 -> 32: a model that was trained" in steps._capsys.readouterr().err
    assert read_folder(steps.run / "tokenizer")[0] == before
    assert "up to date" in steps.tokenize("--keep")
    # Without a word of the model, the tokenizer is another one, and the model does not go on with it.
    steps.tokenize(sets=["tokenizer.hash_size=32"])
    for more in ((), ["training.steps=9"]):
        with pytest.raises(SystemExit, match=r"expected tokenizer [0-9a-f]+ \(the model's\), got .*--fresh"):
            steps.train(sets=["tokenizer.hash_size=32", *more])
    assert "done" in steps.train("--fresh", sets=["tokenizer.hash_size=32"])


def test_a_kept_tokenizer_encodes_a_log_with_more_ads_and_does_not_count_as_fitted_on_them(steps):
    steps.all()
    before = read_folder(steps.run / "tokenizer")[0]
    steps.edit("ads", lambda t: pl.concat([t, t.tail(1).with_columns(pl.col("ad_id") + 1)]))
    steps.data()
    assert "61 ads" in steps.tokenize("--keep")
    assert "up to date" in steps.tokenize("--keep")
    assert read_folder(steps.run / "tokenizer")[0] == before
    assert pl.read_parquet(steps.run / "tokenizer" / "sids.parquet").height == 61
    assert "out of date: the ads that the codebooks were fitted on" in steps.tokenize()


def test_a_step_that_fails_leaves_its_output_and_its_record(steps):
    steps.all()
    good = (steps.source / "events.parquet").read_bytes()
    (steps.source / "events.parquet").write_bytes(good[:-9])
    with pytest.raises(SystemExit, match="error: "):
        steps.data()
    (steps.source / "events.parquet").write_bytes(good)
    assert steps.all() == []


def test_a_step_that_is_killed_is_done_again(steps, monkeypatch):
    """After the SIDs of the new log, before the record."""
    steps.all()
    steps.edit("ads", lambda t: pl.concat([t, t.tail(1).with_columns(pl.col("ad_id") + 1)]))
    steps.data()
    with monkeypatch.context() as patched:
        patched.setattr(tokenizer_step, "write_file", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            steps.tokenize("--keep")
    assert "making it again" in steps.tokenize("--keep")


@pytest.mark.slow
def test_bundle_and_index_are_made_once(steps, tmp_path):
    steps.all()
    repository = tmp_path / "repository"
    words = ("--run", steps.run, "--repository", repository)

    def export(*more, sets=()):
        said = steps(export_step.main, (*words, *more), sets=("serving.widths=4-8-16:6", *sets))
        return "up to date" in said, current_version(steps.run / "bundles")

    assert export() == (False, 1)
    assert export() == (True, 1)
    configs = [repository / name / "config.pbtxt" for name in ("gr4ad", "beam_scheduler")]
    before = [path.read_text() for path in configs]
    assert export(sets=["serving.max_num_ads=7"]) == (True, 1)  # rendered all the same
    assert [path.read_text() for path in configs] != before
    assert RECORD not in {path.name for path in (steps.run / "bundles" / "1" / "tokenizer").iterdir()}

    def stale(**changes):
        options = {
            "preset": Preset.load(steps.preset),
            "precision": "fp32",
            "fine_tuned": False,
            "ranker": False,
            "version": 1,
        }
        now = made_from(steps.run, find_checkpoint(steps.run / "model"), **(options | changes))
        return changes_of(Inputs.load(steps.run / "bundles" / RECORD).values, now.values)

    assert stale() == []
    assert stale(version=2) == ["bundle 1 -> 2"]
    assert "precision fp32 -> int8" in stale(precision="int8")
    steps.train(sets=["training.steps=3"])
    assert [change.split()[0] for change in stale()] == ["weights", "checkpoint"]

    tables = [
        f"--ads={steps.run / 'data' / 'ads.parquet'}",
        f"--sids={steps.run / 'tokenizer' / 'sids.parquet'}",
    ]

    def index(*more):
        paths = [f"--bundles={steps.run / 'bundles'}", f"--out={steps.run / 'index'}", *tables]
        return steps.index("build", *paths, *more)

    assert "version 1, built in" in index()
    assert index() == f"{steps.run / 'index'}: up to date\n"
    assert "version 2, built in" in index("--fresh")


def test_parts_of_a_table_are_inputs(tmp_path, steps):
    """Files in folders of a table count, other files beside the tables do not."""
    folder = tmp_path / "parts"
    for name in ("events/day=1/a.parquet", "events/day=2/b.parquet", "ads.csv", "users.parquet", "readme.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = source_files(DataConfig(source="parquet", path=str(folder)))
    assert sorted(found) == ["ads.csv", "events/day=1/a.parquet", "events/day=2/b.parquet", "users.parquet"]
    assert all(path.is_file() for path in found.values())


def make(*words):
    """The commands that make would run."""
    done = subprocess.run(
        ["make", "-n", "-B", "--no-print-directory", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if re.search(r" -m (?!pip|venv)", line)]


def test_make_passes_preset_and_settings():
    name = "mine"
    lines = make(
        "train", "evaluate", "export", f"PRESET={name}", "SET=training.steps=3 tokenizer.hash_size=32"
    )
    assert [re.search(r"-m (\S+)", line)[1] for line in lines] == [
        "training.data.prepare",
        "training.tokenizer",
        "training.recipes.pretrain",
        "training.evaluation",
        "export",
    ]
    for line in lines:
        assert f"--config configs/{name}.yaml --set 'training.steps=3' --set 'tokenizer.hash_size=32'" in line
        assert "build/mine" in line
        assert "--fresh" not in line
    for line in make("index", "demo", "publish", "engines", "fine-tune-fp8", f"PRESET={name}"):
        assert "build/mine" in line


def test_make_does_again_what_is_named():
    lines = make("train", "FRESH=1", "RUN=none")
    assert [line.rstrip().endswith("--fresh") for line in lines] == [False, False, True]
    assert [" --fresh" in line for line in make("tokenize", "train", "FRESH=1")] == [False, True, True]


def test_records_say_nothing_of_where_things_lie(steps):
    """A run folder and its source can be moved."""
    steps.data()
    content = json.loads((steps.run / "data" / "inputs.json").read_text())
    assert str(steps.source) not in json.dumps(content)


def test_an_edited_file_of_instructions_is_noticed(steps, tmp_path):
    steps.data()
    file = tmp_path / "instructions.yaml"
    file.write_text("one")
    config = TokenizerConfig(embedding="minilm", instructions=str(file))
    paths = {"data_dir": steps.run / "data", "out_dir": steps.run / "tokenizer"}
    before = tokenizer_step._inputs(config, **paths, behaviors=(), keep=False)
    file.write_text("another")
    after = tokenizer_step._inputs(config, **paths, behaviors=(), keep=False)
    assert [c.split(" of ")[0] for c in changes_of(before.values, after.values)] == ["the file"]
