"""Settings of the data step, and of the contexts that are built from its logs."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from serving.model.features import BEHAVIORS, GAP_EDGES_S, FeatureSpec
from serving.model.request_features import RequestFeature


class SplitConfig(BaseModel):
    """How the log is cut into train, validation and test.

    Attributes:
        by: `weeks` or `days`, whole ones off the end of the log; `fractions`, shares of the requests in the
            order of time; `last_events`, the last requests of each user; `column`, as the column `split` of
            the events says.
        validation: how much is held out for validation; None is 2 weeks, 1 day, 0.1 of the requests, or 1
            request of each user.
        test: how much is held out for the test; None is 3 weeks, 1 day, 0.1, or 1 request.

    Raises:
        pydantic.ValidationError: on an unknown key, a wrong type, or an amount that `by` does not know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    by: Literal["weeks", "days", "fractions", "last_events", "column"] = "weeks"
    validation: float | None = Field(default=None, gt=0)
    test: float | None = Field(default=None, gt=0)

    @property
    def sizes(self) -> tuple[float, float]:
        """Amounts of validation and test; of a column nothing is asked."""
        defaults = {"weeks": (2, 3), "days": (1, 1), "fractions": (0.1, 0.1), "last_events": (1, 1)}
        validation, test = defaults.get(self.by, (0, 0))
        return (
            validation if self.validation is None else self.validation,
            test if self.test is None else self.test,
        )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        sizes = dict(zip(("validation", "test"), self.sizes, strict=True))
        if self.by == "column" and any(sizes.values()):
            raise ValueError(f"expected no amounts beside by: column, got {sizes}")
        if self.by == "fractions" and not sum(sizes.values()) < 1:
            raise ValueError(f"expected fractions below 1 together, got {sizes}")
        if self.by not in ("fractions", "column") and any(size != int(size) for size in sizes.values()):
            raise ValueError(f"expected whole numbers for by: {self.by}, got {sizes}")
        return self


