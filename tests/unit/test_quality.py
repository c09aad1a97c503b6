"""The benchmark of recommendation quality: its protocol, its control, its table, its judge."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from benchmarks.quality import control, simple
from benchmarks.quality.bench import first_codes
from benchmarks.quality.cells import Cells, counted_minutes, minutes
from benchmarks.quality.files import DataFiles
from benchmarks.quality.outside.compare import compare_to_outside, largest_difference
from benchmarks.quality.protocol import DEPTH, NOTHING, Answers, Asked, Sequences
from benchmarks.quality.report import not_measured, report_of, table
from benchmarks.quality.sasrec import SasRec, SasRecConfig, softmax_loss
from examples.sequences import tables_of
from tests.whole_way import WholeWay, write_tables
from training.evaluation.metrics import ranking_metrics
from training.preset.preset import Preset

LENGTH, ITEMS, USERS = 7, 40, 50


def lines() -> dict[int, list[int]]:
    """A user's items follow one another round a ring of ids 10, 20, .., so the next one can be learnt."""
    random = np.random.default_rng(3)
    firsts = random.integers(0, ITEMS, USERS)
    return {u + 1: [int((f + i) % ITEMS * 10 + 10) for i in range(LENGTH)] for u, f in enumerate(firsts)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Sequences, Preset]:
    folder = tmp_path_factory.mktemp("quality")
    text = "\n".join(" ".join(map(str, [user, *items])) for user, items in lines().items())
    way = WholeWay(
        folder,
        tables=write_tables(folder / "tables", **tables_of(text, titles={}, name="lines")),
        data={"split": {"by": "last_events"}, "target_behaviors": ["conversion"]},
    )
    way.data()
    return Sequences.load(way.run / "data"), Preset.load(way.preset)


def ask(prepared, part="test", count=10**6) -> Asked:
    return Asked.of(*prepared, part=part, count=count)


@pytest.mark.parametrize(("part", "known"), [("test", LENGTH - 1), ("validation", LENGTH - 2)])
def test_the_last_item_is_asked_for_and_all_before_it_are_known(prepared, part, known):
    sequences, asked = prepared[0], ask(prepared, part)
    assert asked.users.tolist() == sorted(lines())
    for user, history, target in zip(asked.users, asked.histories, asked.targets, strict=True):
        items = lines()[user]
        assert sequences.ids(history).tolist() == items[:known]
        assert sequences.ids(target) == items[known]
    assert [sequences.ids(s).tolist() for s in sequences.training()] == [i[:-2] for i in lines().values()]


def test_drawn_users_are_the_same_ones_every_time(prepared):
    some = ask(prepared, count=7)
    assert len(some.users) == 7
    assert some.users.tolist() == ask(prepared, count=7).users.tolist()


def test_another_split_is_refused(prepared):
    sequences, preset = prepared
    several = preset.model_copy(update={"training": preset.training.model_copy(update={"min_history": 0})})
    with pytest.raises(ValueError, match=r"expected one train item of each user .* got \d+ of 50 users"):
        Asked.of(sequences, several, part="train", count=10**6)


def test_figures_are_those_of_the_evaluation(prepared):
    asked, random = ask(prepared), np.random.default_rng(0)
    ranked = np.stack([random.permutation(ITEMS)[:DEPTH] + 1 for _ in asked.users])
    ranked[3, 4:] = NOTHING  # a shorter answer
    found = asked.metrics(ranked)
    theirs = ranking_metrics(
        [row[row >= 0] for row in ranked],
        [np.array([t]) for t in asked.targets],
        values=[np.ones(1)] * len(ranked),
        cutoffs=(5, 10, 20),
    )
    assert 0 < found["recall5"].mean() < found["recall20"].mean() < 1
    for k in (5, 10, 20):
        assert found[f"recall{k}"].mean() == pytest.approx(theirs["recall"][str(k)])
        assert found[f"ndcg{k}"].mean() == pytest.approx(theirs["ndcg"][str(k)])


