"""The baseline with an extra decoder behind the first SID level: its formula, its graphs, its training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from export.bundle import write_bundle
from export.graphs import export_graphs
from export.parity import parity_errors
from export.render import render
from serving.engines.ort import OrtExecutor
from serving.model.bundle import read_manifest
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.pipeline import checkpoint, copy_of, serving_config
from tests.tiny import LEVEL_SIZES, SPEC, VALUE_TABLE, random_requests, tiny_snapshot
from tests.tiny_log import open_run, write_run
from tests.unit.test_model import plain_attention, plain_linear, plain_norm
from training.evaluation.ranking import evaluate
from training.loop.device import Device
from training.loop.retention import open_checkpoint
from training.model.gr4ad import Generator
from training.model.initialise import initialise
from training.model.mtp import MtpGenerator
from training.model.split import split
from training.preset.model import ModelConfig
from training.preset.preset import ConfigError, Preset
from training.recipes.pretrain import prepare_training
from training.rollout.executor import TorchExecutor
from training.run import RunData

MTP = ("model.decoder=mtp", "training.lambda_mtp=0")


def mtp_model(*, layers=4, shared_layers=2, plain=False):
    """A model with random weights; one with nothing shared if `plain`."""
    torch.manual_seed(0)
    config = ModelConfig(
        decoder="mtp",
        layers=layers,
        shared_layers=shared_layers,
        width=16,
        heads=2,
        ffn_multiple=2,
        value_buckets=len(VALUE_TABLE),
        share_context_kv=not plain,
        tie_embeddings=not plain,
    )
    model = MtpGenerator(config, SPEC, level_sizes=LEVEL_SIZES, value_buckets=len(VALUE_TABLE))
    return initialise(model).eval()


def plain_layer(layer, project, h, *, context, bias, past):
    """One layer at one position [d]; `past` is a list of (key, value) and gets those of this position."""
    q = plain_linear(layer.query_context, plain_norm(layer.norm_context, h))[None]
    k, v = plain_linear(project.key, context), plain_linear(project.value, context)
    attended = plain_attention(q, k, v, heads=layer.heads, mask=bias[None])[0]
    h = h + plain_linear(layer.out_context, attended)
    q, k, v = plain_linear(layer.qkv_self, plain_norm(layer.norm_self, h)).chunk(3)
    past.append((k, v))
    keys, values = (torch.stack(x) for x in zip(*past, strict=True))
    attended = plain_attention(q[None], keys, values, heads=layer.heads, mask=torch.zeros(1, len(past)))[0]
    h = h + plain_linear(layer.out_self, attended)
    hidden = torch.nn.functional.gelu(plain_linear(layer.ffn[0], plain_norm(layer.norm_ffn, h)))
    return h + plain_linear(layer.ffn[2], hidden)


def plain_mtp(model, slots, profile, sid):
    """p(level | tokens before) of one request and one SID, position by position with keys and values kept."""
    context, bias = model.context(slots[None], profile[None], model.codes)
    given = {"context": context[0], "bias": bias[0]}
    projections = list(model.context_kv) * (len(model.layers) if len(model.context_kv) == 1 else 1)
    layers = list(zip(model.layers, projections, strict=True))
    main, extra = layers[: model.shared], layers[model.shared :]
    h, outputs = model.bos[0, 0] + model.level[0], []
    for layer, project in main:
        h = plain_layer(layer, project, h, **given, past=[])
    kept = [[] for _ in extra]
    for t in range(len(sid) + 1):
        if t:
            token = model.codes.tables[t - 1].weight[sid[t - 1] + 1]
            both = torch.cat([plain_norm(model.fuse.norm_state, h), plain_norm(model.fuse.norm_token, token)])
            h = plain_linear(model.fuse.mix, both) + model.level[t]
            for (layer, project), past in zip(extra, kept, strict=True):
                h = plain_layer(layer, project, h, **given, past=past)
        last = plain_norm(model.norm, h)
        if t < len(sid) and model.config.tie_embeddings:
            outputs.append(model.codes.tables[t].weight[1:] @ last)
        else:
            outputs.append(plain_linear(model.heads[t if t < len(sid) else -1], last))
    return [x.log_softmax(-1) for x in outputs]


@torch.no_grad()
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(("layers", "shared_layers"), [(2, 1), (4, 2)])
def test_equals_its_formula_step_by_step(layers, shared_layers, plain):
    model = mtp_model(layers=layers, shared_layers=shared_layers, plain=plain)
    slots, profile = map(torch.tensor, random_requests(3))
    sid = [4, 1, 6]
    logits, without_tokens, *_ = model(slots, profile, torch.tensor([[sid, [0, 4, 2]]] * 3))
    assert without_tokens == []
    for row in range(3):
        expected = plain_mtp(model, slots[row], profile[row], sid)
        for level, log_p in enumerate(expected):
            torch.testing.assert_close(logits[level][row, 0].log_softmax(-1), log_p, atol=1e-5, rtol=0)


def score_by_steps(executor, slots, profile, *, tokens):
    """Log p of all codes of every level, [B, n, V], each level's beams in an order of their own."""
    random = np.random.default_rng(0)
    batch, beams = tokens.shape[:2]
    logprob, carry = executor.prefix(slots, profile)
    found = [np.repeat(logprob[:, None], beams, axis=1)]
    placed = []
    for level, size in zip(range(2, 5), (*LEVEL_SIZES[1:], len(VALUE_TABLE)), strict=True):
        order = random.permuted(np.broadcast_to(np.arange(beams), (batch, beams)), axis=1)
        parents = [np.take_along_axis(np.argsort(p, axis=1), order, 1).astype(np.int32) for p in placed]
        allowed = np.broadcast_to(np.arange(size, dtype=np.int32), (batch, beams, size))
        token = np.take_along_axis(tokens[:, :, level - 2], order, 1)
        logprob, carry = executor.tail(level, carry, parents=parents, token=token, allowed=allowed)
        found.append(np.take_along_axis(logprob, np.argsort(order, axis=1)[:, :, None], 1))
        placed.append(order)
    return found


