"""The item level: what it says, how it is taught, how it becomes a ranker, what is refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from export.bundle import graph_shapes
from export.item_ranker import check_item_ranker, write_item_ranker
from export.parity import ParityError
from export.profiles import profiles
from export.ranker import load_ranker
from serving.backend.settings import ServingConfig
from serving.engines.ort import OrtRankGraph
from serving.files import sha256
from serving.model.bundle import MANIFEST, BundleError, read_manifest
from serving.model.manifest import AD_RANKER, Manifest
from serving.ranking.item_ranker import ItemRanker
from serving.ranking.item_tables import ItemTables
from serving.ranking.kinds import load_ranker as load_from_bundle
from serving.ranking.ranker import best_first
from tests.items import NEW, item_checkpoint, item_model, known_ads, scores_by_hand, vectors_by_hand
from tests.manifest import manifest as plain_manifest
from tests.ranking import random_request
from tests.tiny import SPEC, tiny_catalogue, tiny_model
from training.data.batch import Batch
from training.loop.checkpoint import Checkpoint, load_checkpoint, write_checkpoint
from training.model.item_graph import TorchRankGraph, item_tables
from training.objectives.joint import Joint
from training.objectives.list_scores import RewardScale
from training.objectives.rspo import Rspo
from training.objectives.uvr import Uvr
from training.objectives.vsl import Vsl
from training.preset.model import ItemConfig, ModelConfig
from training.recipes.warm_start import take_weights


def log_softmax(scores):
    return scores - np.logaddexp.reduce(scores)


def batch_of(model, *, count=4, seed=0):
    """A batch with two targets a request, and the requests that a ranker would get of it."""
    ad_ids, sids, _ = tiny_catalogue()
    random = np.random.default_rng(seed)
    targets = random.choice(len(ad_ids) - NEW, (count, 2))
    requests = [random_request(seed + i, ads=3, known=len(ad_ids) - NEW) for i in range(count)]
    requests = [
        replace(
            r,
            ads=ad_ids[targets[i]],
            sids=sids[targets[i]],
            log_p=np.zeros(2),
            past_times=r.now - 1 - np.arange(14)[::-1],
        )
        for i, r in enumerate(requests)
    ]
    ranker = ItemRanker(SPEC, item_tables(model), TorchRankGraph(model))
    tensors = ranker.tensors(requests, ads=2)
    slots = tensors["slots"]
    slot_ads = np.full(slots.shape[:2], -1)
    for i, r in enumerate(requests):
        short = r.past_ads[::-1][: SPEC.short_slots]
        slot_ads[i, : len(short)] = short
        last = {ad: k for k, ad in enumerate(r.past_ads.tolist())}
        often = sorted(last, key=lambda ad: (-np.count_nonzero(r.past_ads == ad), -last[ad]))
        slot_ads[i, SPEC.short_slots :][: len(often)] = often[: SPEC.long_slots]
    batch = Batch(
        slots=slots,
        profile=tensors["profile"],
        tokens=sids[targets].astype(np.int64),
        value=np.zeros((count, 2), np.int64),
        weight=np.array([[1.0, 0.5], [2.0, 1.0], [1.0, 0.0], [0.0, 0.0]], np.float32)[:count],
        slot_ads=slot_ads,
        ads=ad_ids[targets],
    )
    return batch, requests


def every(request):
    """The request asked about all known ads, found with one log p."""
    ads = known_ads()
    zeros = np.zeros(len(ads.ad_ids))
    return replace(request, ads=ads.ad_ids, sids=ads.sids.astype(np.int32), log_p=zeros)


def said_by_hand(model, requests):
    """Log p of each request's ads among all known ones, float64 [B, n]."""
    ads, found = known_ads(), []
    for request in requests:
        asked = every(request)
        log_p = log_softmax(scores_by_hand(model, asked))
        found.append(log_p[np.searchsorted(ads.ad_ids, request.ads)])
    return np.stack(found)


def tensors(batch):
    return batch.map(torch.from_numpy)


def test_log_p_is_that_of_a_program_written_apart():
    model = item_model()
    batch, requests = batch_of(model)
    given = tensors(batch)
    said = model(given.slots, given.profile, given.tokens, given.slot_ads, given.ads).item_log_p
    expected = said_by_hand(model, requests)
    assert expected.std() > 0.5
    np.testing.assert_allclose(said.detach().numpy(), expected, atol=2e-5)
    assert model(given.slots, given.profile, given.tokens).item_log_p is None