def test_answers_are_of_ids_and_of_the_users_that_were_asked(prepared, tmp_path):
    sequences, asked = prepared[0], ask(prepared)
    ranked = np.tile(np.arange(1, DEPTH + 1), (USERS, 1))
    Answers(asked.users, sequences.ids(ranked)).save(tmp_path / "a.npz")
    found = Answers.load(tmp_path / "a.npz")
    assert found.items[0, :2].tolist() == [10, 20]
    assert found.figures(asked)["recall20"].tolist() == asked.metrics(ranked)["recall20"].tolist()
    with pytest.raises(ValueError, match="expected answers to 9 users, got 50"):
        found.figures(ask(prepared, count=9))


def test_simple_answers_leave_out_what_was_seen(prepared):
    asked = ask(prepared)
    for answer in simple.ANSWERS.values():
        for row, history in zip(answer(prepared[0], asked), asked.histories, strict=True):
            assert len(set(row.tolist())) == DEPTH
            assert not set(row.tolist()) & set(history.tolist())


def test_sasrec_sees_no_item_after_and_no_padding():
    torch.manual_seed(0)
    model = SasRec(SasRecConfig(width=8, length=6), items=9).eval()
    history = torch.tensor([[1, 2, 3, 4]])
    states = model(history)
    longer = model(torch.tensor([[1, 2, 3, 4, 0, 0], [5, 6, 7, 8, 9, 1]]))
    assert torch.allclose(longer[0, :4], states[0], atol=1e-6)
    # A position counts from the newest item, so what may not change is content, not length.
    other = model(torch.tensor([[1, 2, 9, 9]]))
    assert torch.allclose(other[0, :2], states[0, :2], atol=1e-6)
    assert not torch.allclose(other[0, 2:], states[0, 2:], atol=1e-3)


def test_the_loss_of_sasrec_is_a_softmax_over_target_and_candidates():
    torch.manual_seed(0)
    states, items = torch.randn(3, 4), torch.randn(8, 4)
    target = torch.tensor([2, 7, 5])
    every = torch.arange(1, 8)
    scores = states @ items[1:].T
    expected = -(scores.log_softmax(1)[torch.arange(3), target - 1]).mean()
    assert softmax_loss(states, target, items=items, candidates=every).item() == pytest.approx(
        expected.item(), rel=1e-6
    )
    some = [0.0, 0.0, 0.0]
    for row, chosen in enumerate(([1, 2], [1, 2, 7], [1, 2, 5])):  # candidates 1 and 2, and the target
        scores = (states[row] @ items.T).exp()
        others = [item for item in chosen if item != target[row]]
        total = scores[target[row]] + 6 / len(others) * scores[others].sum()  # 6 items are not the target
        some[row] = float((total / scores[target[row]]).log())
    found = softmax_loss(states, target, items=items, candidates=torch.tensor([1, 2]))
    assert found.item() == pytest.approx(np.mean(some), rel=1e-6)


def test_sasrec_learns_the_ring_and_keeps_its_best_epoch(prepared):
    sequences, validation, asked = prepared[0], ask(prepared, "validation"), ask(prepared)
    config = SasRecConfig(
        width=16, dropout=0.0, epochs=60, patience=60, batch_size=16, learning_rate=0.01, length=LENGTH
    )
    model, history = control.train(
        sequences.training(), items=ITEMS, config=config, validation=validation, seed=0
    )
    ranked = control.rank(model, asked, config=config)
    figures = asked.metrics(ranked)
    assert figures["recall5"].mean() > 0.8
    assert all(not set(r.tolist()) & set(h.tolist()) for r, h in zip(ranked, asked.histories, strict=True))
    best = history[control.best_epoch(history) - 1]
    again = validation.metrics(control.rank(model, validation, config=config))
    assert again["ndcg10"].mean() == pytest.approx(best["validation_ndcg10"])


