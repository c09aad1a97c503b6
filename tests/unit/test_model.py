"""LazyAR: against a plain autoregressive decoder, its own split, and what the shared stage may see."""

import math

import numpy as np
import pytest
import torch

from serving.model.features import FeatureSpec
from tests.tiny import LEVEL_SIZES, SPEC, random_requests, tiny_model
from training.model.layers import attend
from training.preset.model import ModelConfig
from training.rollout.executor import TorchExecutor


def plain_linear(linear, x):
    return x @ linear.weight.T + (linear.bias if linear.bias is not None else 0)


def plain_norm(norm, x):
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(
        x.var(-1, unbiased=False, keepdim=True) + norm.eps
    ) * norm.weight + norm.bias


def plain_attention(q, k, v, *, heads, mask):
    """q [n, d], k and v [m, d], mask [n, m] added to the scores; one head after the other."""
    out = []
    size = q.shape[-1] // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size) + mask
        out.append(torch.softmax(scores, -1) @ v[:, part])
    return torch.cat(out, -1)


def plain_decoder(model, slots, profile, sid):
    """p(level | tokens before) of one request and one SID, every step recomputed from the whole prefix."""
    heads = model.config.heads
    context, bias = model.context(slots[None], profile[None], model.codes)
    context, bias = context[0], bias[0]
    inputs = [model.bos[0, 0]] + [model.codes.tables[t].weight[sid[t] + 1] for t in range(len(sid))]
    outputs = []
    projections = list(model.context_kv) * (len(model.layers) if len(model.context_kv) == 1 else 1)
    for length in range(1, len(inputs) + 1):
        m, s = model.level[:length], torch.stack(inputs[:length])
        h = plain_linear(model.fuse.mix, torch.cat([m * plain_linear(model.fuse.gate, s), s], -1))
        causal = torch.full((length, length), -torch.inf).triu(1)
        for layer, project in zip(model.layers, projections, strict=True):
            q = plain_linear(layer.query_context, plain_norm(layer.norm_context, h))
            k, v = plain_linear(project.key, context), plain_linear(project.value, context)
            h = h + plain_linear(layer.out_context, plain_attention(q, k, v, heads=heads, mask=bias[None]))
            qkv = plain_linear(layer.qkv_self, plain_norm(layer.norm_self, h))
            q, k, v = qkv.split(qkv.shape[-1] // 3, dim=-1)
            h = h + plain_linear(layer.out_self, plain_attention(q, k, v, heads=heads, mask=causal))
            hidden = torch.nn.functional.gelu(plain_linear(layer.ffn[0], plain_norm(layer.norm_ffn, h)))
            h = h + plain_linear(layer.ffn[2], hidden)
        last = plain_norm(model.norm, h[-1])
        if length <= len(sid):
            outputs.append(model.codes.tables[length - 1].weight[1:] @ last)
        else:
            outputs.append(plain_linear(model.heads[-1], last))
    return [x.log_softmax(-1) for x in outputs]


@torch.no_grad()
@pytest.mark.parametrize("share", [True, False])
def test_k_0_equals_a_plain_autoregressive_decoder(share):
    model = tiny_model(shared_layers=0, share_context_kv=share)
    slots, profile = map(torch.tensor, random_requests(3))
    sid = [4, 1, 6]
    logits, *_ = model(slots, profile, torch.tensor([[sid]] * 3))
    for row in range(3):
        for level, expected in enumerate(plain_decoder(model, slots[row], profile[row], sid)):
            torch.testing.assert_close(logits[level][row, 0].log_softmax(-1), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("shared_layers", [0, 1, 2])
@pytest.mark.parametrize("plain", [True, False])
def test_split_equals_unsplit(shared_layers, plain):
    model = tiny_model(shared_layers=shared_layers, tie_embeddings=not plain, share_context_kv=not plain)
    slots, profile = random_requests(3)
    random = np.random.default_rng(0)
    tokens = np.stack([random.integers(0, v, (3, 5)) for v in LEVEL_SIZES], axis=-1).astype(np.int32)
    logits, *_ = model(torch.tensor(slots), torch.tensor(profile), torch.tensor(tokens).long())
    executor = TorchExecutor(model)
    logprob, carry = executor.prefix(slots, profile)
    np.testing.assert_allclose(logprob, logits[0][:, 0].log_softmax(-1).numpy(), atol=1e-5)
    identity = np.broadcast_to(np.arange(5, dtype=np.int32), (3, 5))
    for level in range(2, 5):
        size = logits[level - 1].shape[-1]
        allowed = np.broadcast_to(np.arange(size, dtype=np.int32), (3, 5, size))
        logprob, carry = executor.tail(
            level, carry, parents=[identity] * (level - 2), token=tokens[:, :, level - 2], allowed=allowed
        )
        np.testing.assert_allclose(logprob, logits[level - 1].log_softmax(-1).numpy(), atol=1e-5)


@torch.no_grad()
def test_shared_stage_sees_no_token_and_first_level_is_the_same_for_all_tokens():
    model = tiny_model()
    slots, profile = map(torch.tensor, random_requests(2))
    seen = []
    hook = model.fuse.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    for tokens in ([[0, 0, 0]], [[5, 4, 6]]):
        model(slots, profile, torch.tensor([tokens] * 2))
    hook.remove()
    assert torch.equal(seen[0], seen[1])
    a, without_a, *_ = model(slots, profile, torch.tensor([[[0, 0, 0]]] * 2))
    b, without_b, *_ = model(slots, profile, torch.tensor([[[5, 4, 6]]] * 2))
    assert torch.equal(a[0], b[0])
    assert not torch.allclose(a[1], b[1])
    assert all(torch.equal(x, y) for x, y in zip(without_a, without_b, strict=True))


@torch.no_grad()
def test_later_tokens_do_not_change_earlier_levels():
    model = tiny_model()
    slots, profile = map(torch.tensor, random_requests(2))
    a, *_ = model(slots, profile, torch.tensor([[[1, 2, 3]]] * 2))
    b, *_ = model(slots, profile, torch.tensor([[[1, 2, 6]]] * 2))
    assert torch.equal(a[2], b[2])
    assert not torch.allclose(a[3], b[3])


@torch.no_grad()
def test_empty_slots_do_not_matter():
    """What stands in an empty slot's other columns cannot be seen through the mask."""
    model = tiny_model()
    slots, profile = map(torch.tensor, random_requests(2))
    changed = slots.clone()
    empty = slots[..., SPEC.levels] == 0
    changed[empty] = torch.tensor([1, 1, 1, 0, 1, 1], dtype=torch.int32)
    tokens = torch.tensor([[[1, 2, 3]]] * 2)
    for x, y in zip(model(slots, profile, tokens)[0], model(changed, profile, tokens)[0], strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": 2, "shared_layers": 2}, "shared_layers < layers"),
        ({"width": 30, "heads": 4}, "divisible by heads"),
        ({"widht": 30}, "widht"),
    ],
)
def test_bad_sizes_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**values)