def random_sids(*, batch=3, beams=5):
    random = np.random.default_rng(0)
    return np.stack([random.integers(0, v, (batch, beams)) for v in LEVEL_SIZES], axis=-1).astype(np.int32)


@torch.no_grad()
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(("layers", "shared_layers"), [(2, 1), (4, 2)])
def test_step_by_step_with_kept_keys_and_values_equals_teacher_forcing(layers, shared_layers, plain):
    model = mtp_model(layers=layers, shared_layers=shared_layers, plain=plain)
    slots, profile = random_requests(3)
    tokens = random_sids()
    logits, *_ = model(torch.tensor(slots), torch.tensor(profile), torch.tensor(tokens).long())
    for level, log_p in enumerate(score_by_steps(TorchExecutor(model), slots, profile, tokens=tokens)):
        np.testing.assert_allclose(log_p, logits[level].log_softmax(-1).numpy(), atol=1e-5)


@torch.no_grad()
def test_a_later_level_reads_the_state_of_its_prefix():
    """Not only its keys and values, which is all that LazyAR hands on."""
    model = mtp_model()
    graphs, (slots, profile) = split(model), map(torch.tensor, random_requests(2))
    names = ("m", "context_kv", "context_bias", "past_kv_1")
    carry = dict(zip(names, graphs["prefix"](slots, profile)[1:], strict=True))
    first, token = carry.pop("past_kv_1"), torch.zeros(2, 3, dtype=torch.int32)
    allowed = torch.zeros(2, 3, 1, dtype=torch.int32)
    rest = {"parents": [], "token": token, "allowed": allowed}
    score, second = graphs["tail_2"](**carry, past_kv=[first], **rest)
    changed = first.clone()
    changed[:, -1] += torch.randn(16)
    assert not torch.allclose(graphs["tail_2"](**carry, past_kv=[changed], **rest)[0], score)
    rest["parents"] = [torch.zeros(2, 3, dtype=torch.int32)]
    score, _ = graphs["tail_3"](**carry, past_kv=[first, second], **rest)
    for row in range(second.shape[1]):
        changed = second.clone()
        changed[:, row] += torch.randn(16)
        assert not torch.allclose(graphs["tail_3"](**carry, past_kv=[first, changed], **rest)[0], score)


def search(executor, snapshot, *, slots, profile):
    """All that is live."""
    return beam_search(
        executor,
        snapshot.trie,
        slots,
        profile,
        plan=WidthPlan((6, 30, 210), 210),
        num_results=np.full(len(slots), 10),
        value_table=VALUE_TABLE,
    )


@torch.no_grad()
def test_the_search_finds_what_enumeration_finds():
    model, snapshot = mtp_model(), tiny_snapshot()
    slots, profile = random_requests(4)
    beams = search(TorchExecutor(model), snapshot, slots=slots, profile=profile)
    live = sorted({tuple(s) for s in snapshot.sids_of(snapshot.leaf_ad_ids)[0].tolist()})
    tokens = torch.tensor([live] * 4)
    logits, *_ = model(torch.tensor(slots), torch.tensor(profile), tokens)
    log_p = sum(logits[t].log_softmax(-1).gather(2, tokens[..., t, None])[..., 0] for t in range(3)).numpy()
    value = (logits[3].softmax(-1) @ torch.tensor(VALUE_TABLE)).numpy()
    for row in range(4):
        order = np.argsort(-log_p[row], kind="stable")
        found = beams.leaves[row] >= 0
        assert [tuple(s) for s in beams.sids[row][found].tolist()] == [live[i] for i in order]
        np.testing.assert_allclose(beams.scores[row][found], log_p[row][order], atol=1e-5)
        np.testing.assert_allclose(beams.expected_value[row][found], value[row][order], rtol=1e-4)