def test_the_loss_adds_the_item_level_by_its_weight():
    model = item_model()
    batch, requests = batch_of(model)
    plain = Vsl(lambda_value=0.2, lambda_mtp=0.3)(model, tensors(batch))
    whole = Vsl(lambda_value=0.2, lambda_mtp=0.3, lambda_item=0.7)(model, tensors(batch))
    expected = -(said_by_hand(model, requests) * batch.weight).sum()
    assert "item" not in plain.parts
    assert whole.parts["item"].sum.item() == pytest.approx(expected, rel=1e-5)
    assert (whole.total.sum - plain.total.sum).item() == pytest.approx(0.7 * expected, rel=1e-4)
    assert whole.total.weight.item() == plain.total.weight.item() == batch.weight.sum()
    with pytest.raises(ValueError, match=r"got none: the model has no item level \(model.item\)"):
        Vsl(lambda_value=0.2, lambda_mtp=0.3, lambda_item=1.0)(tiny_model(), tensors(batch))


@pytest.mark.parametrize("kind", [Joint, Uvr])
def test_post_training_goes_on_with_its_loss(kind):
    model = item_model()
    batch, requests = batch_of(model)
    vsl = Vsl(lambda_value=0.2, lambda_mtp=0.3, lambda_item=0.7)
    terms = kind(vsl, Rspo(beta=0.5, delta=0.5, sibling_weight=0.0), RewardScale())(model, tensors(batch))
    expected = -(said_by_hand(model, requests) * batch.weight).sum()
    assert terms.targets.parts["item"].sum.item() == pytest.approx(expected, rel=1e-5)


def test_in_training_the_softmax_is_over_the_target_and_drawn_ads():
    model = item_model(negatives=5)
    batch, requests = batch_of(model)
    given, ads = tensors(batch), known_ads()
    arguments = (given.slots, given.profile, given.tokens, given.slot_ads, given.ads)
    whole = said_by_hand(model, requests)
    np.testing.assert_allclose(model(*arguments).item_log_p.detach().numpy(), whole, atol=2e-5)
    torch.manual_seed(3)
    said = model.train()(*arguments).item_log_p.detach().numpy()
    torch.manual_seed(3)
    drawn = torch.randint(len(ads.ad_ids), (5,)).numpy()
    for i, request in enumerate(requests):
        scores = scores_by_hand(model, every(request))
        for j, row in enumerate(np.searchsorted(ads.ad_ids, request.ads)):
            against = [row, *(r for r in drawn if r != row)]
            assert said[i, j] == pytest.approx(log_softmax(scores[against])[0], abs=2e-5)


def test_ads_that_the_model_does_not_know_teach_nothing_and_say_nothing():
    model = item_model()
    batch, _ = batch_of(model)
    new = tiny_catalogue()[0][-1]
    given = tensors(replace(batch, ads=np.full_like(batch.ads, new)))
    said = model(given.slots, given.profile, given.tokens, given.slot_ads, given.ads).item_log_p
    assert (said == 0).all()
    said.sum().backward()
    assert not model.item.ids.weight.grad.any()
    one, other = (
        tensors(replace(batch, slot_ads=np.where(batch.slot_ads == batch.slot_ads[0, 0], ad, batch.slot_ads)))
        for ad in (new, new + 1)
    )
    found = [model(b.slots, b.profile, b.tokens, b.slot_ads, b.ads).item_log_p for b in (one, other)]
    torch.testing.assert_close(*found)


def test_an_ad_that_training_never_saw_has_no_vector_of_its_own():
    model, ads = item_model(ids_dropped=0.5), known_ads()
    rows = torch.arange(len(ads.ad_ids))
    own = model.item.own(rows)
    assert (own[~ads.seen] == 0).all()
    torch.testing.assert_close(own[ads.seen], model.item.ids.weight[ads.seen])
    torch.manual_seed(0)
    dropped = (model.item.train().own(rows) == 0).all(-1).numpy()
    assert dropped[~ads.seen].all()
    assert 0.2 < dropped[ads.seen].mean() < 0.8


