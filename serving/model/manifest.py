"""What a manifest says of a model version: every key, its type, and what must hold between them.

Whoever exports writes this, whoever serves reads it, and both refuse what does not fit. Keys that are not
named here are another release's remarks and are left alone.

Letters: T SID levels, P profile columns, V codes of the value level.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from serving.model.features import FeatureSpec
from serving.model.value_correction import ValueCorrection

AD_RANKER = "ad_ranker"  # the graph of the ranking stage
FORMAT_VERSION = 4  # goes up when tensors of the graphs change their names or shapes
_READABLE = (2, 3, FORMAT_VERSION)  # in 2 there is no `copy_logprob`; in 3 it is of history slots, not habits
# Features that older manifests do not name, and what they were.
_ADDED: dict[str, Any] = {"attribution_window_s": 0, "request_features": [], "habits": 0}
MAX_VERSION = 10**18 - 1  # 18 digits, see `serving.files.number_of`

Tensor = tuple[str, Literal["INT32", "INT64", "FLOAT", "FLOAT16"], tuple[int | str, ...]]
"""Name, type and dims of an input or output of a graph; a text is a dynamic dimension."""

GraphTensors = dict[str, dict[Literal["inputs", "outputs"], tuple[Tensor, ...]]]
"""Of every graph by name."""

RankerKind = Literal["reward", "item"]
"""What a ranking stage goes by: a reward model, p x value; or the item level of the generator."""

RANKER_SOURCES: dict[str, str] = {
    "reward": "make reward export",
    "item": "train a model with an item level (model.item), then make export",
}
"""How a bundle gets a ranker of each kind, for whoever asks in vain."""

_Count = Annotated[int, Field(ge=1)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_FILE = re.compile(r"(?!.*(^|/)\.)[^/\\\0]+(/[^/\\\0]+)*")  # inside the bundle, hidden ones excepted


class ManifestError(ValueError):
    """A manifest does not say what it must, or contradicts itself."""


class ManifestFormatError(ManifestError):
    """A manifest is of another release's format."""


class RewardRankerSpec(BaseModel):
    """What is known of a reward model that ranks, beside its graph.

    Attributes:
        kind: what a request asks for by the parameter `rerank`.
        model_id: of what the graph was made from.
        features: what it is fed with, see `serving.ranking.features.feature_set`.
        target_behaviors: of the events of a history that count.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", protected_namespaces=())

    kind: Literal["reward"]
    model_id: str
    features: str
    target_behaviors: tuple[Literal["impression", "click", "conversion"], ...] = Field(min_length=1)


class ItemRankerSpec(BaseModel):
    """What is known of an item level that ranks, beside its graph.

    Attributes:
        kind: what a request asks for by the parameter `rerank`.
        width: of the vectors of ads.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    kind: Literal["item"]
    width: int = Field(ge=1)