@pytest.mark.parametrize("plain", [True, False])
def test_a_gradient_reaches_every_weight_that_counts(plain):
    """All but queries and keys with which the main decoder's one position attends to itself."""
    model = mtp_model(plain=plain)
    slots, profile = map(torch.tensor, random_requests(6))
    logits, *_ = model(slots, profile, torch.tensor(random_sids(batch=6)).long())
    sum((x.log_softmax(-1)[..., 0] ** 2).sum() for x in logits).backward()
    width = model.config.width
    for name, weight in model.named_parameters():
        gradient = weight.grad
        if name.startswith(tuple(f"layers.{k}.qkv_self" for k in range(model.shared))):
            assert not gradient[: 2 * width].any()
            gradient = gradient[2 * width :]
        assert gradient.any(), name


def test_it_has_the_weights_of_lazyar_but_for_its_fuse():
    ours = mtp_model()
    config = ours.config.model_copy(update={"decoder": "lazyar"})
    theirs = {"level_sizes": LEVEL_SIZES, "value_buckets": len(VALUE_TABLE)}
    shapes = [
        {name: weight.shape for name, weight in model.state_dict().items() if not name.startswith("fuse.")}
        for model in (ours, Generator(config, SPEC, **theirs))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*MTP, "model.shared_layers=0"), "expected shared_layers >= 1 with decoder mtp"),
        (
            ("model.decoder=mtp", "model.copy_path=false", "features.habits=0", "training.lambda_mtp=0.1"),
            "training.lambda_mtp: expected 0 with",
        ),
        ((*MTP, "model.copy_path=true"), "expected decoder lazyar with copy_path, got mtp"),
        (("model.decoder=lazy",), "model.decoder: .*'lazyar' or 'mtp', got 'lazy'"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        Preset.load("configs/demo.yaml", overrides)


def test_it_is_trained_kept_and_evaluated_as_any_other(tmp_path, no_curves):
    torch.set_num_threads(1)
    run = write_run(tmp_path)
    preset, spec, dataset = open_run(run, *MTP)
    trainer = prepare_training(preset, run[1], folder=tmp_path / "model", device=Device())
    trainer.run()
    found = open_checkpoint(tmp_path / "model")
    assert isinstance(found.model, MtpGenerator)
    assert found.spec == replace(spec, value_buckets=found.spec.value_buckets)
    first, last = found.history[0], found.history[-1]
    uniform = sum(np.log(v) for v in spec.level_sizes)
    assert last["train_sid"] < min(uniform - 1, first["train_sid"])
    assert last["validation_sid"] < uniform - 0.8
    assert last["train_mtp"] == 0
    again = trainer.model.state_dict()
    assert all(torch.equal(w, again[name]) for name, w in found.model.state_dict().items())
    with torch.no_grad():
        report = evaluate(
            TorchExecutor(found.model.eval()),
            dataset,
            ads=RunData.load(run[1]).prepared.tables.ads,
            config=preset.evaluation,
            level_sizes=spec.level_sizes,
            target_behaviors=preset.logs.target_behaviors,
            min_history=preset.training.min_history,
            value_table=spec.value_buckets.means,
        )
    assert report["recall"]["model"]["5"] > report["recall"]["popularity"]["5"]
    assert report["invalid_rate"] == 0


@pytest.mark.slow
def test_graphs_with_nothing_shared_compute_what_it_computes(tmp_path):
    model = mtp_model(plain=True)
    export_graphs(model, tmp_path)
    assert parity_errors(model, tmp_path).max() < 1e-5
    assert parity_errors(model, tmp_path, batch=1, beams=1).max() < 1e-5


@pytest.mark.slow
def test_it_is_published_as_any_other(pipeline, tmp_path):
    copied, model = copy_of(pipeline, tmp_path), mtp_model()
    made = checkpoint(tokenizer_id=copied.tokenizer_id)
    made = replace(made, model=model, spec=replace(made.spec, model=model.config))
    bundle = write_bundle(made, copied.bundles, tokenizer=copied.tokenizer)
    render(copied.bundles, copied.repository, index=copied.index, config=serving_config())
    assert (copied.repository / "lazyar_tail_3" / bundle.name).is_dir()
    manifest, (slots, profile) = read_manifest(bundle), random_requests(4)
    assert manifest.parity_max_error < 1e-5
    dims = {name: dims for name, _, dims in manifest.graphs["tail_3"]["inputs"]}
    assert dims["past_kv_2"] == ("batch", 2 * 2 + 1, "beams_2", 16)
    found, wanted = (
        search(executor, tiny_snapshot(), slots=slots, profile=profile)
        for executor in (OrtExecutor(bundle, levels=3), TorchExecutor(model))
    )
    np.testing.assert_array_equal(found.sids, wanted.sids)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    np.testing.assert_allclose(found.expected_value, wanted.expected_value, atol=1e-4)
