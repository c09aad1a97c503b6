"""The bench of embedders on logs of Amazon: what is learnt from, what judges, the raw sentence vectors."""

import gzip
import json

import numpy as np
import pytest

from benchmarks.tokenizer.amazon import Amazon, next_item_recall
from benchmarks.tokenizer.recall import RAW, amazon
from tests.unit.test_tokenizer_joined import needs_extra
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.embedders.content import AdContent
from training.tokenizer.embedders.minilm import MiniLm

TITLES = ["red pen", "blue pen", "red tape", "blue tape", "stapler", "red pen"]


@pytest.fixture
def folder(tmp_path):
    rows = [
        {
            "split": split,
            "user_id": f"u{user}",
            "history_item_id": [user % 6, (user + 1) % 6],
            "item_id": item,
        }
        for split, items in (("valid", (2, 3)), ("test", (4,)))
        for user in range(9)
        for item in items
    ]
    with gzip.open(tmp_path / "Pens.item.json.gz", "wt") as file:
        json.dump({str(i): {"title": title} for i, title in enumerate(TITLES)}, file)
    with gzip.open(tmp_path / "Pens.sequences.DERIVED.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return tmp_path


def test_users_who_judge_are_not_learnt_from(folder):
    log = Amazon.load(folder, "Pens")
    assert (len(log.baskets), len(log.last), set(log.following.tolist())) == (9, 9, {4})
    chosen = Amazon.load(folder, "Pens", judge="valid")
    assert (len(chosen.baskets), len(chosen.last)) == (6, 6)  # of three users, two rows each
    assert set(chosen.following.tolist()) == {2, 3}


@needs_extra
def test_the_bar_is_the_sentence_vectors_themselves(folder, tmp_path):
    log = Amazon.load(folder, "Pens")
    base = TokenizerConfig(min_df=1, embedding_dim=2)
    rows = amazon(
        log, "Pens", embeddings=[RAW, "minilm"], seeds=[0, 1], base=base, vector_file=tmp_path / "v.sqlite"
    )
    assert [(row["embedding"], row["seed"]) for row in rows] == [(RAW, None), ("minilm", 0), ("minilm", 1)]
    raw = MiniLm.opened().embed(AdContent(TITLES))
    assert rows[0]["recall"] == next_item_recall(raw, log.last, log.following)
    order = np.argsort(-(raw @ raw.T - 9 * np.eye(6)), axis=1, kind="stable")
    hits = [order[last, 0] == item for last, item in zip(log.last, log.following, strict=True)]
    assert rows[0]["recall"][1] == np.mean(hits)