def test_sasrec_ends_when_patience_does(prepared):
    config = SasRecConfig(width=8, epochs=30, patience=2, batch_size=16, learning_rate=1e-9, length=LENGTH)
    *_, history = control.train(
        prepared[0].training(), items=ITEMS, config=config, validation=ask(prepared, "validation"), seed=0
    )
    assert len(history) == control.best_epoch(history) + 2 < 30


def cells(prepared, folder: Path) -> tuple[Cells, Asked]:
    """Rows sid, k0 of two seeds and sasrec of one; user u is answered rightly where the row says so."""
    asked = ask(prepared)
    made = Cells(folder, {}, {})
    for row, seed, every in (("sid", 0, 2), ("sid", 1, 4), ("k0", 0, 2), ("k0", 1, 2), ("sasrec", 0, 5)):

        def answer(every=every, seed=seed) -> tuple[Answers, dict]:
            ranked = np.full((USERS, DEPTH), NOTHING)
            ranked[::every, seed] = asked.targets[::every]
            ids = np.where(ranked == NOTHING, NOTHING, asked.item_ids[ranked - 1])
            return Answers(asked.users, ids), {"parameters": 2_000_000, "cpu_minutes": 3.0}

        made.make(row, seed, files={}, values={}, answer=answer)
    return made, asked


def test_the_report_has_the_rows_that_are_there_and_names_the_others(prepared, tmp_path):
    made, asked = cells(prepared, tmp_path)
    report = report_of(made, asked, dataset="beauty", seeds=[0, 1])
    assert set(report["rows"]) == {"sid", "k0", "sasrec"}
    assert report["sid_recall10"] == pytest.approx(np.mean([0.5, 13 / 50]))
    assert report["sid_ndcg10"] == pytest.approx(np.mean([0.5, 13 / 50 / math.log2(3)]))
    assert report["rows"]["sid"]["recall10"]["spread"] == pytest.approx(np.std([0.5, 13 / 50], ddof=1))
    assert report["lazyar_vs_k0"] == pytest.approx((0.5 + 13 / 50) / (0.5 + 0.5))
    assert report["sasrec_recall10"] == pytest.approx(0.2)
    assert report["rows"]["sasrec"]["seeds"] == [0]
    low, high = report["pairs"]["sid_vs_sasrec"]["recall10"]["difference_95"]  # of the seed that both have
    assert low < 0.5 - 0.2 < high
    assert not_measured(report) == [
        "item_recall10",
        "item_ndcg10",
        "lazyar_vs_mtp",
        "outside_judge_difference",
    ]
    shown = table(report)
    assert "| SIDs, K = 0 | 0.5000 ± 0.0000 |" in shown
    assert "| TIGER, paper (reported: arXiv 2305.05065) |" in shown
    assert len({line.count("|") for line in shown.splitlines()}) == 1


def test_answers_are_made_once_and_again_when_what_they_are_made_of_changes(tmp_path):
    made, calls = Cells(tmp_path / "answers", {}, {}), []

    def answer():
        calls.append(1)
        return Answers(np.arange(2), np.zeros((2, DEPTH), np.int64)), {"parameters": 1}

    for values in ({"width": 1}, {"width": 1}, {"width": 2}):
        made.make("sid", 0, files={}, values=values, answer=answer)
    assert len(calls) == 2
    assert made.found("sid", 0)[1] == {"parameters": 1}
    assert made.found("sid", 1) is None


def test_minutes_add_up_over_calls(tmp_path):
    path = tmp_path / "minutes.json"
    assert minutes(path) == 0
    path.write_text(json.dumps({"cpu_minutes": 2.0}))
    with counted_minutes(path):
        pass
    assert minutes(path) == pytest.approx(2.0, abs=0.01)


def test_tables_are_written_once_and_again_when_a_file_changes(tmp_path):
    """A second call of the command used to end where the first had written its tables."""
    (tmp_path / "ring.txt").write_text("1 10 20 30\n2 20 30 10\n")
    files, tables = DataFiles(tmp_path / "ring.txt"), tmp_path / "tables"
    files.write(tables)
    first = (tables / "events.parquet").stat().st_mtime_ns
    files.write(tables)
    assert (tables / "events.parquet").stat().st_mtime_ns == first
    (tmp_path / "ring.txt").write_text("1 10 20 30\n2 20 30 10\n3 10 20 30\n")
    files.write(tables)
    assert len(pl.read_parquet(tables / "events.parquet")) == 9


