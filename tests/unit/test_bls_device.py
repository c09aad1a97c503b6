"""Graph calls whose tensors stay on a GPU, with stand-ins for the GPU; and calls padded to few shapes."""

import logging
import sys
import time
from types import ModuleType

import numpy as np
import pytest

from serving.backend.engine import shape_buckets
from serving.engines.bls import BlsExecutor, EngineError
from serving.engines.ort import OrtExecutor
from serving.engines.padding import PaddedExecutor
from serving.model.bundle import read_manifest
from serving.search import beam_search as module
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.fake_triton import FakeTriton, InferenceResponse, Request, Tensor, TritonError, load_model
from tests.model_config import with_settings
from tests.pipeline import WIDTHS, serving_config
from tests.tiny import VALUE_TABLE, random_requests, random_slot_ads, tiny_snapshot
from tests.unit.test_padding import check_shapes

GRAPHS = ["lazyar_prefix", *(f"lazyar_tail_{t}" for t in (2, 3, 4))]
CPU, GPU = 0, 1


class HostTensor(Tensor):
    def is_cpu(self):
        return True

    @staticmethod
    def from_dlpack(name, on_device):
        return DeviceTensor(name, on_device.array)


class DeviceTensor(Tensor):
    """A tensor that NumPy cannot see."""

    def is_cpu(self):
        return False

    @staticmethod
    def from_dlpack(name, on_device):
        return DeviceTensor(name, on_device.array)

    def as_numpy(self):
        raise TritonError(f"{self.name()}: a tensor that is not on the CPU has no NumPy array")

    def to_dlpack(self):
        return ("capsule", self._array)


class DeviceTriton(FakeTriton):
    """Graphs on a GPU: outputs lie where the caller prefers them, unless `stubborn`."""

    Tensor = HostTensor
    TRITONSERVER_MEMORY_GPU = GPU

    def __init__(self, *, stubborn=False):
        super().__init__()
        self.memory = []
        fake, plain = self, self.InferenceRequest

        class InferenceRequest(plain):
            def __init__(self, *, preferred_memory, **options):
                super().__init__(preferred_memory=preferred_memory, **options)
                self.memory = preferred_memory.memory
                fake.memory.append(self.memory)

            def exec(self):
                fake.calls.append((self.name, self.version))
                fake.tensors.append({t.name(): t for t in self.inputs})
                try:
                    inputs = {t.name(): t._array for t in self.inputs}
                    found = fake.models[self.name](self.version, inputs)
                except Exception as error:  # noqa: BLE001
                    return InferenceResponse(error=TritonError(f"{type(error).__name__}: {error}"))
                kind = DeviceTensor if self.memory == GPU and not stubborn else HostTensor
                return InferenceResponse([kind(n, found[n]) for n in self.wanted])

        self.InferenceRequest = InferenceRequest


class Cupy(ModuleType):
    """Counts the arrays that come to the host."""

    def __init__(self):
        super().__init__("cupy")
        self.copied = []

    def from_dlpack(self, capsule):
        kind, array = capsule
        assert kind == "capsule"
        return OnDevice(array, self.copied)

    def concatenate(self, parts, axis):
        return OnDevice(np.concatenate([p.array for p in parts], axis), self.copied)


class OnDevice:
    """An array of CuPy."""

    def __init__(self, array, copied):
        self.array, self.shape, self.copied = array, array.shape, copied

    def get(self):
        self.copied.append(self.shape)
        return self.array.copy()


@pytest.fixture
def cupy(monkeypatch):
    module = Cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # `import cupy` raises ImportError


def serve(triton, pipeline):
    """The real graphs, called by name."""
    engine = OrtExecutor(pipeline.bundles / "1", levels=3)
    sessions = {"lazyar_prefix": engine._prefix} | {f"lazyar_tail_{t}": s for t, s in engine._tails.items()}
    for name, session in sessions.items():

        def call(version, inputs, *, session=session):
            assert version == 1
            names = [o.name for o in session.get_outputs()]
            return dict(zip(names, session.run(names, inputs), strict=True))

        triton.models[name] = call
    return triton