class Manifest(BaseModel):
    """What is known of a bundle.

    Attributes:
        format_version: of this file and of the graphs' tensors.
        version: model version, a positive integer; Triton's version of the graphs.
        tokenizer_id: tokenizer whose SIDs the model speaks; names a generation of the index and its files.
        level_sizes: V_1 .. V_T.
        features: context of a request.
        value_means: mean eCPM of each value bucket, ascending as the buckets.
        value_edges: between the value buckets.
        value_correction: points of a `ValueCorrection`; none in bundles that were made without.
        profile_columns: categories of each profile column; code 0 is unknown, code i is category i - 1.
        precision: of the graphs.
        ranker: of the ranking stage; None in bundles that have none.
        graphs: inputs and outputs of `prefix` and `tail_2` .. `tail_<T + 1>`, and of `ad_ranker` where there
            is a ranker, `<graph>.onnx` each.
        sha256: digest of every file of the bundle but the manifest.
        model: sizes of the model, as its preset has them.
        step: of training.
        parity_max_error: of the FP32 graphs against PyTorch.
        quality: figures of the evaluation.
        quality_precision: of a lower precision, against FP32.
        refit: of a version that is another one with new weights: the other one, and how it compares.
        config_hash: of model and training settings.
        git_commit: of the release that exported it.
        export_seconds: what that took.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    format_version: Literal[2, 3, 4]
    version: int = Field(alias="model_version", ge=1, le=MAX_VERSION)
    tokenizer_id: str = Field(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")
    level_sizes: tuple[_Count, ...] = Field(min_length=1)
    features: FeatureSpec
    value_means: tuple[FiniteFloat, ...] = Field(min_length=1)
    value_edges: tuple[FiniteFloat, ...]
    value_correction: tuple[tuple[FiniteFloat, FiniteFloat], ...] = ()
    profile_columns: dict[str, tuple[str, ...]]
    precision: Literal["fp32", "fp16", "int8", "fp8"]
    ranker: Annotated[RewardRankerSpec | ItemRankerSpec, Field(discriminator="kind")] | None = None
    graphs: GraphTensors
    sha256: dict[str, _Digest]
    model: dict[str, Any]
    step: int
    parity_max_error: float
    quality: dict[str, Any]
    quality_precision: dict[str, Any] | None
    refit: dict[str, Any] | None = None
    config_hash: str
    git_commit: str
    export_seconds: float

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """From JSON.

        Raises:
            ManifestError: names every field that is wrong, what was expected and what came.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            for problem in error.errors():
                if problem["loc"] == ("format_version",) and problem["type"] != "missing":
                    known = ", ".join(map(str, _READABLE))
                    raise ManifestFormatError(
                        f"expected format_version in {known}, got {problem['input']!r}; another release made "
                        "it: export the model again with this one"
                    ) from error
            raise ManifestError(problems(error)) from error

    @field_validator("features", mode="before")
    @classmethod
    def _every_feature(cls, value: Any) -> Any:
        known = {field.name for field in fields(FeatureSpec)}
        if not isinstance(value, dict):
            return value
        value = _ADDED | value
        if value.keys() != known:
            raise ValueError(
                f"expected the keys {', '.join(sorted(known))}, missing: {_listed(known - value.keys())}, "
                f"unknown: {_listed(value.keys() - known)}"
            )
        return _with_tuples(value)

    @model_validator(mode="after")
    def _of_one_model(self) -> Self:
        levels = len(self.level_sizes)
        _same("features.levels", levels, self.features.levels, of="len(level_sizes)")
        _same("len(value_edges)", len(self.value_means) - 1, len(self.value_edges), of="len(value_means) - 1")
        if list(self.value_means) != sorted(self.value_means):
            raise ValueError("value_means: expected ascending values, as those of the buckets are")
        ValueCorrection(self.value_correction)
        sizes = tuple(len(categories) + 1 for categories in self.profile_columns.values())
        _same("features.profile_sizes", sizes, self.features.profile_sizes, of="sizes of profile_columns")
        stems = ["prefix", *(f"tail_{level}" for level in range(2, levels + 2))]
        stems += [AD_RANKER] if self.ranker else []
        of = f"a model of {levels} levels with{'' if self.ranker else 'out'} a ranker"
        _same("graphs", sorted(stems), sorted(self.graphs), of=of)
        for name in self.sha256:
            if not _FILE.fullmatch(name):
                raise ValueError(f"sha256: expected names of files inside the bundle, got {name!r}")
        copies = self.model.get("copy_path", False)
        _same("copy_logprob among the outputs of prefix", copies, self.has_copy_path, of="model.copy_path")
        _same("features.habits above 0", copies, self.features.habits > 0, of="model.copy_path")
        missing = {f"{stem}.onnx" for stem in stems} - self.sha256.keys()
        if missing:
            raise ValueError(f"sha256: expected every graph, missing: {_listed(missing)}")
        return self

    @property
    def levels(self) -> int:
        """SID levels T."""
        return len(self.level_sizes)

    @property
    def ranker_kind(self) -> RankerKind | None:
        """What the ranking stage goes by; None without one."""
        return None if self.ranker is None else self.ranker.kind

    @property
    def has_copy_path(self) -> bool:
        """Whether the prefix says what the history adds, see `serving.search.copy_path`."""
        return any(name == "copy_logprob" for name, _, _ in self.graphs["prefix"]["outputs"])

    @property
    def value_table(self) -> np.ndarray:
        """Float32 [V], `value_means`."""
        return np.asarray(self.value_means, np.float32)


def problems(error: ValidationError) -> str:
    """Every problem of a JSON text with its place and what came, in one line."""
    return "; ".join(map(_problem, error.errors()))


def _problem(error: Mapping[str, Any]) -> str:
    place, value = ".".join(map(str, error["loc"])), error["input"]
    came = f", got {repr(value)[:80]}" if isinstance(value, str | int | float) and place else ""
    return f"{place}: {error['msg']}{came}" if place else str(error["msg"])


def _same(name: str, expected: object, got: object, *, of: str) -> None:
    if got != expected:
        raise ValueError(f"{name}: expected {expected} ({of}), got {got}")


def _with_tuples(value: Any) -> Any:
    """JSON with a tuple for every list, as the frozen classes have them."""
    if isinstance(value, dict):
        return {name: _with_tuples(v) for name, v in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
