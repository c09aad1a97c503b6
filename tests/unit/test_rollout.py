"""Candidate lists against an exhaustive search of the whole catalogue, and the command that makes them."""

from itertools import permutations

import numpy as np
import polars as pl
import pytest
import torch

import training.data.list_about as about_module
import training.rollout.__main__ as command
import training.rollout.inputs as inputs_module
from serving.index.snapshot import IndexSnapshot
from serving.inputs import RECORD
from tests.funnel_log import USERS, config, impressions
from tests.tiny_log import CONFIG, DAY, open_run, run_of, write_run
from training.data.list_store import ListStoreError, RewardWriter, StoredLists
from training.data.lists import CandidateFlag
from training.loop.checkpoint import Checkpoint, write_checkpoint
from training.loop.retention import FOLDER
from training.preset.preset import ConfigError
from training.rollout.audiences import Audiences
from training.rollout.candidates import Logged, candidates_of, choose
from training.rollout.drawn_requests import DrawnRequests
from training.rollout.drift import main as drift_main
from training.rollout.drift import measure_drift
from training.rollout.lists import RollOut
from training.rollout.live import LiveAds
from training.rollout.report import ListFigures
from training.rollout.sampling import draw

WIDE = (6, 30, 60)  # nothing is pruned
SMALL = ("rollout.list_size=5", "rollout.sampled=3", "rollout.requests=21", "rollout.seed=4")
OWN, LOGGED, EXPLORED = CandidateFlag.OWN, CandidateFlag.LOGGED, CandidateFlag.EXPLORED


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Preset and run folder, with an untrained model."""
    torch.set_num_threads(1)
    made = write_run(tmp_path_factory.mktemp("log"))
    save_model(made, seed=0)
    return made


def model_of(spec, seed=0):
    torch.manual_seed(seed)
    return spec.build().eval()


def save_model(made, *, seed, folder="model", step=3):
    spec = open_run(made)[1]
    checkpoint = Checkpoint(model=model_of(spec, seed), spec=spec, settings={}, step=step)
    write_checkpoint(made[1] / folder / FOLDER / f"step-{step:06d}", checkpoint)


def ads_of(made) -> pl.DataFrame:
    return pl.read_parquet(made[1] / "data" / "ads.parquet")


def some_ads(ads: pl.DataFrame) -> pl.DataFrame:
    """A third paused, a third created while the log runs."""
    created = pl.when(pl.col("ad_id") % 3 == 1).then(pl.col("ad_id") * 50_000).otherwise(0)
    status = pl.when(pl.col("ad_id") % 3 == 2).then(pl.lit("paused")).otherwise(pl.lit("active"))
    return ads.with_columns(created_at=created.cast(pl.Int64), status=status)


def lists_of(made, *overrides, ads=None, part="train", batch_size=7, behaviors=("conversion",)):
    """The drawn requests and their lists."""
    preset, spec, dataset = open_run(made, *SMALL, *overrides)
    drawn = DrawnRequests.draw(
        dataset, part, config=preset.rollout, target_behaviors=behaviors, min_history=3
    )
    live = LiveAds.of(dataset, ads_of(made) if ads is None else ads)
    audiences = Audiences.of(dataset, ads_of(made) if ads is None else ads, serving=preset.serving)
    maker = RollOut(
        model_of(spec), dataset, drawn, live=live, config=preset.rollout, widths=WIDE, audiences=audiences
    )
    count = len(drawn.rows)
    batches = [range(s, min(s + batch_size, count)) for s in range(0, count, batch_size)]
    return drawn, [one for batch in batches for one in maker.lists(batch)]


def plain_log_p(made, drawn, number, sids):
    """log p of SIDs [n, T] of a drawn request, one after the other through the unsplit model."""
    _, spec, dataset = open_run(made)
    slots, profile = dataset.context(drawn.groups, drawn.rows[number : number + 1])
    found = []
    for sid in sids:
        tokens = torch.tensor(np.array([[sid]], np.int64))
        with torch.no_grad():
            logits, *_ = model_of(spec)(torch.tensor(slots), torch.tensor(profile), tokens)
        found.append(sum(float(logits[t][0, 0].double().log_softmax(-1)[code]) for t, code in enumerate(sid)))
    return np.array(found)


def for_some(ads: pl.DataFrame) -> pl.DataFrame:
    """Two thirds are for one age each, which users take in turn; a flight ends while the log runs."""
    texts = (
        '{"where":{"age":{"in":["old"]}}}',
        '{"where":{"age":{"not_in":["old"]}}}',
        f'{{"end":{20 * DAY}}}',
    )
    return ads.with_columns(audience=pl.Series([texts[ad % 3] for ad in ads["ad_id"]]))


def is_for(ad: int, *, user: int, now: int) -> bool:
    return (user % 2 == 0, user % 2 == 1, now < 20 * DAY)[ad % 3]


@pytest.mark.parametrize("change", [None, some_ads, for_some])
def test_lists_are_those_of_an_exhaustive_search(run, change):
    """The best live SIDs as of the request's time, and every log p the model's own by teacher forcing."""
    ads = ads_of(run) if change is None else change(ads_of(run))
    drawn, lists = lists_of(run, 'serving.audience="on"', ads=ads)
    dataset = open_run(run)[2]
    assert len(lists) == 21
    assert (np.diff(drawn.groups.now[drawn.rows]) >= 0).all()
    events = pl.read_parquet(run[1] / "data" / "events.parquet")
    explored, outside, alive = 0, 0, set()
    for number, one in enumerate(lists):
        group = drawn.rows[number]
        assert one.user_id == dataset.log.user_ids[drawn.groups.user_row[group]]
        assert one.now == drawn.groups.now[group]
        live = ads.filter((pl.col("status") == "active") & (pl.col("created_at") <= one.now))["ad_id"]
        if change is for_some:
            live = [ad for ad in live if is_for(ad, user=one.user_id, now=one.now)]
        alive.add(len(live))
        by_sid = {}
        for ad in sorted(live):
            by_sid.setdefault(tuple(dataset.ad_sids[ad].tolist()), []).append(ad)
        every = list(by_sid)
        log_p = plain_log_p(run, drawn, number, every)
        ranked = [every[i] for i in np.argsort(-log_p, kind="stable")]
        found = one.candidates
        sids = [tuple(sid) for sid in found.sids.tolist()]
        assert len(set(sids)) == len(sids)
        np.testing.assert_allclose(
            found.log_p_ref, plain_log_p(run, drawn, number, found.sids), atol=1e-4, rtol=0
        )
        assert sids[:5] == ranked[:5]
        assert set(sids[5:8]) <= set(ranked[5:])
        explored += sum(ranked.index(sid) for sid in sids[5:8])
        basket = events.filter(
            (pl.col("user_id") == one.user_id)
            & (pl.col("timestamp") == one.now)
            & (pl.col("behavior") == "conversion")
        )["ad_id"].to_list()
        wanted = {tuple(dataset.ad_sids[ad].tolist()) for ad in basket}
        assert [ad in basket for ad in found.ads] == one.bought.tolist()
        assert wanted <= set(sids)
        for i, (sid, ad, flags) in enumerate(zip(sids, found.ads, found.flags, strict=True)):
            assert tuple(dataset.ad_sids[ad].tolist()) == sid
            kinds = OWN if i < 5 else OWN | EXPLORED if i < 8 else CandidateFlag(0)
            assert flags == kinds | (LOGGED if sid in wanted else 0)
            if kinds:
                assert ad == by_sid[sid][0]  # whatever was bought: a log of purchases shows nothing else
            else:
                assert ad in basket
        outside += len(sids) - 8
    assert outside > 0
    assert explored > 3 * 6 * 21  # were they the next ones, each list would add 5 + 6 + 7
    assert len(alive) > 1 or change is None


def test_lists_do_not_depend_on_their_batches(run):
    ads = some_ads(ads_of(run))
    whole, single = (lists_of(run, ads=ads, batch_size=size)[1] for size in (21, 1))
    for one, other in zip(whole, single, strict=True):
        assert (one.user_id, one.now, one.nth) == (other.user_id, other.now, other.nth)
        for name in ("sids", "ads", "flags"):
            np.testing.assert_array_equal(getattr(one.candidates, name), getattr(other.candidates, name))
        np.testing.assert_allclose(one.candidates.log_p_ref, other.candidates.log_p_ref, atol=1e-5)


def test_another_seed_draws_other_beams_and_requests(run):
    drawn, lists = lists_of(run)
    others, _ = lists_of(run, "rollout.seed=5")
    assert drawn.rows.tolist() != others.rows.tolist()
    every, all_lists = lists_of(run, "rollout.requests=9999")
    same, again = lists_of(run, "rollout.requests=9999", "rollout.seed=5")
    assert every.rows.tolist() == same.rows.tolist()
    assert len(all_lists) == len(every.groups)
    assert any(
        a.candidates.sids[5:8].tolist() != b.candidates.sids[5:8].tolist()
        for a, b in zip(all_lists, again, strict=True)
    )


def test_what_was_shown_is_flagged_and_what_was_clicked_is_bought(tmp_path):
    settings = config(split={"by": "days", "validation": 1, "test": 1}, target_behaviors=["click"])
    made = run_of(tmp_path, impressions(clicks=True), users=USERS, config=settings)
    drawn, lists = lists_of(made, "rollout.list_size=60", "rollout.sampled=0", behaviors=("click",))
    dataset = open_run(made)[2]
    events = pl.read_parquet(made[1] / "data" / "events.parquet")
    shown_only = 0
    for row, one in zip(drawn.rows, lists, strict=True):
        log, request = dataset.log, drawn.groups.request[row]
        of_request = events.filter(pl.Series(log.exposures.request == request))
        sids = [tuple(sid) for sid in one.candidates.sids.tolist()]

        def of(behaviors, rows=of_request):
            ads = rows.filter(pl.col("behavior").is_in(behaviors))["ad_id"].unique()
            return {tuple(dataset.ad_sids[ad].tolist()) for ad in ads}

        shown, clicked = of(["impression", "click"]), of(["click"])
        taken = set(of_request.filter(pl.col("behavior") == "click")["ad_id"])
        assert [ad in taken for ad in one.candidates.ads] == one.bought.tolist()
        assert {s for s, b in zip(sids, one.bought, strict=True) if b} <= clicked <= set(sids)
        exposed = dict.fromkeys(of_request.filter(pl.col("behavior") == "impression")["ad_id"])
        for sid, ad, flags in zip(sids, one.candidates.ads, one.candidates.flags, strict=True):
            there = [a for a in exposed if tuple(dataset.ad_sids[a].tolist()) == sid]
            assert not there or not flags & OWN or ad == there[0]
        logged = (one.candidates.flags & LOGGED) > 0
        assert {s for s, at in zip(sids, logged, strict=True) if at} == shown
        shown_only += len(shown - clicked)
    assert shown_only > 0


def test_an_ad_is_the_one_whose_impression_there_was_or_live_first():
    sids = np.array([[0, 0], [0, 0], [0, 1], [0, 1], [1, 0], [1, 0], [1, 1], [1, 1]], np.int32)
    ids = np.arange(8) * 10

    class Dataset:
        ad_ids, ad_sids = ids, sids

    snapshot = IndexSnapshot.build(ids, sids, active=np.arange(8) != 7, level_sizes=(2, 2))

    def found(*, impressions, targets):
        return candidates_of(
            np.array([[0, 1], [0, 0], [1, 0]], np.int32),
            np.array([-1, -2, -3], np.float32),
            best=2,
            log=Logged(
                impressions=np.array(impressions, np.int64),
                shown=np.array(sorted({*impressions, *targets})),
                targets=np.array(targets),
            ),
            dataset=Dataset(),
            snapshot=snapshot,
            hidden=np.array([40]),
        )

    got = found(impressions=[30, 20, 60], targets=[10, 20, 70])
    assert got.sids.tolist() == [[0, 1], [0, 0], [1, 0], [1, 1]]
    # The first that was shown; the first, 10 being known by its purchase alone; the first that is not late;
    # bought, and paused today.
    assert got.ads.tolist() == [30, 0, 50, 70]
    assert got.flags.tolist() == [OWN | LOGGED, OWN | LOGGED, OWN | EXPLORED, LOGGED]
    assert got.bought.tolist() == [False, False, False, True]
    other = found(impressions=[30, 20, 60], targets=[30, 0])
    assert other.ads.tolist() == [30, 0, 50]
    assert other.bought.tolist() == [True, True, False]
    assert found(impressions=[], targets=[30, 10]).ads.tolist() == [20, 0, 50]


def test_no_ad_that_the_search_found_moves_with_the_outcome(tmp_path):
    """Of one day of all users, what was bought is changed to the other ad of its SID."""
    made = write_run(tmp_path / "one")
    events = pl.read_parquet(tmp_path / "one" / "source" / "events.parquet")
    that_day = (pl.col("timestamp") // DAY == 30) & (pl.col("behavior") == "conversion")
    twin_ad = pl.when(that_day).then(pl.col("ad_id") // 2 * 2 + 1 - pl.col("ad_id") % 2).otherwise("ad_id")
    changed = run_of(tmp_path / "two", events.with_columns(ad_id=twin_ad), users=12, config=CONFIG)
    for _, run in (made, changed):  # each two ads share a SID
        sids = pl.read_parquet(run / "tokenizer" / "sids.parquet").sort("ad_id")
        codes = [pl.col(f"s{t}").gather(pl.col("ad_id") // 2 * 2) for t in (1, 2, 3)]
        sids.with_columns(codes).write_parquet(run / "tokenizer" / "sids.parquet")
    found = []
    for run in (made, changed):
        lists = lists_of(run, "rollout.requests=9999", "rollout.list_size=20")[1]
        found.append({one.user_id: one for one in lists if one.now // DAY == 30})
    assert len(found[0]) == 12
    differ, shared = 0, 0
    for user, one in found[0].items():
        twin = found[1][user]
        for name in ("sids", "ads", "log_p_ref"):
            mine, theirs = (getattr(x.candidates, name)[:23] for x in (one, twin))
            np.testing.assert_array_equal(mine, theirs, err_msg=name)
        differ += (one.bought[:23] != twin.bought[:23]).any()
        logged = (one.candidates.flags & LOGGED > 0) & (one.candidates.flags & OWN > 0)
        shared += (logged & ~one.bought).sum()  # another ad of the SID was bought
    assert differ > 3
    assert shared > 0


def test_beams_are_drawn_by_their_probability_without_replacement():
    """Against the probability of each set of two by drawing one after the other."""
    p = np.array([0.4, 0.3, 0.2, 0.07, 0.03]) * 0.5  # what the search found is not everything
    share = p / p.sum()
    expected = dict.fromkeys([(i, j) for i in range(5) for j in range(i + 1, 5)], 0.0)
    for first, second in permutations(range(5), 2):
        expected[tuple(sorted((first, second)))] += share[first] * share[second] / (1 - share[first])
    random, count = np.random.default_rng(0), 40_000
    seen = dict.fromkeys(expected, 0)
    for _ in range(count):
        seen[tuple(draw(np.log(p), 2, random=random).tolist())] += 1
    for pair, probability in expected.items():
        error = np.sqrt(probability * (1 - probability) / count)
        assert abs(seen[pair] / count - probability) < 4.5 * error, pair


def test_there_may_be_fewer_beams_than_a_list_has_places():
    random = np.random.default_rng(0)
    assert draw(np.zeros(2), 5, random=random).tolist() == [0, 1]
    assert draw(np.zeros(0), 5, random=random).tolist() == []
    assert choose(np.zeros(3), best=5, sampled=2, random=random).tolist() == [0, 1, 2]
    assert choose(np.zeros(6), best=5, sampled=2, random=random).tolist() == [0, 1, 2, 3, 4, 5]
    chosen = choose(np.zeros(100), best=5, sampled=2, random=random)
    assert chosen[:5].tolist() == [0, 1, 2, 3, 4]
    assert len(set(chosen.tolist())) == 7


def test_widths_that_cannot_be(run):
    with pytest.raises(ConfigError, match="rollout: width plan: expected 3 widths"):
        open_run(run, "rollout.widths=64-128")


def roll_out(made, monkeypatch, *options, folder="model"):
    monkeypatch.setattr(command, "PER_SHARD", 8)
    arguments = ["--config", str(made[0]), "--run", str(made[1]), "--model", str(made[1] / folder)]
    arguments += [word for setting in SMALL for word in ("--set", setting)]
    monkeypatch.setattr("sys.argv", ["rollout", *arguments, *options])
    command.main()


@pytest.fixture
def own_run(run, tmp_path):
    """A run whose lists are its own."""
    for name in ("data", "tokenizer", "model"):
        (tmp_path / name).symlink_to(run[1] / name)
    return run[0], tmp_path


def shards(made, name="train"):
    return {path.name: path.read_bytes() for path in (made[1] / "lists" / name).glob("part-*")}


def test_the_command_makes_the_lists_of_a_part(own_run, monkeypatch, capsys):
    roll_out(own_run, monkeypatch)
    said = capsys.readouterr().out
    assert "21 lists, " in said
    assert "ms of processor time each" in said
    stored = StoredLists.open(own_run[1] / "lists" / "train")
    assert f"{ListFigures.of(stored)}" in said
    assert sorted(shards(own_run)) == [f"part-0000{i}.parquet" for i in range(3)]
    assert len(stored) == 21
    _, spec, dataset = open_run(own_run)
    stored.check(tokenizer_id=spec.tokenizer_id)
    groups = dataset.groups("train", target_behaviors=("conversion",), min_history=3)
    assert (stored.rows_of(dataset, groups) >= 0).sum() == 21
    roll_out(own_run, monkeypatch, "--part", "test", "--requests", "4", "--name", "held-out")
    assert len(StoredLists.open(own_run[1] / "lists" / "held-out")) == 4
    roll_out(own_run, monkeypatch)
    assert "train: up to date" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../kept", "..", ".", "", "a/b", "a b", "{run}/kept", "x\n"])
def test_a_name_that_leads_elsewhere_is_refused(own_run, monkeypatch, name):
    kept = own_run[1] / "kept"
    kept.mkdir()
    (kept / "about.json").write_text("mine")
    with pytest.raises(SystemExit, match="error: name of lists: expected letters, digits"):
        roll_out(own_run, monkeypatch, "--fresh", "--name", name.format(run=own_run[1]))
    assert (kept / "about.json").read_text() == "mine"
    assert not (own_run[1] / "lists").exists()


def test_a_folder_of_something_else_keeps_its_record(own_run, monkeypatch):
    folder = own_run[1] / "lists" / "train"
    folder.mkdir(parents=True)
    for file in (RECORD, "model.bin"):
        (folder / file).write_text("{}")
    with pytest.raises(SystemExit, match="train: expected a folder of candidate lists alone, got mod"):
        roll_out(own_run, monkeypatch)
    assert sorted(path.name for path in folder.iterdir()) == [RECORD, "model.bin"]


def test_a_stopped_roll_out_goes_on_where_it_was(own_run, monkeypatch, capsys):
    roll_out(own_run, monkeypatch)
    whole = shards(own_run)
    monkeypatch.setattr("sys.argv", ["x"])
    made, real = [], RollOut.lists

    def lists(self, numbers):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(numbers)
        return real(self, numbers)

    monkeypatch.setattr(RollOut, "lists", lists)
    with pytest.raises(SystemExit, match="stopped; the same command goes on"):
        roll_out(own_run, monkeypatch, "--fresh")
    left = own_run[1] / "lists" / "train"
    assert sorted(path.name for path in left.iterdir()) == ["about.json", *sorted(whole)[:2]]
    with pytest.raises(ListStoreError, match="expected 3 shards, at least one, got 2: make rollout"):
        StoredLists.open(left)
    made.clear()
    roll_out(own_run, monkeypatch)
    assert [list(numbers) for numbers in made] == [list(range(16, 21))]
    assert shards(own_run) == whole
    (left / "part-00001.parquet").write_bytes(b"PAR1")  # damaged: named; once removed, it is made again
    with pytest.raises(SystemExit, match=r"error: .*part-00001\.parquet: expected a readable table"):
        roll_out(own_run, monkeypatch)
    (left / "part-00001.parquet").unlink()
    made.clear()
    roll_out(own_run, monkeypatch)
    assert [list(numbers) for numbers in made] == [list(range(8, 16))]
    assert shards(own_run) == whole


def test_lists_of_other_settings_or_weights_are_made_again(own_run, run, monkeypatch, capsys):
    roll_out(own_run, monkeypatch)
    whole = shards(own_run)
    folder = own_run[1] / "lists" / "train"
    RewardWriter(StoredLists.open(folder), "a").folder.mkdir()
    roll_out(own_run, monkeypatch, "--set", "rollout.batch_size=3")
    assert "train: up to date" in capsys.readouterr().out
    roll_out(own_run, monkeypatch, "--set", "rollout.sampled=1")
    assert "train: out of date: rollout.sampled 3 -> 1" in capsys.readouterr().out
    assert not (folder / "rewards.a").exists()
    roll_out(own_run, monkeypatch)
    assert shards(own_run) == whole
    monkeypatch.setattr(inputs_module, "FORMAT", 1)
    monkeypatch.setattr(about_module, "FORMAT", 1)
    roll_out(own_run, monkeypatch)  # as another release made them
    monkeypatch.undo()
    with pytest.raises(ListStoreError, match="expected format 2"):
        StoredLists.open(folder)
    roll_out(own_run, monkeypatch)
    assert "train: out of date: format 1 -> 2" in capsys.readouterr().out
    assert shards(own_run) == whole
    save_model(run, seed=1, folder="other")
    (own_run[1] / "other").symlink_to(run[1] / "other")
    roll_out(own_run, monkeypatch, folder="other")
    assert "train: out of date: weights " in capsys.readouterr().out
    assert shards(own_run) != whole


def test_a_model_of_another_tokenizer_is_refused(run, tmp_path, monkeypatch):
    _, spec, _ = open_run(run)
    other = type(spec)(**{**vars(spec), "tokenizer_id": "another"})
    checkpoint = Checkpoint(model=model_of(other), spec=other, settings={})
    write_checkpoint(tmp_path / FOLDER / "step-000001", checkpoint)
    with pytest.raises(SystemExit, match=r"error: .*tokenizer: expected tokenizer another \(the model's\)"):
        roll_out(run, monkeypatch, "--name", "refused", folder=tmp_path)
    assert not (run[1] / "lists" / "refused").exists()


def test_drift_and_live_mass_equal_plain_sums(own_run, monkeypatch):
    roll_out(own_run, monkeypatch)
    stored = StoredLists.open(own_run[1] / "lists" / "train")
    _, spec, dataset = open_run(own_run)
    groups = dataset.groups("train", target_behaviors=("conversion",), min_history=3)
    ads = some_ads(ads_of(own_run))
    rows = stored.rows_of(dataset, groups)
    looked_at = np.flatnonzero(rows >= 0)

    def measure(seed, requests=99):
        return measure_drift(
            model_of(spec, seed),
            stored,
            dataset=dataset,
            groups=groups,
            live=LiveAds.of(dataset, ads),
            requests=requests,
            progress=False,
        )

    same, other = measure(0), measure(1)
    np.testing.assert_allclose(same.log_ratio, 0, atol=1e-5)
    assert other.requests == 21
    model = model_of(spec, 1)
    order = looked_at[np.argsort(groups.now[looked_at], kind="stable")]
    for i, group in enumerate(order):
        slots, profile = dataset.context(groups, np.array([group]))
        created = (pl.col("status") == "active") & (pl.col("created_at") <= int(groups.now[group]))
        live = sorted({tuple(dataset.ad_sids[ad].tolist()) for ad in ads.filter(created)["ad_id"]})
        one = stored.get(int(rows[group]))
        own = one.sids[(one.flags & OWN) > 0]
        tokens = torch.tensor([[*live, *map(tuple, own.tolist())]])
        with torch.no_grad():
            logits, *_ = model(torch.tensor(slots), torch.tensor(profile), tokens)
        log_p = sum(
            logits[t][0].double().log_softmax(-1)[range(tokens.shape[1]), tokens[0, :, t]] for t in range(3)
        ).numpy()
        assert other.live_mass[i] == pytest.approx(np.exp(log_p[: len(live)]).sum(), rel=1e-4)
        expected = (log_p[len(live) :] - one.log_p_ref[(one.flags & OWN) > 0]).mean()
        assert other.log_ratio[i] == pytest.approx(expected, abs=1e-4)
    assert abs(other.log_ratio.mean()) > 1e-3
    np.testing.assert_allclose(measure(1, requests=5).live_mass, other.live_mass[::5], rtol=1e-5)


def test_the_drift_command_says_both_figures(own_run, monkeypatch, capsys):
    roll_out(own_run, monkeypatch)
    options = ["--config", str(own_run[0]), "--run", str(own_run[1]), "--requests", "5"]
    monkeypatch.setattr("sys.argv", ["drift", *options])
    drift_main()
    assert "5 requests: mean log(p / p_ref) +0.0000, mass on live SIDs 0." in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["drift", *options, "--part", "test"])
    with pytest.raises(SystemExit, match="expected lists for requests of this part, got none"):
        drift_main()


def test_an_up_to_date_record_is_not_believed_without_its_files(own_run, monkeypatch, capsys):
    roll_out(own_run, monkeypatch)
    folder = own_run[1] / "lists" / "train"
    assert (folder / RECORD).is_file()
    (folder / "about.json").unlink()
    roll_out(own_run, monkeypatch)
    assert "about.json is gone" in capsys.readouterr().out
    assert len(StoredLists.open(folder)) == 21
