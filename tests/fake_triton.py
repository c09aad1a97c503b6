"""A stand-in for `triton_python_backend_utils`, as much of it as the adapters use: tests without a server."""

from __future__ import annotations

import importlib.util
import json
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError(Exception):
    INVALID_ARG, INTERNAL, UNAVAILABLE, CANCELLED = 3, 1, 4, 5

    def __init__(self, text: str, code: int = INTERNAL) -> None:
        super().__init__(text)
        self._text, self._code = text, code

    def message(self) -> str:
        return self._text

    def code(self) -> int:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self._outputs, self._error = output_tensors or [], error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def arrays(self) -> dict[str, np.ndarray]:
        assert self._error is None, self._error
        return {t.name(): t.as_numpy() for t in self._outputs}


class Request:
    """A request as an adapter gets it."""

    def __init__(self, inputs: Mapping[str, np.ndarray], parameters: str = "", *, identity: str = "") -> None:
        self.inputs, self._parameters = {k: Tensor(k, v) for k, v in inputs.items()}, parameters
        self._identity = identity
        self.gone = False

    def is_cancelled(self) -> bool:
        return self.gone

    def parameters(self) -> str:
        return self._parameters

    def request_id(self) -> str:
        return self._identity


class MetricFamily:
    """Shows, in `shown`, what a server would: metrics of families that somebody holds."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
    shown: ClassVar[weakref.WeakValueDictionary[str, MetricFamily]] = weakref.WeakValueDictionary()

    def __init__(self, *, name: str, description: str, kind: str) -> None:
        assert kind in (self.COUNTER, self.GAUGE, self.HISTOGRAM)
        assert description
        self.kind = kind
        self.values: dict[tuple[tuple[str, str], ...], list[float]] = {}
        self.shown[name] = self

    def Metric(self, *, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:  # noqa: N802
        assert (self.kind == self.HISTOGRAM) == (buckets is not None)
        return Metric(self.kind, self.values.setdefault(tuple(sorted(labels.items())), []))


class Metric:
    """Values in the order they came; a counter's are sums."""

    def __init__(self, kind: str, values: list[float]) -> None:
        self._kind, self._values = kind, values

    def _put(self, kind: str, value: float) -> None:
        assert kind == self._kind
        assert type(value) is float
        self._values.append(value + (self._values[-1] if self._values and kind == "counter" else 0.0))

    def set(self, value: float) -> None:
        self._put("gauge", value)

    def increment(self, value: float) -> None:
        self._put("counter", value)

    def observe(self, value: float) -> None:
        self._put("histogram", value)


class FakeTriton(ModuleType):
    """Answers BLS calls with `models[name](version, {name: array}) -> {name: array}`, and records them."""

    Tensor, TritonError, InferenceResponse = Tensor, TritonError, InferenceResponse
    MetricFamily = MetricFamily
    TRITONSERVER_MEMORY_CPU = 0

    def __init__(self) -> None:
        super().__init__("triton_python_backend_utils")
        self.models: dict[str, Callable[[int, dict[str, np.ndarray]], dict[str, np.ndarray]]] = {}
        self.calls: list[tuple[str, int]] = []
        self.tensors: list[dict[str, Tensor]] = []
        fake = self

        class PreferredMemory:
            def __init__(self, memory: int) -> None:
                self.memory = memory

        class InferenceRequest:
            def __init__(
                self,
                *,
                model_name: str,
                model_version: int,
                inputs: list[Tensor],
                requested_output_names: list[str],
                preferred_memory: Any,
            ) -> None:
                assert isinstance(preferred_memory, PreferredMemory)
                self.name, self.version = model_name, model_version
                self.inputs, self.wanted = inputs, requested_output_names

            def exec(self) -> InferenceResponse:
                fake.calls.append((self.name, self.version))
                fake.tensors.append({t.name(): t for t in self.inputs})
                try:
                    found = fake.models[self.name](
                        self.version, {t.name(): t.as_numpy() for t in self.inputs}
                    )
                except Exception as error:  # noqa: BLE001
                    return InferenceResponse(error=TritonError(f"{type(error).__name__}: {error}"))
                return InferenceResponse([Tensor(n, found[n]) for n in self.wanted])

        self.InferenceRequest, self.PreferredMemory = InferenceRequest, PreferredMemory

    @staticmethod
    def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
        return request.inputs.get(name)

    def is_model_ready(self, model_name: str, model_version: str = "") -> bool:
        assert isinstance(model_version, str)
        return model_name in self.models


def load_model(path: Path, fake: FakeTriton, *, config: Path) -> Any:
    """The initialised `TritonPythonModel` of a model.py, with its rendered config.pbtxt."""
    parsed = text_format.Parse(config.read_text(), model_config_pb2.ModelConfig())
    spec = importlib.util.spec_from_file_location(f"adapter_{path.parent.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, path_before = sys.modules.get("triton_python_backend_utils"), list(sys.path)
    sys.modules["triton_python_backend_utils"] = fake
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path_before
        if before is None:
            del sys.modules["triton_python_backend_utils"]
        else:
            sys.modules["triton_python_backend_utils"] = before
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_name": parsed.name,
            "model_version": path.parent.name,
            "model_repository": str(path.parents[1]),
            "model_instance_name": f"{parsed.name}_0_0",
            "model_config": json.dumps(json_format.MessageToDict(parsed, preserving_proto_field_name=True)),
        }
    )
    return model
