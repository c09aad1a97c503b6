"""RecoGym as a judge: its events as our tables, what goes over the pipe, and a round with RecoGym itself."""

import sys
import textwrap
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.simulation.recogym.__main__ import BASELINE, measures, rows_of
from benchmarks.simulation.recogym.play import APART, PYTHON, STEP, Played, WorldError, play
from benchmarks.simulation.recogym.policies import Popular, Uniform
from benchmarks.simulation.recogym.tables import embeddings_of, events_of, write_tables
from serving.model.features import BEHAVIORS

SHOWN, VIEW, CLICK = (BEHAVIORS[name] for name in ("impression", "click", "conversion"))
# user, step, product, behavior, chance
EVENTS = [
    (0, 0, 2, VIEW, 0.0),
    (1, 0, 1, VIEW, 0.0),
    (0, 1, 1, SHOWN, 0.5),
    (0, 1, 1, CLICK, 0.5),
    (0, 2, 2, VIEW, 0.0),
    (1, 1, 0, SHOWN, 0.25),
    (0, 3, 0, SHOWN, 0.125),
    (2, 0, 0, VIEW, 0.0),
]
BIDS = np.array([1.0, 2.0, 4.0])


def played(rows=EVENTS):
    user, step, product, behavior, chance = (np.array(column) for column in zip(*rows, strict=True))
    return Played(user, user * APART + step * STEP, product, behavior.astype(np.int32), chance)


@pytest.fixture
def interpreter(tmp_path):
    """An interpreter that runs this text in the place of RecoGym's process."""

    def make(text):
        script, path = tmp_path / "world.py", tmp_path / "python"
        script.write_text("import json, sys\n" + textwrap.dedent(text))
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
        path.chmod(0o755)
        return path

    return make


def test_events_become_rows_and_an_ad_with_its_click_one_request():
    table = events_of(played(), BIDS)
    assert table["behavior"].to_list() == [
        *("click", "click", "impression", "conversion", "click", "impression", "impression", "click")
    ]
    assert table["request_id"].to_list() == [1, 2, 3, 3, 4, 5, 6, 7]
    assert table["place"].to_list() == [*("organic", "organic", "ad", "ad", "organic", "ad", "ad", "organic")]
    assert table["value"].to_list() == [4.0, 2.0, 0.0, 2.0, 4.0, 0.0, 0.0, 1.0]
    assert table["timestamp"].to_list()[2:4] == [60, 60]
    assert table["timestamp"].to_list()[5] == APART + 60


def test_tables_are_what_the_preset_reads(tmp_path):
    write_tables(played(), BIDS, tmp_path)
    assert pl.read_parquet(tmp_path / "users.parquet")["user_id"].to_list() == [0, 1, 2]
    ads = pl.read_parquet(tmp_path / "ads.parquet")
    assert ads["ad_id"].to_list() == [0, 1, 2]
    np.testing.assert_allclose(np.array(ads["embedding"].to_list()), embeddings_of(played(), 3))


def test_products_that_the_same_users_view_lie_together():
    rows = [(user, step, step + 2 * (user % 2), VIEW, 0.0) for user in range(8) for step in (0, 1)]
    found = embeddings_of(played(rows), 4)
    gaps = np.linalg.norm(found[:, None] - found[None], axis=2)
    assert gaps[0, 1] < 1e-6 < 0.5 < gaps[0, 2]


def test_measures_are_means_of_users_who_saw_an_ad():
    found = measures(played(), BIDS)
    np.testing.assert_allclose(found["clicks"], [500, 0])
    np.testing.assert_allclose(found["expected"], [1000 * (0.5 + 0.125) / 2, 250])
    np.testing.assert_allclose(found["value"], [1000 * (0.5 * 2 + 0.125 * 1) / 2, 250])


