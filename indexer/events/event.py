"""Ad events: what changes the index while it serves. The models are the schema that the HTTP page shows."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)

from indexer.events.content import GIVEN_FIELDS, Content, pack_vector
from indexer.events.error import shown
from serving.index.audience import MAX_COLUMNS, MAX_TEXT, MAX_TIME, MAX_VALUES, Audience
from serving.keys import MAX_KEY, id_of

Kind = Literal["create", "update", "pause", "resume", "delete"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CONTENT_FIELDS = ("account_id", "conversion_type", "text")
FIELDS = ("kind", "ad_id", "version", *CONTENT_FIELDS, *GIVEN_FIELDS, "audience")
MAX_NUMBER = (1 << 63) - 1

_Number = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
_Key = Annotated[str, Field(min_length=1, max_length=MAX_KEY)]
_AdId = Annotated[
    Annotated[_Number, Tag("number")] | Annotated[_Key, Tag("key")],
    Discriminator(lambda value: "key" if isinstance(value, str) else "number"),
]
_Account = Annotated[str, Field(max_length=256, description="advertiser the ad belongs to")]
_Conversion = Annotated[str, Field(max_length=256, description="what the ad is paid for")]
_Text = Annotated[
    str, Field(max_length=65_536, pattern=r"\S", description="what the semantic ID is made from; not blank")
]
_Finite = Annotated[float, Field(ge=-3e38, le=3e38)]  # in float32, too
_Embedding = Annotated[
    list[_Finite], Field(min_length=1, max_length=8192, description="of a model of the sender's own")
]
_Numbers = Annotated[
    dict[Annotated[str, Field(max_length=256)], _Finite],
    Field(max_length=256, description="numeric columns by name; one that is left out counts as the mean"),
]
_Sid = Annotated[
    list[Annotated[int, Field(ge=0, lt=1 << 20)]],
    Field(min_length=1, max_length=8, description="semantic ID, a code a level, where SIDs are given"),
]
_VALUES = {
    "type": "array",
    "items": {"type": "string", "minLength": 1, "maxLength": MAX_TEXT},
    "minItems": 1,
    "maxItems": MAX_VALUES,
}
_RULE = {
    "type": "object",
    "properties": {"in": _VALUES, "not_in": _VALUES},
    "minProperties": 1,
    "additionalProperties": False,
}
_TIME = {"type": "integer", "minimum": 0, "maximum": MAX_TIME}
_AUDIENCE_SCHEMA = {
    "type": "object",
    "description": "who may see the ad: values of columns of a request, and a flight [start, end) in unix "
    "seconds; {} is everybody",
    "properties": {
        "where": {"type": "object", "additionalProperties": _RULE, "maxProperties": MAX_COLUMNS},
        "start": _TIME,
        "end": _TIME,
    },
    "additionalProperties": False,
    "examples": [{"where": {"placement": {"in": ["feed"]}}, "end": 1_767_225_600}],
}
_Audience = Annotated[
    dict[str, Any],
    AfterValidator(lambda given: Audience.parse(given).to_json()),
    WithJsonSchema(_AUDIENCE_SCHEMA),
]
_LEFT_OUT: Any = None  # a null that was sent is no text, so it is refused


def _as_sent(schema: dict[str, Any]) -> None:
    """Defaults are for code: what is sent has to name its kind, and leaves out what it does not set."""
    for values in schema["properties"].values():
        values.pop("default", None)
    schema["required"] = ["kind", *schema["required"]]


def _sets_something(schema: dict[str, Any]) -> None:
    _as_sent(schema)
    schema["anyOf"] = [{"required": [name]} for name in (*CONTENT_FIELDS, *GIVEN_FIELDS, "audience")]


def _has_something(schema: dict[str, Any]) -> None:
    _as_sent(schema)
    schema["anyOf"] = [{"required": [name]} for name in ("text", *GIVEN_FIELDS)]


class AdEvent(BaseModel):
    """One change of one ad; each kind is a class of its own.

    Attributes:
        kind: what happened.
        sent_id: field `ad_id`: a number 0 .. 2**63 - 1 or, as text, a key.
        version: of the ad, 0 .. 2**63 - 1; a later one wins, in whatever order they arrive.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, json_schema_extra=_as_sent)

    kind: Kind
    sent_id: Annotated[_AdId, Field(alias="ad_id", description="number, or key where ids are texts")]
    version: Annotated[_Number, Field(description="of the ad; a later one wins, in whatever order they come")]

    @property
    def key(self) -> str | None:
        """Key of the ad; None where it was sent as a number."""
        return self.sent_id if isinstance(self.sent_id, str) else None

    @cached_property
    def ad_id(self) -> int:
        """Id of the ad, of a key as `serving.keys.id_of` makes it."""
        return id_of(self.sent_id) if isinstance(self.sent_id, str) else self.sent_id

    @property
    def ad(self) -> str:
        """The ad in a message, as it was sent."""
        return shown(self.sent_id)

    @property
    def content(self) -> Content:
        """Content fields that the event sets."""
        return {}

    @property
    def audience_text(self) -> str | None:
        """Canonical text of the audience that the event sets; None where it sets none."""
        return None

    def fields(self) -> dict[str, Any]:
        """Fields that are set, as they are sent."""
        return self.model_dump(exclude_none=True, by_alias=True)


