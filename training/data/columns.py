"""Columns of the three tables: their types, what is cast to them, and what stands in where one is missing."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import polars as pl

from training.data.casts import Kind
from training.data.modalities import Modalities, is_of_modality
from training.preset.data import DataConfig

STATUSES = ("active", "paused", "deleted")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Column:
    """What is demanded of one column.

    Attributes:
        dtypes: that its values may have, once cast.
        kind: what other types are cast to; see `training.data.casts`.
        required: whether the table must have it.
        default: what a table without it gets; None leaves it out.
        nullable: whether it may hold nulls.
    """

    dtypes: tuple[pl.DataType, ...]
    kind: Kind = "text"
    required: bool = True
    default: pl.Expr | None = None
    nullable: bool = False


# Ids are integers, or strings (keys) that become integers once the tables are checked.
_ID = (pl.Int64(), pl.String())
_TEXT = (pl.String(),)
_INTEGER = (pl.Int64(),)

ADS_COLUMNS: dict[str, Column] = {
    "ad_id": Column(_ID, "id"),
    "item_id": Column(_TEXT, required=False, default=pl.col("ad_id").cast(pl.String)),
    "account_id": Column(_TEXT, required=False, default=pl.lit(UNKNOWN)),
    "conversion_type": Column(_TEXT, required=False, default=pl.lit(UNKNOWN)),
    "text": Column(_TEXT, default=pl.lit("")),
    "created_at": Column(_INTEGER, "seconds", required=False, default=pl.lit(0, pl.Int64)),
    "status": Column(_TEXT, required=False, default=pl.lit("active")),
}
# Given by the user instead of being made here: embeddings as one list or a column each, semantic IDs; and who
# may see an ad, as JSON that `make index` reads.
GIVEN_ADS_COLUMNS = re.compile(r"embedding|embedding_\d+|sid_\d+|audience")
AUDIENCE = Column(_TEXT, nullable=True)
_FLOAT = (pl.Float32(), pl.Float64())
EMBEDDING = Column((pl.List(pl.Float32()), pl.List(pl.Float64())), "vector")
EMBEDDING_VALUE = Column(_FLOAT, "vector")
SID_CODE = Column(_INTEGER, "integer")
SPLIT_COLUMN = "split"
IDS = ("ad_id", "user_id", "request_id")
USER_ID = Column(_ID, "id")
EVENTS_COLUMNS: dict[str, Column] = {
    "user_id": USER_ID,
    "ad_id": Column(_ID, "id"),
    "timestamp": Column(_INTEGER, "seconds"),
    "behavior": Column(_TEXT),
    "value": Column((pl.Float64(),), "number"),
    "provenance": Column(_TEXT, required=False, default=pl.lit(UNKNOWN)),
    "request_id": Column(_ID, "id", required=False, nullable=True),
    "position": Column(_INTEGER, "integer", required=False, nullable=True),
    SPLIT_COLUMN: Column(_TEXT, required=False, nullable=True),  # its own check names the parts
}


# Columns that a preset names. They keep their types; nulls mean that nothing is known.
PROFILE = Column(_TEXT, nullable=True)
_WHOLE = tuple(
    t() for t in (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
)
NUMERIC = Column((*_WHOLE, *_FLOAT), "quantity", nullable=True)
MODALITY = Column((*EMBEDDING.dtypes, *_FLOAT), "vector", required=False, nullable=True)
CATEGORICAL = Column((*_WHOLE, *_TEXT), "category", nullable=True)


@dataclass(frozen=True)
class Named:
    """Columns that a preset names.

    Attributes:
        profile: of users; None for all they have.
        numeric: numbers of ads.
        request: of events, what a request was besides its user.
        modalities: embeddings of ads that become one.
    """

    profile: tuple[str, ...] | None = None
    numeric: tuple[str, ...] = ()
    request: tuple[str, ...] = ()
    modalities: Modalities = field(default_factory=dict)

    def rule(self, table: str, column: str) -> Column | None:
        """What is demanded of a column of ads, users or events; None for one that is not used."""
        if table == "users":
            if column == "user_id":
                return USER_ID
            return PROFILE if self.profile is None or column in self.profile else None
        if table == "events":
            return EVENTS_COLUMNS.get(column) or (CATEGORICAL if column in self.request else None)
        known = ADS_COLUMNS.get(column) or given_column(column)
        if known is None and is_of_modality(column, self.modalities):
            return MODALITY
        return known or (NUMERIC if column in self.numeric else None)

    @classmethod
    def of(cls, config: DataConfig) -> Self:
        """Those of a preset's section `data`."""
        return cls(
            config.profile_columns,
            numeric=config.numeric_columns,
            request=config.request_columns,
            modalities=config.embedding_columns,
        )

    @classmethod
    def kept(cls, ads: pl.DataFrame, events: pl.DataFrame) -> Self:
        """Those of tables that are prepared: all that the schema does not know."""
        return cls(
            numeric=tuple(n for n in ads.columns if n not in ADS_COLUMNS and given_column(n) is None),
            request=tuple(n for n in events.columns if n not in EVENTS_COLUMNS),
        )


NOTHING_NAMED = Named()


def given_column(name: str) -> Column | None:
    """What is demanded of a column of ads that holds a given embedding or semantic ID; None for others."""
    if not GIVEN_ADS_COLUMNS.fullmatch(name):
        return None
    if name == "audience":
        return AUDIENCE
    return {"e": EMBEDDING_VALUE, "s": SID_CODE}[name[0]] if "_" in name else EMBEDDING


def given_columns(ads: Iterable[str]) -> list[str]:
    """Columns of ads that hold what the tokenizer would make otherwise."""
    return [name for name in ads if given_column(name) is not None]