class RequestFeatureConfig(BaseModel):
    """One categorical feature of a request besides its user, as a placement, a device, the hour.

    Attributes:
        name: of the optional input of a request at serving.
        column: of the events; the name where it is left out.
        values: its categories as texts; a text that is none of them is unknown.
        size: instead of `values`, for whole numbers 0 .. size - 1.

    Raises:
        pydantic.ValidationError: both or none of `values` and `size`, or a name that no input can have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    column: str | None = None
    values: tuple[str, ...] = ()
    size: int = Field(default=0, ge=0, le=10**6)

    @model_validator(mode="after")
    def _check_feature(self) -> Self:
        self.feature()
        return self

    def feature(self) -> RequestFeature:
        """As the model stores it."""
        return RequestFeature(
            name=self.name, column=self.column or self.name, values=self.values, size=self.size
        )


class DataConfig(BaseModel):
    """Where the tables come from, what in them belongs together, and how they are cut.

    Attributes:
        source: `completejourney` (the demo's public logs) or `parquet` (the user's own tables).
        path: folder with ads.parquet, users.parquet and events.parquet; for `parquet` only, and required
            there.
        split: how train, validation and test are cut.
        attribution_window: seconds; events without a request id of one user and ad, so soon after the first
            of them, are one exposure (impression, click, conversion). 0 lets each be an exposure of its own.
        target_behaviors: behaviors the model learns to predict; the others appear in histories only.
        profile_columns: columns of users that become the profile, in this order; None takes all of them.
        numeric_columns: numbers of ads, input of a tokenizer with `embedding: given`; a null is the mean.
        embedding_columns: embeddings of ads in several modalities, by the name of their columns, with their
            dimensions: `{image: 512, video: 768}` takes image_0 .. image_511, or a list image, and so on, and
            makes one embedding of them, for a tokenizer that reads what is given; an ad without one has none.
        request_features: columns of events that say what a request was besides its user; an event's request
            has those of its first row.
        audiences: "on" gives some ads of `completejourney` an audience (docs/audience.md); own tables have a
            column of their own.

    Raises:
        pydantic.ValidationError: on an unknown key, a wrong type, or a combination that makes no sense.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["completejourney", "parquet"]
    path: str | None = None
    split: SplitConfig = SplitConfig()
    attribution_window: int = Field(default=1800, ge=0, le=10**9)
    target_behaviors: tuple[str, ...] = Field(default=("conversion",), min_length=1)
    profile_columns: tuple[str, ...] | None = None
    numeric_columns: tuple[str, ...] = ()
    embedding_columns: dict[str, Annotated[int, Field(ge=1, le=8192, strict=True)]] = {}
    request_features: tuple[RequestFeatureConfig, ...] = ()
    audiences: Literal["on", "off"] = "off"

    @property
    def embedding_widths(self) -> tuple[int, ...]:
        """Dimensions of each of several modalities; empty for a single one."""
        widths = tuple(self.embedding_columns.values())
        return widths if len(widths) > 1 else ()

    @property
    def request_columns(self) -> tuple[str, ...]:
        """Columns of events that `request_features` names."""
        return tuple(dict.fromkeys(f.column or f.name for f in self.request_features))

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.source == "parquet" and not self.path:
            raise ValueError(
                "path: expected a folder with ads.parquet, users.parquet, events.parquet, got nothing"
            )
        if self.source != "parquet" and self.path is not None:
            # A path that is silently ignored would train on other data than the writer of the config thinks.
            raise ValueError(f"path: expected nothing for source {self.source!r}, got {self.path!r}")
        if self.audiences == "on" and self.source != "completejourney":
            raise ValueError(
                f"audiences: expected off for source {self.source!r}, whose ads may have a column audience, "
                "got 'on'"
            )
        # An audience that names a column no request has is for nobody.
        profile = self.profile_columns
        if self.audiences == "on" and profile is not None and "age" not in profile:
            raise ValueError(
                f"profile_columns: expected age with audiences on, which name it, got {list(profile)}"
            )
        unknown = [name for name in self.target_behaviors if name not in BEHAVIORS]
        if unknown:
            raise ValueError(f"target_behaviors: expected some of {list(BEHAVIORS)}, got {unknown}")
        for key, names in (
            ("target_behaviors", self.target_behaviors),
            ("profile_columns", self.profile_columns),
            ("numeric_columns", self.numeric_columns),
            ("request_features", tuple(feature.name for feature in self.request_features)),
        ):
            if names is not None and len(set(names)) != len(names):
                raise ValueError(f"{key}: expected distinct names, got {list(names)}")
        return self


class FeatureConfig(BaseModel):
    """Context of a request.

    Attributes:
        short_slots: newest events that get a slot.
        long_slots: distinct ads of the whole history that get a slot, most frequent first.
        max_history: events kept of a longer history, the newest.
        gap_edges_s: upper edges in seconds of the buckets of the time since an event. The default tells weeks
            apart; a log of sessions wants seconds and minutes: [10, 60, 300, 1800, 3600, 86400, 604800].
        habits: distinct ads of the whole history that `model.copy_path` points at, most frequent first; 0
            without a copy path. No layer of the decoder sees them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    short_slots: int = Field(24, ge=0)
    long_slots: int = Field(36, ge=0)
    max_history: int = Field(1024, ge=1)
    gap_edges_s: tuple[NonNegativeInt, ...] = Field(default=GAP_EDGES_S, min_length=1)
    habits: int = Field(0, ge=0)

    def spec(
        self,
        *,
        levels: int,
        profile_sizes: tuple[int, ...],
        attribution_window_s: int = 0,
        request_features: tuple[RequestFeature, ...] = (),
    ) -> FeatureSpec:
        """With what the data know: SID levels, cardinalities of the profile, exposures, request features.

        Raises:
            ValueError: no history could fill a slot, or edges that do not grow.
        """
        return FeatureSpec(
            levels=levels,
            profile_sizes=profile_sizes,
            attribution_window_s=attribution_window_s,
            request_features=request_features,
            **self.model_dump(),
        )
