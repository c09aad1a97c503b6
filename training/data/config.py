"""Settings of the data step, and of the contexts that are built from its logs."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.model.features import BEHAVIORS, FeatureSpec


class DataConfig(BaseModel):
    """Where the tables come from and how time is cut.

    Attributes:
        source: `completejourney` (the demo's public logs) or `parquet` (the user's own tables).
        path: folder with ads.parquet, users.parquet and events.parquet; for `parquet` only, and required
            there.
        validation_weeks: whole weeks before the test weeks that are held out for validation.
        test_weeks: whole weeks at the end of the log that are held out for the test.
        target_behaviors: behaviors the model learns to predict; the others appear in histories only.
        profile_columns: columns of users that become the profile, in this order; None takes all of them.

    Raises:
        pydantic.ValidationError: on an unknown key, a wrong type, or a combination that makes no sense.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["completejourney", "parquet"]
    path: str | None = None
    validation_weeks: int = Field(default=2, ge=1)
    test_weeks: int = Field(default=3, ge=1)
    target_behaviors: tuple[str, ...] = Field(default=("conversion",), min_length=1)
    profile_columns: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.source == "parquet" and not self.path:
            raise ValueError(
                "path: expected a folder with ads.parquet, users.parquet, events.parquet, got nothing"
            )
        if self.source != "parquet" and self.path is not None:
            # A path that is silently ignored would train on other data than the writer of the config thinks.
            raise ValueError(f"path: expected nothing for source {self.source!r}, got {self.path!r}")
        unknown = [name for name in self.target_behaviors if name not in BEHAVIORS]
        if unknown:
            raise ValueError(f"target_behaviors: expected some of {list(BEHAVIORS)}, got {unknown}")
        for key, names in (
            ("target_behaviors", self.target_behaviors),
            ("profile_columns", self.profile_columns),
        ):
            if names is not None and len(set(names)) != len(names):
                raise ValueError(f"{key}: expected distinct names, got {list(names)}")
        return self


class FeatureConfig(BaseModel):
    """Context of a request; see `serving.model.features.FeatureSpec` for the meaning of each key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    short_slots: int = Field(24, ge=0)
    long_slots: int = Field(36, ge=0)
    max_history: int = Field(1024, ge=1)

    def spec(self, *, levels: int, profile_sizes: tuple[int, ...]) -> FeatureSpec:
        """With what the data know: SID levels and the cardinality of each profile column.

        Raises:
            ValueError: no history could fill a slot.
        """
        return FeatureSpec(levels=levels, profile_sizes=profile_sizes, **self.model_dump())
