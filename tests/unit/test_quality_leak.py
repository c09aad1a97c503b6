"""What is held out changes nothing that is learnt: shuffled among users, everything is the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from examples.sequences import tables_of
from tests.whole_way import MODEL, WholeWay, write_tables
from training.loop.retention import find_checkpoint

USERS, ITEMS, LENGTH = 60, 30, 8  # of each line the last two are held out
RECORDS = {"inputs.json", "fit.json"}  # of the tokenizer: the digests of the files it was made from


def sequences() -> np.ndarray:
    """Items [USERS, LENGTH]: two groups of users, each with half of the items."""
    random = np.random.default_rng(0)
    rows = [random.choice(ITEMS // 2, LENGTH, replace=False) for _ in range(USERS)]
    return np.stack(rows) + np.arange(USERS)[:, None] % 2 * (ITEMS // 2) + 1


def learnt(folder, lines: np.ndarray) -> dict[str, bytes]:
    """Files of the tokenizer and of the model's checkpoint, vectors of items among them, by name.

    But not what notes the inputs and losses.
    """
    text = "\n".join(" ".join(map(str, [user + 1, *items])) for user, items in enumerate(lines.tolist()))
    titles = {str(item): f"thing {item % 7} of kind {item % 5} number {item}" for item in range(1, ITEMS + 1)}
    way = WholeWay(
        folder,
        tables=write_tables(folder / "tables", **tables_of(text, titles=titles, name="lines")),
        data={"split": {"by": "last_events"}, "target_behaviors": ["conversion"]},
        tokenizer={
            "codebook_sizes": [8, 4],
            "hash_size": 8,
            "embedding_dim": 8,
            "cooccurrence": {"basket": "user", "steps": 10, "check_every": 5},
        },
        model=MODEL | {"item": {"width": 8, "heads": 2, "negatives": 16}},
    )
    way.data()
    data, out = way.run / "data", way.run / "tokenizer"
    way.command("training.tokenizer.__main__", "--config", way.preset, "--data", data, "--out", out)
    way.command("training.recipes.pretrain", "--config", way.preset, "--run", way.run)
    checkpoint = find_checkpoint(way.run / "model")
    assert any(name.startswith("item.") for name in load_file(checkpoint / "model.safetensors"))
    paths = [*out.iterdir(), *checkpoint.iterdir()]
    return {p.name: p.read_bytes() for p in paths if p.name not in {*RECORDS, "checkpoint.json"}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, bytes]:
    return learnt(tmp_path_factory.mktemp("plain"), sequences())


def changed(one: dict[str, bytes], other: dict[str, bytes]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


def test_shuffled_held_out_events_leave_all_that_is_learnt_as_it_is(plain, tmp_path):
    lines = sequences()
    for place in (LENGTH - 2, LENGTH - 1):  # of one group with those of the other
        lines[:, place] = np.roll(lines[:, place], 1)
    assert (lines[:, -2:] != sequences()[:, -2:]).all()
    assert changed(plain, learnt(tmp_path, lines)) == set()


def test_the_same_with_training_events_does_not(plain, tmp_path):
    lines = sequences()
    lines[:, 2] = np.roll(lines[:, 2], 1)
    assert {"model.safetensors", "seen_sids.npy", "arrays.safetensors", "sids.parquet"} <= changed(
        plain, learnt(tmp_path, lines)
    )