def test_vectors_of_known_and_of_new_ads():
    model = item_model()
    ad_ids, sids, _ = tiny_catalogue()
    rng = np.random.default_rng(0)
    more = np.concatenate([sids, rng.integers(0, 5, (40, 3)), [[99, 99, 0]]]).astype(np.int32)
    asked = np.concatenate([ad_ids, 20_000 + np.arange(41)])
    found = item_tables(model).of_ads(asked, more)
    np.testing.assert_allclose(found, vectors_by_hand(model, asked, more), atol=1e-5)
    assert (found[-1] == 0).all()
    moved = sids.copy()
    moved[:, 0] = 0
    np.testing.assert_array_equal(item_tables(model).of_ads(ad_ids[:9], moved[:9]), found[:9])


# In a bundle


def manifest_of(folder, ranker, *, features):
    """Text of a manifest of what is in a folder."""
    content = plain_manifest(1, "t1", features=features) | {"ranker": ranker}
    content["graphs"] |= graph_shapes(folder)
    files = {str(p.relative_to(folder)): sha256(p) for p in folder.rglob("*") if p.is_file()}
    content["sha256"] |= files
    return json.dumps(content)


def bundle_of(model, folder):
    """A bundle that is a ranker and nothing else."""
    folder.mkdir()
    (folder / MANIFEST).write_text(manifest_of(folder, write_item_ranker(model, folder), features=SPEC))
    return folder


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    model = item_model()
    return model, bundle_of(model, tmp_path_factory.mktemp("item") / "1")


def ranker_of(bundle, **options):
    return load_from_bundle(bundle, read_manifest(bundle, verify=False), OrtRankGraph(bundle), **options)


@pytest.mark.parametrize("pad_to", [1, 32])
def test_the_exported_stage_scores_as_the_program_written_apart(bundled, pad_to):
    model, bundle = bundled
    ranker = ranker_of(bundle, pad_to=pad_to)
    requests = [random_request(seed, ads=3 + 5 * seed, events=6 * seed) for seed in range(4)]
    for request, found in zip(requests, ranker.worth(requests), strict=True):
        expected = scores_by_hand(model, request)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        np.testing.assert_array_equal(best_first(found), np.argsort(-expected, kind="stable"))
    assert check_item_ranker(model, bundle, read_manifest(bundle, verify=False)) < 1e-5


def test_a_stage_that_says_something_else_is_not_published(bundled):
    _, bundle = bundled
    manifest = read_manifest(bundle, verify=False)
    with pytest.raises(ParityError, match="ad_ranker's log-probabilities .* within 0.0001 of PyTorch"):
        check_item_ranker(item_model(seed=1), bundle, manifest)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vectors", lambda a: a[:-1], r"vectors.npy: expected 54 rows of finite numbers"),
        ("vectors", lambda a: a * np.nan, r"vectors.npy: expected 54 rows of finite numbers"),
        ("vectors", lambda a: a[:, :-1], r"vectors.npy: expected float32 \[n, 8\], got float32 \[54, 7\]"),
        ("ad_ids", lambda a: a[::-1], r"ad_ids.npy: expected ascending ids"),
        ("prefix_2", lambda a: a[::-1], r"prefix_2.npy: expected ascending prefixes"),
        ("prefix_1.vectors", lambda a: a[:0], r"prefix_1.vectors.npy: expected \d+ rows"),
    ],
)
def test_damaged_tables_are_refused(bundled, tmp_path, name, change, message):
    _, bundle = bundled
    (tmp_path / "ranker").mkdir()
    for path in (bundle / "ranker").glob("*.npy"):
        array = np.load(path)
        np.save(tmp_path / "ranker" / path.name, change(array) if path.stem == name else array)
    with pytest.raises(BundleError, match=message):
        ItemTables.load(tmp_path, width=8, levels=3)


def test_a_model_without_an_item_level_has_no_such_ranker(tmp_path):
    start = Checkpoint(model=tiny_model(), spec=None, settings={})
    with pytest.raises(ValueError, match=re.escape("got one without: set model.item and train a new one")):
        load_ranker("item", tmp_path, start)


# Kept


def test_a_checkpoint_keeps_vectors_and_which_ads_they_are_of(tmp_path):
    model = item_model()
    start = item_checkpoint(model, tokenizer_id="t1")
    write_checkpoint(tmp_path / "step-1", start)
    found = load_checkpoint(tmp_path / "step-1")
    assert found.spec.to_json() == start.spec.to_json()
    one, other = item_tables(model), item_tables(found.model)
    np.testing.assert_array_equal(one.ad_ids, other.ad_ids)
    np.testing.assert_array_equal(one.vectors, other.vectors)