def test_files_are_found_by_name_or_given(tmp_path):
    for name in ("Toys.txt.gz", "Toys.titles.json", "Toys_item2attributes.json", "Sports.txt"):
        (tmp_path / name).touch()
    none = argparse.Namespace(sequences=None, titles=None, attributes=None, sids=None)
    found = DataFiles.find(tmp_path, "toys", given=none)
    assert found == DataFiles(tmp_path / "Toys.txt.gz", tmp_path / "Toys.titles.json")
    words = argparse.Namespace(**{**vars(none), "attributes": Path("words")})
    assert DataFiles.find(tmp_path, "Toys", given=words).attributes == Path("words")
    (tmp_path / "Toys.titles.json").unlink()
    found = DataFiles.find(tmp_path, "Toys", given=none)
    assert found.attributes == tmp_path / "Toys_item2attributes.json"
    given = argparse.Namespace(**{**vars(none), "sequences": Path("mine"), "sids": Path("codes")})
    assert DataFiles.find(None, "toys", given=given) == DataFiles(Path("mine"), sids=Path("codes"))
    with pytest.raises(ValueError, match=r"expected sequences of yelp, a file yelp.txt or yelp.txt.gz"):
        DataFiles.find(tmp_path, "yelp", given=none)


@pytest.mark.parametrize(("items", "codes"), [(12_101, 4096), (3_416, 1024), (30, 8), (10**6, 8192)])
def test_the_first_codebook_is_of_the_catalogues_size(items, codes):
    assert first_codes(items) == codes


def test_the_largest_difference_is_over_all_seeds_and_both_metrics():
    row = {"seeds": [0, 2], "recall10": {"by_seed": [0.1, 0.2]}, "ndcg10": {"by_seed": [0.05, 0.06]}}
    judged = {
        "sid-seed0": {"recall10": 0.1, "ndcg10": 0.05},
        "sid-seed2": {"recall10": 0.2, "ndcg10": 0.07},
    }
    assert largest_difference({"rows": {"sid": row}}, judged) == pytest.approx(0.01)


def test_without_the_judge_there_is_no_difference(tmp_path):
    found = compare_to_outside(tmp_path / "s", [tmp_path / "a.npz"], {}, python=tmp_path / "no-python")
    assert found == {"outside_judge_difference": None}


def test_published_figures_say_where_they_are_from():
    content = yaml.safe_load(Path("benchmarks/quality/published.yaml").read_text())
    for rows in content.values():
        for row in rows:
            assert row["source"]
            assert 0 < row["ndcg10"] < row["recall10"] < 0.2


def test_the_preset_is_one_of_this_protocol():
    preset = Preset.load("configs/benchmark.yaml")
    assert preset.logs.split.by == "last_events"
    assert preset.logs.split.sizes == (1, 1)
    assert preset.evaluation.exclude_seen
    assert max(preset.evaluation.cutoffs) == DEPTH


def test_attributes_become_words_and_published_ids_columns():
    found = tables_of(
        "1 1 2\n2 3\n",
        titles={"1": "red"},
        name="s",
        attributes={"1": [4, 5], "3": [4]},
        sids={"0": ["<a_7>", "<b_10>"], "1": ["<a_7>", "<b_9>"], "2": ["<a_0>", "<b_9>"]},  # item - 1
    )["ads"]
    assert found["text"].to_list() == ["red attribute4 attribute5", "2", "3 attribute4"]
    assert found.select("sid_0", "sid_1").rows() == [(1, 1), (1, 0), (0, 0)]
    with pytest.raises(ValueError, match="got none of 2, the first is 2"):
        tables_of("1 1 2 3\n", titles={}, name="s", sids={"0": ["<a_1>"]})