def test_gains_are_of_the_same_users():
    random = np.random.default_rng(0)
    base = [{"value": random.random(50) + 0.5} for _ in range(3)]
    found = {BASELINE: base, "better": [{"value": of["value"] * 1.1} for of in base]}
    row = rows_of(found)["better"]["value"]
    for key in ("ratio", "low", "high"):  # each user gains a tenth, so every draw of users does
        assert row[key] == pytest.approx(0.1)


def test_a_policy_is_told_what_its_users_did_and_shows_what_it_says(interpreter):
    """Rounds against a process that writes down what it was answered."""
    python = interpreter("""
        def say(events, asks):
            print(json.dumps({"events": events, "asks": asks}), flush=True)
        say([[7, 0, 2, "view", 0], [9, 0, 1, "view", 0]], [7, 9])
        first = json.loads(sys.stdin.readline())
        say([[9, 1, first[1], "shown", 0.5], [9, 1, first[1], "click", 0.5]], [9])
        second = json.loads(sys.stdin.readline())
        say([[9, 2, second[0], "shown", 0.25]], [])
    """)
    asked = []

    def policy(histories):
        asked.append([(h.ads[:], h.behaviors[:], h.times[:], h.now) for h in histories])
        return [len(h.ads) for h in histories]

    found = play(policy, {}, first=7, users=3, python=python)
    start = 9 * APART
    assert asked[0] == [
        ([2], [VIEW], [7 * APART], 7 * APART + STEP),
        ([1], [VIEW], [start], start + STEP),
    ]
    times = [start, start + STEP, start + STEP]
    assert asked[1] == [([1, 1, 1], [VIEW, SHOWN, CLICK], times, start + 2 * STEP)]
    assert found.product.tolist() == [2, 1, 1, 1, 3]
    assert found.behavior.tolist() == [VIEW, VIEW, SHOWN, CLICK, SHOWN]
    assert found.chance.tolist() == [0, 0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ImportError('no module named recogym')", "before its users did: .*no module named recogym"),
        ("", "RecoGym ended before its users did: without a word"),
        ("print('hello')", "expected a line of events and asks, got 'hello"),
        ("print(json.dumps([1]))", r"expected a line of events and asks, got '\[1\]"),
    ],
)
def test_a_process_that_is_not_recogym_is_refused(interpreter, text, message):
    with pytest.raises(WorldError, match=message):
        play(Uniform(3, seed=0), {}, first=0, users=1, python=interpreter(text))


def test_without_its_virtual_environment_it_says_how_to_get_one(tmp_path):
    with pytest.raises(
        WorldError, match="nowhere: expected a virtual environment with RecoGym, .* make recogym"
    ):
        play(Uniform(3, seed=0), {}, first=0, users=1, python=tmp_path / "nowhere")


@pytest.mark.skipif(not Path(PYTHON).exists(), reason="RecoGym is not installed (make recogym)")
def test_recogym_itself():
    """Its users are the same for all policies until they are shown something; a click follows its ad."""
    world = {"random_seed": 3, "num_products": 8, "prob_leave_bandit": 0.1}
    one = play(Uniform(8, seed=0), world, first=5, users=20)
    same = play(Uniform(8, seed=0), world, first=5, users=20)
    other = play(Popular(np.arange(8)), world, first=5, users=20)
    for name in vars(one):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert set(one.user.tolist()) == set(range(5, 25))
    for user in range(5, 25):
        firsts = []
        for of in (one, other):
            mine = of.user == user
            shown = np.flatnonzero(of.behavior[mine] == SHOWN)
            firsts.append(of.product[mine][: shown[0] if len(shown) else None].tolist())
        assert firsts[0] == firsts[1]
    assert set(other.product[other.behavior == SHOWN].tolist()) == {7}
    shown = one.behavior == SHOWN
    assert ((one.chance[shown] > 0.002) & (one.chance[shown] < 0.3)).all()
    for at in np.flatnonzero(one.behavior == CLICK):
        mine = np.flatnonzero((one.user == one.user[at]) & shown & (one.time == one.time[at]))
        assert one.product[mine].tolist() == [one.product[at]]
