"""The report of a tokenizer: its tree against plain loops, one page that needs nothing else, its keys."""

import json
import math
import re
import sys

import numpy as np
import polars as pl
import pytest

from serving.embedding.sentence_model import SentenceModel
from tests.unit.test_tokenizer_joined import needs_extra
from training.data.prepare import prepare
from training.preset.data import DataConfig
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer import __main__ as command
from training.tokenizer.__main__ import run as tokenize
from training.tokenizer.given_sids import GivenSids
from training.tokenizer.report.figures import Figures
from training.tokenizer.report.map import draw_map
from training.tokenizer.report.plots import recall_bars
from training.tokenizer.report.stages import BEST_SELLER, CODES, LEARNT, WORDS, Recall, measure_recall
from training.tokenizer.report.tree import Words, grow, spread_codes
from training.tokenizer.tokenizer import Tokenizer

DAY = 86_400
KEYS = ("r1_warm_ratio", "r1_heldout_ratio", "r1_few_ratio", "collision", "collision_floor", "compression")
KEYS += ("gini_1", "gini_2", "dead_codes", "fit_seconds", "fit_peak_gb", "encode_ads_per_s")


# Tree


def test_words_are_those_that_set_a_cluster_apart():
    texts = ["red apple 12 oz"] * 3 + ["green apple 12 oz"] * 5 + ["apple pie"] * 2
    rows = np.array([0, 1, 2, 8])
    weight = {"red": 0.75 * math.log(0.75 / 0.3), "pie": 0.25 * math.log(0.25 / 0.2)}
    assert Words(texts).typical(rows) == tuple(sorted(weight, key=weight.get, reverse=True))
    assert Words(texts).frequent(rows, count=1) == (("red apple 12 oz", 3),)
    assert Words(["12", ""]).typical(np.array([0])) == ()


def test_a_tree_counts_its_ads():
    random = np.random.default_rng(0)
    codes = random.integers(0, 4, (200, 2))
    tree = grow(codes, Words(["some text"] * 200), first=[2, 0, 9], children=2)
    assert [node.codes for node in tree] == [(2,), (0,)]  # no ad has 9
    for node in tree:
        below = np.bincount(codes[codes[:, 0] == node.codes[0], 1], minlength=4)
        assert node.ads == below.sum()
        assert [child.ads for child in node.children] == sorted(below, reverse=True)[:2]
        assert all(child.codes[0] == node.codes[0] for child in node.children)


def test_codes_are_shown_from_the_fullest_to_the_emptiest():
    codes = np.repeat([7, 3, 5, 1], [4, 9, 1, 6])
    assert spread_codes(codes, count=3) == [3, 7, 5]
    assert spread_codes(codes, count=9) == [3, 1, 7, 5]


# Map


@pytest.mark.parametrize(("columns", "drawn"), [(("price",), False), (("price", "age"), True)])
def test_a_map_takes_two_dimensions_or_more(columns, drawn):
    numbers = np.random.default_rng(0).normal(size=(90, 2))
    ads = pl.DataFrame(numbers, schema=["price", "age"]).with_columns(
        ad_id=np.arange(90), account_id=pl.lit("a"), conversion_type=pl.lit("b")
    )
    ads = ads.with_columns(text=pl.format("text {}", "ad_id"))
    config = TokenizerConfig(embedding="given", codebook_sizes=(4, 4), hash_size=8)
    tokenizer = Tokenizer.fit(ads, config, numeric_columns=columns)
    found = draw_map(tokenizer, ads, tokenizer.encode(ads))
    assert (found is not None) == drawn
    if found is not None:
        assert found.places.shape == (90, 2)
        assert np.isfinite(found.places).all()


# The whole


@pytest.mark.parametrize("distinct", [1, 19])
def test_a_map_needs_distinct_vectors(distinct):
    class Few:
        def vectors(self, ads):
            return np.random.default_rng(0).normal(size=(distinct, 3))[ads["ad_id"].to_numpy() % distinct]

    ads = pl.DataFrame({"ad_id": range(90)}).with_columns(text=pl.format("text {}", "ad_id"))
    assert draw_map(Few(), ads, np.zeros((90, 2), int)) is None