def search(executor, count=3, **options):
    slots, profile = random_requests(count)
    return beam_search(
        executor,
        tiny_snapshot().trie,
        slots,
        profile,
        plan=WidthPlan.parse(WIDTHS, levels=3),
        num_results=np.full(count, 5),
        value_table=VALUE_TABLE,
        **options,
    )


def check_same(found, expected):
    for name in ("sids", "scores", "expected_value", "leaves", "widths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_only_scores_come_to_the_host(pipeline, cupy):
    triton = serve(DeviceTriton(), pipeline)
    found = search(BlsExecutor(triton, levels=3, version=1, device_memory=True))
    check_same(found, search(OrtExecutor(pipeline.bundles / "1", levels=3)))
    assert triton.calls == [(name, 1) for name in GRAPHS]
    assert triton.memory == [GPU] * 4
    # log-probabilities of a level each: [B, V_1], then [B, n, C]
    assert [shape[0] for shape in cupy.copied] == [3] * 4
    assert [len(shape) for shape in cupy.copied] == [2, 3, 3, 3]


@pytest.mark.parametrize(("stubborn", "device"), [(False, True), (True, True), (False, False)])
def test_two_calls_of_a_level_are_joined_where_they_lie(stubborn, device, pipeline, cupy, monkeypatch):
    monkeypatch.setattr(module, "narrow_widths", lambda widths, *, pool: (2, 3, pool))
    triton = serve(DeviceTriton(stubborn=stubborn), pipeline)
    pool = {"pool": np.array([5, 5, 5])}
    found = search(BlsExecutor(triton, levels=3, version=1, device_memory=device), **pool)
    check_same(found, search(OrtExecutor(pipeline.bundles / "1", levels=3), **pool))
    assert [name for name, _ in triton.calls].count("lazyar_tail_2") == 2
    joined = triton.tensors[-1]["past_kv_2"]
    assert isinstance(joined, DeviceTensor if device and not stubborn else HostTensor)
    assert joined._array.shape[2] > 2
    assert all(len(shape) < 4 for shape in cupy.copied), "no keys and values came to the host"


def test_keys_and_values_are_the_callees_own_tensors(pipeline, cupy):
    triton = serve(DeviceTriton(), pipeline)
    executor = BlsExecutor(triton, levels=3, version=1, device_memory=True)
    slots, profile = random_requests(2)
    logprob, carry = executor.prefix(slots, profile)
    assert type(logprob) is np.ndarray
    assert set(carry) == {"m", "context_kv", "context_bias", "past_kv_1"}
    token, allowed = np.zeros((2, 1), np.int32), np.zeros((2, 1, 3), np.int32)
    logprob, after = executor.tail(2, carry, parents=[], token=token, allowed=allowed)
    assert logprob.shape == (2, 1, 3)
    executor.tail(3, after, parents=[token], token=token, allowed=allowed)
    for call, names in ((1, carry), (2, after)):
        for name in names:
            assert isinstance(after[name], DeviceTensor)
            assert triton.tensors[call][name] is after[name]
    for name in ("token", "allowed"):
        assert isinstance(triton.tensors[1][name], HostTensor)


def test_a_model_that_answers_in_host_memory_anyway(pipeline, cupy):
    """Preferred memory is a wish."""
    triton = serve(DeviceTriton(stubborn=True), pipeline)
    found = search(BlsExecutor(triton, levels=3, version=1, device_memory=True))
    check_same(found, search(OrtExecutor(pipeline.bundles / "1", levels=3)))
    assert triton.memory == [GPU] * 4
    assert cupy.copied == []


def test_without_cupy_everything_goes_through_host_memory(pipeline, no_cupy, caplog):
    triton = serve(DeviceTriton(), pipeline)
    with caplog.at_level(logging.WARNING):
        executor = BlsExecutor(triton, levels=3, version=1, device_memory=True)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "keys and values pass through host memory: CuPy cannot be imported" in caplog.text
    check_same(search(executor), search(OrtExecutor(pipeline.bundles / "1", levels=3)))
    assert triton.memory == [CPU] * 4


def test_host_memory_asks_for_no_cupy(pipeline, cupy, caplog):
    triton = serve(DeviceTriton(), pipeline)
    search(BlsExecutor(triton, levels=3, version=1))
    assert triton.memory == [CPU] * 4
    assert cupy.copied == []
    assert caplog.text == ""


def test_an_error_on_the_device_names_model_and_version(pipeline, cupy):
    triton = DeviceTriton()
    slots, profile = random_requests(1)
    with pytest.raises(EngineError, match="lazyar_prefix version 1: KeyError"):
        BlsExecutor(triton, levels=3, version=1, device_memory=True).prefix(slots, profile)


@pytest.fixture
def load_scheduler(pipeline, tmp_path):
    """The scheduler's adapter with some parameters changed."""
    opened = []

    def load(triton, **changes):
        folder = pipeline.repository / "beam_scheduler"
        config = with_settings(folder / "config.pbtxt", tmp_path / "config.pbtxt", **changes)
        for model in opened:
            model.scheduler._reader.close()
        opened.clear()
        opened.append(load_model(folder / "1" / "model.py", triton, config=config))
        opened[0].scheduler.search([])  # the graphs are tried once, which is no call of a request
        for calls in (triton.calls, triton.tensors, triton.memory):
            calls.clear()
        return opened[0]

    yield load
    for model in opened:
        model.scheduler._reader.close()


def request(rows):
    slot_ads, slots, profile, _ = random_slot_ads(rows)
    return Request(
        {
            "slot_ads": slot_ads,
            "slots": slots,
            "profile_codes": profile,
            "arrived": np.full((rows, 1), time.monotonic()),
            "num_ads": np.full((rows, 1), 5, np.int32),
            "exclude": np.full((rows, 2), -1, np.int64),
        }
    )


def shapes_of(triton):
    """Calls as `check_shapes` reads them."""
    return [
        (name.removeprefix("lazyar_"), {n: t._array.shape for n, t in tensors.items()})
        for (name, _), tensors in zip(triton.calls, triton.tensors, strict=True)
    ]


def test_the_scheduler_pads(pipeline, load_scheduler, cupy):
    """On the device, in the shapes of the CUDA graphs; the answer is that of a scheduler that does not."""
    plain = serve(DeviceTriton(), pipeline)
    expected = load_scheduler(plain).execute([request(2), request(1)])
    assert {t["token"]._array.shape[0] for t in plain.tensors[1:]} == {3}
    assert plain.memory == [CPU] * 4
    padded = serve(DeviceTriton(), pipeline)
    model = load_scheduler(padded, pad_shapes=True, graph_memory="device")
    found = model.execute([request(2), request(1)])
    for a, b in zip(found, expected, strict=True):
        for name, array in b.arrays().items():
            np.testing.assert_allclose(a.arrays()[name], array, rtol=1e-5)
    buckets = shape_buckets(read_manifest(pipeline.bundles / "1"), serving_config())
    assert buckets.batch == (1, 2, 4, 8)
    assert buckets.beams == ((4,), (8,), (6,))
    check_shapes(shapes_of(padded), buckets)
    assert {t["token"]._array.shape for t in padded.tensors[1:]} == {(4, 4), (4, 8), (4, 6)}
    assert padded.memory == [GPU] * 4


def test_the_scheduler_pads_to_the_batches_and_widths_of_its_config(pipeline, load_scheduler, cupy):
    triton = serve(DeviceTriton(), pipeline)
    model = load_scheduler(triton, pad_shapes=True, serving={"max_widths": "5-9-16:7"})
    manifest = read_manifest(pipeline.bundles / "1")
    assert isinstance(model.make_executor(manifest)._executor, PaddedExecutor)
    config = serving_config().model_copy(update={"max_widths": "5-9-16:7"})
    buckets = shape_buckets(manifest, config)  # what the CUDA graphs are made for
    assert model.make_executor(manifest)._executor._buckets == buckets
    assert buckets.beams == ((4, 5), (8, 9), (6, 7))
    small = manifest.model_copy(update={"level_sizes": (6, 40, 9), "value_means": (0.5, 1.0)})
    assert shape_buckets(small, config).children == ((8, 32, 40), (8, 9), (2,))
    assert isinstance(load_scheduler(triton).make_executor(manifest)._executor, BlsExecutor)
