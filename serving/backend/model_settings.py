"""How settings reach a Triton model: one JSON text, the parameter `settings` of its config.pbtxt.

Rendering resolves the preset's section and writes it, an adapter reads it once, in `initialize`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.backend.plans import SearchPlans
from serving.backend.settings import ServingConfig
from serving.backend.terms import TermColumns
from serving.model.features import FeatureSpec
from serving.model.manifest import RANKER_SOURCES, RankerKind, problems

HOME = Path(os.environ.get("GR4AD_HOME", Path(__file__).resolve().parents[2]))
PARAMETER = "settings"


class SettingsError(ValueError):
    """A model's config.pbtxt does not carry the settings that this release reads."""


class _Settings(BaseModel):
    """Settings of a Triton model. No key has a default: whoever renders writes them all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, args: Mapping[str, str]) -> Self:
        """From what Triton hands to `initialize`.

        Raises:
            SettingsError: there are none, or keys are missing, unknown or of another type.
        """
        config = json.loads(args["model_config"])
        parameters = config.get("parameters", {})
        where = f"config.pbtxt of {config['name']}, parameter {PARAMETER}"
        if PARAMETER not in parameters:
            found = ", ".join(sorted(parameters)) or "none"
            raise SettingsError(f"{where}: expected it, got parameters {found}; render the repository again")
        try:
            return cls.model_validate_json(parameters[PARAMETER]["string_value"], strict=True)
        except ValidationError as error:
            raise SettingsError(f"{where}: {problems(error)}; render the repository again") from error


class ModelSettings(_Settings):
    """Settings of the Python models of the request path.

    Attributes:
        bundles: folder of bundles, relative to the checkout or absolute.
        index: folder of the index, likewise.
        features: what a request is made into, for every model version of this repository.
        profile_columns: categories of each profile column; none where requests have no terms.
        ranker: what the ranking stage of every version goes by; None where they have none.
        graph_memory: where outputs of the graphs stay: "host", or "device", on the GPU that made them.
        pad_shapes: whether calls of the graphs are padded to the shapes that have CUDA graphs.
        serving: the preset's section, nothing of it left open.
    """

    bundles: str
    index: str
    features: FeatureSpec
    profile_columns: dict[str, tuple[str, ...]]
    ranker: RankerKind | None
    graph_memory: Literal["host", "device"]
    pad_shapes: bool
    serving: ServingConfig

    @classmethod
    def of(
        cls,
        config: ServingConfig,
        *,
        bundles: str,
        index: str,
        features: FeatureSpec,
        profile_columns: dict[str, tuple[str, ...]],
        ranker: RankerKind | None,
        graph_memory: Literal["host", "device"],
        pad_shapes: bool,
    ) -> ModelSettings:
        """Resolve a section for models of these features and this ranker.

        Raises:
            ValueError: see `SearchPlans.of`; or the section asks for a ranker that they do not have.
        """
        if config.rerank not in ("off", ranker):
            raise ValueError(
                f"serving.rerank: expected off{f' or {ranker}' if ranker else ''}, as the bundle has "
                f"{f'the ranker {ranker}' if ranker else 'no ranker'}, got {config.rerank}; "
                f"{RANKER_SOURCES[config.rerank]}"
            )
        # On a GPU a call costs more than the rows that it spares, and engines hold no wider shapes.
        prune = config.prune if graph_memory == "host" else "off"
        plans = SearchPlans.of(config, levels=features.levels, pruned=prune == "exact")
        resolved = {
            "prune": prune,
            "widths": str(plans.plan),
            "max_widths": str(plans.max_plan),
            "ladder": str(plans.ladder),
            "normalise": "-".join(plans.normalise),
        }
        return cls(
            bundles=bundles,
            index=index,
            features=features,
            profile_columns=profile_columns if config.audience == "on" else {},
            ranker=ranker,
            graph_memory=graph_memory,
            pad_shapes=pad_shapes,
            serving=ServingConfig(**config.model_dump() | resolved),
        )

    @property
    def terms(self) -> TermColumns | None:
        """Columns that audiences may name; None where requests have no terms.

        Raises:
            ValueError: see `TermColumns`.
        """
        if self.serving.audience == "off":
            return None
        return TermColumns(
            self.profile_columns,
            request_features=self.features.request_features,
            attributes=self.serving.attributes,
        )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _ = self.terms
        missing = ServingConfig.model_fields.keys() - self.serving.model_fields_set
        if missing:
            raise ValueError(f"serving: expected every key, missing: {', '.join(sorted(missing))}")
        return self

    @property
    def bundles_folder(self) -> Path:
        """Folder of bundles, absolute."""
        return HOME / self.bundles

    @property
    def index_folder(self) -> Path:
        """Folder of the index, absolute."""
        return HOME / self.index

    @property
    def served_log_folder(self) -> Path:
        """Folder of the served log's files, absolute."""
        folder = self.serving.served_log.folder
        return self.index_folder.with_name("served") if folder is None else HOME / folder


class GraphSettings(_Settings):
    """Settings of a graph that the Python backend runs (cpu target).

    Attributes:
        bundles: folder of bundles, relative to the checkout or absolute.
        graph: name of the graph, without .onnx.
        threads: CPU threads.
    """

    bundles: str
    graph: str
    threads: int = Field(ge=1)

    def bundle(self, version: str) -> Path:
        """Folder of a model version's bundle, absolute."""
        return HOME / self.bundles / version