def source(folder, *, users=60):
    """Purchases in which kind i is bought with kind i + 16, whose texts share no word of their own."""
    random, rows = np.random.default_rng(0), []
    kinds = ["".join(random.choice(list("abcdefgh"), 6)) for _ in range(32)]
    texts = [f"{kind} <b>{size}</b>" for kind in kinds for size in ("small", "large")]
    for user in range(users):
        for day in range(49):
            kind = int(random.integers(16))
            for ad in (kind * 2 + int(random.integers(2)), (kind + 16) * 2 + int(random.integers(2))):
                rows.append((user, ad, day * DAY + user, "conversion", 1.0, "made up"))
    names = ["user_id", "ad_id", "timestamp", "behavior", "value", "provenance"]
    folder.mkdir()
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "events.parquet")
    pl.DataFrame({"user_id": np.arange(users)}).write_parquet(folder / "users.parquet")
    ads = pl.DataFrame(
        {
            "ad_id": np.arange(128),
            "item_id": [f"i{i}" for i in range(128)],
            "account_id": ["a"] * 128,
            "conversion_type": ["plain"] * 128,
            "text": texts * 2,
            "created_at": np.zeros(128, np.int64),
            "status": ["active"] * 128,
        }
    )
    ads.write_parquet(folder / "ads.parquet")