class ContentEvent(AdEvent):
    """What sets content; which of the fields a tokenizer reads is its own business."""

    text: _Text = _LEFT_OUT
    embedding: _Embedding = _LEFT_OUT
    numbers: _Numbers = _LEFT_OUT
    sid: _Sid = _LEFT_OUT
    audience: _Audience = _LEFT_OUT

    @property
    def audience_text(self) -> str | None:
        """Canonical text of the audience that the event sets; None where it sets none."""
        return None if self.audience is None else Audience.parse(self.audience).text

    @property
    def content(self) -> Content:
        """Content fields that the event sets, as the index keeps them."""
        names = (*CONTENT_FIELDS, *GIVEN_FIELDS)
        found: Content = {n: value for n in names if (value := getattr(self, n)) is not None}
        if "embedding" in found:
            found["embedding"] = pack_vector(found["embedding"])
        return found


class CreateEvent(ContentEvent):
    """A new ad, or one that was deleted, with all of its content; it is active."""

    model_config = ConfigDict(json_schema_extra=_has_something)

    kind: Literal["create"] = "create"
    account_id: _Account
    conversion_type: _Conversion

    @property
    def content(self) -> Content:
        """All three content fields, an empty text where none came, and what else came."""
        found = super().content
        found.setdefault("text", "")
        return found

    @model_validator(mode="after")
    def _has_something(self) -> Self:
        if all(getattr(self, name) is None for name in ("text", *GIVEN_FIELDS)):
            raise ValueError("expected a text")
        return self


class UpdateEvent(ContentEvent):
    """New content, at least one field of it, and with it a new semantic ID; what is left out stays."""

    model_config = ConfigDict(json_schema_extra=_sets_something)

    kind: Literal["update"] = "update"
    account_id: _Account = _LEFT_OUT
    conversion_type: _Conversion = _LEFT_OUT

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.content and self.audience is None:
            raise ValueError("expected at least one content field, or an audience")
        return self


class PauseEvent(AdEvent):
    """Takes an ad out of the answers."""

    kind: Literal["pause"] = "pause"


class ResumeEvent(AdEvent):
    """Brings an ad back into the answers."""

    kind: Literal["resume"] = "resume"


class DeleteEvent(AdEvent):
    """Takes an ad out of the answers; it stays known for a time, because histories hold it."""

    kind: Literal["delete"] = "delete"


EVENT: TypeAdapter[AdEvent] = TypeAdapter(
    Annotated[
        CreateEvent | UpdateEvent | PauseEvent | ResumeEvent | DeleteEvent,
        Field(discriminator="kind"),
    ]
)
"""Checks a mapping against the model of its kind."""
