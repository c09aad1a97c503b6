"""Names in PromQL expressions, and the names that there are.

The tokenizer knows as much of the language as rules and dashboards here use.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.backend import metrics

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<range>\[[^\]]*\])
    |(?P<number>0x[0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:ms|[smhdwy])?)
    |(?P<name>[A-Za-z_:][\w:]*)
    |(?P<sign>\#.*|[^\s])""",
    re.VERBOSE,
)
_LABEL_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = _LABEL_LISTS | {"and", "or", "unless", "bool", "offset", "atan2", "inf", "nan", "start", "end"}


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric that an expression reads, with the labels that its matchers name.

    Raises:
        ValueError: brackets that do not close.
    """
    tokens = [(m.lastgroup, m[0]) for m in _TOKEN.finditer(expression) if not m[0].startswith("#")]
    at = 0

    def until(close: str) -> list[str]:
        nonlocal at
        names = []
        while at < len(tokens):
            kind, text = tokens[at]
            at += 1
            if text == close and kind == "sign":
                return names
            if kind == "name":
                names.append(text)
        raise ValueError(f"expected {close!r} in {expression!r}")

    while at < len(tokens):
        kind, text = tokens[at]
        at += 1
        following = tokens[at][1] if at < len(tokens) else ""
        if kind != "name":
            if text == "{":
                raise ValueError(f"expected a metric name before {{ in {expression!r}")
            continue
        if text.lower() in _WORDS:
            if text in _LABEL_LISTS and following == "(":
                at += 1
                until(")")
        elif following == "{":
            at += 1
            yield text, set(until("}"))
        elif following != "(" and following not in _LABEL_LISTS:  # neither a function nor an aggregation
            yield text, set()


# https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md: on by default.
# Pending requests: the same page, in releases from 24.02 on; tests/serving asks a real server for it.
_MODEL = {"model", "version"}
TRITON: dict[str, set[str]] = {
    "nv_inference_request_success": _MODEL,
    "nv_inference_request_failure": _MODEL | {"reason"},
    "nv_inference_count": _MODEL,
    "nv_inference_exec_count": _MODEL,
    "nv_inference_pending_request_count": _MODEL,
    "nv_inference_request_duration_us": _MODEL,
    "nv_inference_queue_duration_us": _MODEL,
    "nv_inference_compute_input_duration_us": _MODEL,
    "nv_inference_compute_infer_duration_us": _MODEL,
    "nv_inference_compute_output_duration_us": _MODEL,
    "nv_gpu_power_usage": {"gpu_uuid"},
    "nv_gpu_power_limit": {"gpu_uuid"},
    "nv_energy_consumption": {"gpu_uuid"},
    "nv_gpu_utilization": {"gpu_uuid"},
    "nv_gpu_memory_total_bytes": {"gpu_uuid"},
    "nv_gpu_memory_used_bytes": {"gpu_uuid"},
    "nv_cpu_utilization": set(),
    "nv_cpu_memory_total_bytes": set(),
    "nv_cpu_memory_used_bytes": set(),
}
TARGET = {"job", "instance", "namespace", "pod"}
"""Labels that Prometheus gives to all series of a target; the last two where there are pods."""


def _parts(name: str, kind: str) -> list[str]:
    return [f"{name}{part}" for part in ("_bucket", "_sum", "_count")] if kind == "histogram" else [name]


def request_path() -> dict[str, set[str]]:
    """Series of `serving.backend.metrics` with their labels."""
    families = metrics.SCHEDULER | metrics.RESOLVER | metrics.REQUESTS | metrics.REQUEST_FEATURES
    found = {p: {*f.labels, "process", "le"} for n, f in families.items() for p in _parts(n, f.kind)}
    assert found.keys() == metrics.names()
    return found


def gateway() -> dict[str, set[str]]:
    """Series of the gateway."""
    from gateway.metrics import Metrics

    return _registered(Metrics().registry)


def _registered(registry: Any, *, without: Any = None) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for collector in set(registry._collector_to_names) - {without}:
        kind = collector._type
        name = collector._name + ("_total" if kind == "counter" else "")
        found |= {p: {*collector._labelnames, "le"} for p in _parts(name, kind)}
    return found


def sidecar() -> dict[str, set[str]]:
    """Series of the sidecar: those of its registry, and those that it reads when it is asked."""
    from indexer.sidecar import metrics as indexer_metrics
    from indexer.sidecar import samples

    made = indexer_metrics.Metrics()
    found = _registered(made.registry, without=made)
    tree = ast.parse(Path(samples.__file__).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
            name = node.value.elts[0]
            assert isinstance(name, ast.Constant), ast.unparse(node)
            found[f"gr4ad_indexer_{name.value}"] = {"generation", "kind", "part", "source", "status"}
    return found