CONTENT = {
    "data": {
        "source": "parquet",
        "split": {"by": "weeks", "validation": 1, "test": 1},
        "target_behaviors": ["conversion"],
    },
    "tokenizer": {
        "codebook_sizes": [4, 6],
        "hash_size": 8,
        "embedding_dim": 8,
        "cooccurrence": {"steps": 25},
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder of a preset, prepared data, and a tokenizer whose report has been made."""
    folder = tmp_path_factory.mktemp("report")
    source(folder / "source")
    content = CONTENT | {"data": CONTENT["data"] | {"path": str(folder / "source")}}
    (folder / "preset.yaml").write_text(json.dumps(content))
    prepare(DataConfig(**content["data"]), folder / "data")
    for words in ([], ["report"]):
        call(folder, *words)
    return folder


def call(folder, *words, out="tokenizer"):
    """The command line, in this process."""
    arguments = [*words, "--config", folder / "preset.yaml", "--data", folder / "data", "--out", folder / out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tokenizer", *map(str, arguments)])
        command.main()


def test_report_json_has_what_it_promises(place):
    report = json.loads((place / "tokenizer" / "report.json").read_text())
    assert set(KEYS) <= report.keys()
    assert all(isinstance(report[key], float | int) for key in KEYS if not key.startswith("r1"))
    assert report["collision"] >= report["collision_floor"]
    assert report["recall"]["learnt"]["warm"]["10"] > 1.5 * report["recall"]["words"]["warm"]["10"]
    assert report["recall"]["codes"]["kept out"] is None


def test_the_page_needs_nothing_else_and_says_what_figures_mean(place):
    page = (place / "tokenizer" / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=['"](?!data:image/svg)""", page)
    assert page.count("<img") == 4  # recall, collision, levels, tree; too few texts for a map
    assert "<b>small</b>" not in page  # texts of ads are no markup
    assert "&lt;b&gt;small&lt;/b&gt;" in page
    assert "share of ads that share their SID with at least one other ad" in page
    assert "made up" in page  # where the data come from goes where figures go
    for value in (".896 (UAE)", "18.26 % (MGMR)", "1.07 (MGMR)", "99.36 % (RQ-Kmeans+)"):
        assert value in page


def test_equal_inputs_give_equal_pages(place):
    before = (place / "tokenizer" / "report.html").read_bytes()
    call(place, "report")
    assert (place / "tokenizer" / "report.html").read_bytes() == before


def test_without_baskets_texts_or_learning_the_rest_is_shown(place):
    """An embedder that does not learn, behaviors that nobody had, and given SIDs."""
    plain = TokenizerConfig(codebook_sizes=(4, 6), hash_size=8, embedding_dim=8, embedding="tfidf_svd")
    tokenize(plain, place / "data", out_dir=place / "plain")
    figures = Figures.measure(place / "plain", data_dir=place / "data", behaviors=["conversion"])
    assert figures.recall.ratio("warm") == 1  # it is what it is compared with
    assert figures.recall.ratio("kept out") == 1
    alone = Figures.measure(place / "plain", data_dir=place / "data", behaviors=["click"])
    assert alone.recall is None
    assert alone.to_json()["r1_warm_ratio"] is None
    ads = pl.read_parquet(place / "data" / "ads.parquet")
    sids = ads.select("ad_id", s1=pl.col("ad_id") % 5, s2=pl.col("ad_id") // 5)
    (place / "given").mkdir()
    config = TokenizerConfig(sids="given", given_sizes=(None, None))
    GivenSids.fit(sids.rename({"s1": "sid_0", "s2": "sid_1"}), config).save(place / "given")
    sids.write_parquet(place / "given" / "sids.parquet")
    given = Figures.measure(place / "given", data_dir=place / "data", behaviors=["conversion"])
    assert (given.recall, given.map, given.lost) == (None, None, [])
    assert given.to_json()["collision_floor"] is None
    assert given.to_json()["collision"] == 0
    call(place, "report", out="given")
    assert "Tokenizer" in (place / "given" / "report.html").read_text()


def test_a_group_without_texts_is_not_known(place):
    """Every text is in many baskets, so none is in fewer than five."""
    words = (place / "tokenizer" / "report.json").read_text()
    report = json.loads(words, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["recall_anchors"]["few"] == 0 < report["recall_anchors"]["warm"]
    assert (report["recall"]["learnt"]["few"], report["r1_few_ratio"]) == (None, None)
    page = (place / "tokenizer" / "report.html").read_text()
    assert re.search(r"R@1, few</td><td class='figure'>not known<", page)


def test_texts_that_share_no_word_are_measured_without_words(place):
    ads = pl.read_parquet(place / "data" / "ads.parquet").sort("ad_id")
    kind = ads["text"].rank("dense").cast(pl.Int64)
    vectors = np.random.default_rng(0).normal(size=(65, 4))[kind.to_numpy()]
    ads = ads.with_columns(text=pl.format("solo{}", kind), embedding=pl.Series(vectors.tolist()))
    tokenizer = Tokenizer.fit(ads, TokenizerConfig(embedding="given", codebook_sizes=(4, 6), hash_size=8))
    found = measure_recall(
        tokenizer, ads, data_dir=place / "data", behaviors=["conversion"], fitted_until=DAY
    )
    assert found.anchors["warm"] > 0
    assert list(found.stages) == [BEST_SELLER, LEARNT, CODES]
    assert found.ratio("warm") is None
    assert recall_bars(found).startswith("data:image/svg")


@needs_extra
def test_sentence_vectors_are_computed_once_a_run(place, monkeypatch):
    """Fit, encode, an older tokenizer of another run and the report read one file of vectors."""
    asked, steps = [], SentenceModel.steps
    monkeypatch.setattr(SentenceModel, "steps", lambda self, text: asked.append(text) or steps(self, text))
    config = TokenizerConfig(embedding="minilm", codebook_sizes=(4, 6), hash_size=8, embedding_dim=8)
    older, newer = place / "run_a" / "tokenizer", place / "run_b" / "tokenizer"
    texts = pl.read_parquet(place / "data" / "ads.parquet")["text"].unique()
    tokenize(config, place / "data", out_dir=older)
    assert [asked.count(text) for text in texts] == [1] * 64
    tokenize(config.model_copy(update={"align_to": str(older)}), place / "data", out_dir=newer)
    assert [asked.count(text) for text in texts] == [2] * 64
    Figures.measure(newer, data_dir=place / "data", behaviors=["conversion"])
    assert [asked.count(text) for text in texts] == [2] * 64


def test_no_partner_in_words_gives_no_ratio():
    stages = {WORDS: {"few": {1: 0.0}}, LEARNT: {"few": {1: 0.2}}, CODES: {}}
    assert Recall(stages, {"few": 9}).ratio("few") is None


def test_what_is_missing_is_named(place, capsys):
    with pytest.raises(SystemExit):
        call(place, "report", out="nothing")
    assert "expected a readable file of a tokenizer" in capsys.readouterr().err
    short = pl.read_parquet(place / "tokenizer" / "sids.parquet")[1:]
    tokenize(TokenizerConfig(**CONTENT["tokenizer"]), place / "data", out_dir=place / "short")
    short.write_parquet(place / "short" / "sids.parquet")
    with pytest.raises(SystemExit):
        call(place, "report", out="short")
    assert "expected a SID for every ad, 1 have none: make tokenize" in capsys.readouterr().err
