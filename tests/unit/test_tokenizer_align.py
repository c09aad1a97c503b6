"""Codes of two tokenizers paired, against brute force; a re-fit that begins with the older codes."""

import itertools
import json

import numpy as np
import polars as pl
import pytest

from tests.unit.test_tokenizer_tokenizer import CONFIG, catalogue
from training.tokenizer import kinds
from training.tokenizer.__main__ import run
from training.tokenizer.align import align, match_codes
from training.tokenizer.alignment import ALIGNMENT, NONE, Alignment
from training.tokenizer.given_sids import GivenSids
from training.tokenizer.tokenizer import Tokenizer

CONFIG = CONFIG.model_copy(update={"embedding": "tfidf_svd", "quantizer": "rq_kmeans"})


def matched(vectors, old, new, sizes=((5,), (5,))):
    old, new = (np.asarray(codes).reshape(len(vectors), len(sizes[0])) for codes in (old, new))
    return match_codes(vectors, old=old, new=new, old_sizes=sizes[0], new_sizes=sizes[1])


@pytest.mark.parametrize("seed", range(5))
def test_as_many_ads_as_can_be_stay_with_their_code(seed):
    random = np.random.default_rng(seed)
    old, new = random.integers(0, 5, (2, 60))
    (source,), (agreement,) = matched(random.normal(size=(60, 3)), old, new)
    best = max((np.array(p)[new] == old).sum() for p in itertools.permutations(range(5)))
    assert sorted(source) == list(range(5))
    assert (source[new] == old).sum() == best
    assert agreement == best / 60


def test_equal_counts_are_decided_by_the_nearer_centroid():
    """Every new code shares one ad with every old one, and lies where another one lay."""
    old = np.repeat(np.arange(5), 5)
    new = np.tile(np.arange(5), 5)
    vectors = np.zeros((25, 2))
    vectors[:, 0] = 10 * ((new + 2) % 5) + 7 * old
    vectors[:, 1] = 5 * old
    (source,), _ = matched(vectors, old, new)
    means = [np.array([vectors[codes == c].mean(axis=0) for c in range(5)]) for codes in (old, new)]
    costs = ((means[1][:, None] - means[0][None]) ** 2).sum(axis=2)
    least = min(costs[range(5), p].sum() for p in itertools.permutations(range(5)))
    assert costs[range(5), source].sum() == pytest.approx(least)


def test_renamed_codes_are_found_again_level_by_level():
    random = np.random.default_rng(0)
    old = np.stack([random.integers(0, 5, 400), random.integers(0, 7, 400)], axis=1)
    first, second = random.permutation(5), random.permutation(7)
    new = np.stack([first[old[:, 0]], second[old[:, 1]]], axis=1)
    sources, agreement = matched(random.normal(size=(400, 4)), old, new, ((5, 7), (5, 7)))
    np.testing.assert_array_equal(sources[0], np.argsort(first))
    np.testing.assert_array_equal(sources[1], np.argsort(second))
    assert agreement == (1.0, 1.0)


def test_a_code_too_many_goes_on_from_the_nearest_and_one_without_ads_from_none():
    vectors = np.array([[0.0, 0], [0, 0], [9, 9], [9, 9], [8, 9]])
    (source,), _ = matched(vectors, [0, 0, 1, 1, 1], [2, 2, 0, 0, 1], ((2,), (4,)))
    assert source.tolist() == [1, 1, 0, NONE]


def test_fewer_new_codes_than_old_ones():
    vectors = np.arange(6.0)[:, None]
    (source,), (agreement,) = matched(vectors, [0, 0, 1, 2, 2, 3], [1, 1, 1, 0, 0, 0], ((4,), (2,)))
    assert source.tolist() == [2, 0]
    assert agreement == 4 / 6


def test_no_ad_is_refused():
    with pytest.raises(ValueError, match="expected ads that both tokenizers encode, got none"):
        matched(np.zeros((0, 2)), np.zeros((0, 1), int), np.zeros((0, 1), int))


@pytest.fixture(scope="module")
def older():
    return Tokenizer.fit(catalogue(), CONFIG)


def test_a_refit_begins_with_the_older_codes(older):
    ads, other = catalogue(), CONFIG.model_copy(update={"seed": 5})
    alone = align(Tokenizer.fit(ads, other), older, ads=ads)
    begun = align(Tokenizer.fit(ads, other, older=older), older, ads=ads)
    assert begun.agreement[1] > 0.8 > 2 * alone.agreement[1]
    assert begun.aligned_to == older.tokenizer_id != begun.tokenizer_id
    np.testing.assert_array_equal(begun.sources[2], np.arange(64))  # the hash level means what it meant


@pytest.mark.parametrize("sizes", [(4, 4), (12, 4), (8,), (8, 4, 3)])
def test_a_refit_of_another_shape(older, sizes):
    ads = catalogue()
    new = Tokenizer.fit(ads, CONFIG.model_copy(update={"codebook_sizes": sizes}), older=older)
    alignment = align(new, older, ads=ads)
    assert [len(source) for source in alignment.sources[: len(sizes)]] == [*sizes[:2], 0][: len(sizes)]
    assert all((source >= NONE).all() for source in alignment.sources)
    assert len(alignment.sources[-1]) == (64 if len(sizes) == 2 else 0)


def test_an_alignment_is_kept_as_a_file(older, tmp_path):
    alignment = align(older, older, ads=catalogue())
    assert Alignment.load(tmp_path) is None
    alignment.save(tmp_path)
    found = Alignment.load(tmp_path)
    assert (found.aligned_to, found.agreement) == (older.tokenizer_id, (1.0, 1.0))
    for one, other in zip(found.sources, alignment.sources, strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / ALIGNMENT).write_text('{"aligned_to": 3}')
    with pytest.raises(ValueError, match="expected an alignment of two tokenizers, got KeyError"):
        Alignment.load(tmp_path)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    catalogue().write_parquet(folder / "ads.parquet")
    (folder / "split.json").write_text(json.dumps({"train_end": 250}))
    return folder


def test_align_to_is_a_setting_and_no_part_of_the_id(data, tmp_path, capsys):
    out, place = tmp_path / "out", str(tmp_path / "out")
    run(CONFIG, data, out_dir=out)
    before = kinds.load(out).tokenizer_id
    assert not (out / ALIGNMENT).exists()
    run(CONFIG.model_copy(update={"seed": 4, "align_to": place}), data, out_dir=out)  # in its own place
    now = kinds.load(out)
    assert Alignment.load(out).aligned_to == before
    assert f"aligned to {before}: ads whose codes up to each level go on: " in capsys.readouterr().out
    assert "align_to" not in json.loads((out / "tokenizer.json").read_text())["config"]
    kept = CONFIG.model_copy(update={"seed": 4})  # where it was aligned to once does not count later
    run(kept, data, out_dir=out, keep=True)
    assert kinds.load(out).tokenizer_id == now.tokenizer_id
    assert Alignment.load(out).aligned_to == before


def test_given_sids_cannot_be_aligned(data, tmp_path):
    sids = pl.DataFrame({"ad_id": [1, 2], "sid_0": [0, 1], "sid_1": [1, 1], "sid_2": [1, 1]})
    config = CONFIG.model_copy(update={"sids": "given"})
    GivenSids.fit(sids, config).save(tmp_path / "given")
    with pytest.raises(ValueError, match="align_to .*: expected two tokenizers that learn SIDs, got learnt"):
        run(CONFIG.model_copy(update={"align_to": str(tmp_path / "given")}), data, out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