def test_settings_that_make_no_item_level():
    with pytest.raises(ValueError, match="expected width divisible by heads, got width 9 and heads 2"):
        ItemConfig(width=9)
    with pytest.raises(ValueError, match="expected decoder lazyar with item, got mtp"):
        ModelConfig(decoder="mtp", item=ItemConfig())


def test_a_warm_start_takes_vectors_of_the_ads_that_are_there():
    """Of a run with other ads, so that rows are others."""
    source = item_checkpoint(item_model(), tokenizer_id="t1")
    model = item_model(seed=4)
    ads = known_ads()
    moved = np.arange(len(ads.ad_ids)) >= 40
    shifted = replace(ads, ad_ids=ads.ad_ids + moved)
    model.item.know(shifted)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    known = np.isin(shifted.ad_ids, ads.ad_ids)
    left = take_weights(model, source.spec, source=source)
    assert left == [f"item.ids.weight ({(~known).sum()} ads are not there)"]
    np.testing.assert_array_equal(model.item.ad_ids.numpy(), shifted.ad_ids)
    there, here = source.model.item.ids.weight, model.item.ids.weight
    for row, ad in enumerate(shifted.ad_ids.tolist()):
        old = np.flatnonzero(ads.ad_ids == ad)
        expected = there[old[0]] if len(old) else before["item.ids.weight"][row]
        assert torch.equal(here[row], expected)
    other = replace(source.spec, tokenizer_id="t2")
    left = take_weights(item_model(seed=4), other, source=source)
    assert "item.text.weight (vectors of another tokenizer)" in left
    assert "item.codes.tables.0.weight (codes of another tokenizer)" in left


def test_what_has_no_weight_is_not_computed():
    model = item_model()
    given = tensors(batch_of(model)[0])
    said = model(given.slots, given.profile, given.tokens)
    spared = model(given.slots, given.profile, given.tokens, mtp=False)
    assert len(said.mtp_logits) == len(said.logits)
    assert spared.mtp_logits == []
    for one, other in zip(said.logits, spared.logits, strict=True):
        torch.testing.assert_close(one, other)
    whole, without = (Vsl(lambda_value=0.2, lambda_mtp=weight)(model, given) for weight in (0.3, 0.0))
    assert without.parts["mtp"].sum.item() == 0 < whole.parts["mtp"].sum.item()
    left = whole.total.sum - 0.3 * whole.parts["mtp"].sum
    assert without.total.sum.item() == pytest.approx(left.item(), rel=1e-5)


def test_the_two_levels_learn_apart():
    """No weight is moved by the losses of both, so that each is what it would be alone."""
    model = item_model()
    given = tensors(batch_of(model)[0])
    said = model(given.slots, given.profile, given.tokens, given.slot_ads, given.ads)
    said.item_log_p.sum().backward()
    of_items = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert of_items
    assert all(name.startswith("item.") for name in of_items)
    model.zero_grad(set_to_none=True)
    Vsl(lambda_value=0.2, lambda_mtp=0.3)(model, given).total.sum.backward()
    assert not of_items & {name for name, weight in model.named_parameters() if weight.grad is not None}


def test_engines_know_the_shapes_of_its_graph(bundled):
    manifest = read_manifest(bundled[1], verify=False)
    config = ServingConfig(widths="4-8-16:6", rerank_pool=48, max_num_ads=200, max_batch_size=4)
    ranges = profiles(manifest, config)[AD_RANKER]
    assert set(ranges) == {"slots", "profile", "slot_vectors", "ad_vectors", "log_p"}
    assert ranges["slots"].most == (4, SPEC.slots, SPEC.columns)
    assert ranges["slot_vectors"].least == (1, SPEC.slots, 8)
    assert ranges["ad_vectors"].usual == (4, 48, 8)
    assert ranges["log_p"].most == (4, 200)


def test_a_context_without_columns_has_no_such_input(tmp_path):
    spec = replace(SPEC, profile_sizes=())
    model = item_model(spec=spec)
    described = write_item_ranker(model, tmp_path)
    assert described == {"kind": "item", "width": 8}
    manifest = Manifest.parse(manifest_of(tmp_path, described, features=spec).encode())
    assert "profile" not in [name for name, *_ in manifest.graphs[AD_RANKER]["inputs"]]
    assert check_item_ranker(model, tmp_path, manifest) < 1e-5