def test_features_and_tokenizer_must_have_the_same_levels():
    from training.model.gr4ad import Generator

    with pytest.raises(ValueError, match="expected 2 SID levels"):
        Generator(ModelConfig(), FeatureSpec(levels=2), level_sizes=LEVEL_SIZES, value_buckets=4)


@pytest.mark.parametrize("share", [True, False])
def test_the_path_from_the_history_is_open_at_first_or_closed(share):
    for initial, opened in (("copying", True), ("random", False)):
        model = tiny_model(initial_weights=initial, share_context_kv=share)
        projections = list(model.context_kv) * (3 if share else 1)
        for layer, kv in zip(model.layers, projections, strict=True):
            through = layer.out_context.weight @ kv.value.weight  # what a slot's vector becomes
            is_itself = torch.allclose(through, torch.eye(16) / 3**0.5, atol=1e-5)
            assert is_itself is opened
            assert torch.equal(layer.query_context.weight, kv.key.weight) is opened


def test_context_dropout_is_of_training_only():
    model, other = tiny_model(context_dropout=0.5), tiny_model()
    slots, profile = map(torch.from_numpy, random_requests(5))
    assert torch.equal(model.encode(slots, profile)[0], other.encode(slots, profile)[0])
    context, *_ = model.train().encode(slots, profile)
    assert 0.3 < float((context == 0).float().mean()) < 0.7


@pytest.mark.parametrize("biased", [True, False])
def test_attention_of_bf16_training_on_a_cpu_is_that_of_float32(biased):
    q, k, v = (torch.randn(2, 2, 5, 8) for _ in range(3))
    bias = torch.randn(2, 1, 1, 5) if biased else None
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(q, k, v, bias=bias)
    scores = q @ k.transpose(2, 3) / 8**0.5
    scores = scores + bias if biased else scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    assert found.dtype == torch.float32
    assert torch.allclose(found, scores.softmax(-1) @ v, atol=1e-5)
