"""Feedback: what a user did with an ad of an answer. The model is the schema that the HTTP page shows."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.keys import MAX_KEY, id_of
from serving.served_log.record import MAX_REQUEST_ID

Behavior = Literal["impression", "click", "conversion"]
MAX_VALUE = 3e38  # finite in float32, too


class FeedbackEvent(BaseModel):
    """One thing that a user did with one ad of one answer.

    Attributes:
        request_id: as the request was sent; of the row r of several, `<id>#<r>`.
        sent_id: field `ad_id`: a number or, as text, a key.
        behavior: what was done.
        timestamp: when, unix seconds.
        value: of a conversion, which must have one; eCPM-like.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    request_id: Annotated[
        str,
        Field(min_length=1, max_length=MAX_REQUEST_ID + 12, description="id that the request was sent with"),
    ]
    sent_id: Annotated[
        Annotated[int, Field(ge=0, lt=1 << 63)] | Annotated[str, Field(min_length=1, max_length=MAX_KEY)],
        Field(alias="ad_id", description="ad of the answer: number, or key where ids are texts"),
    ]
    behavior: Annotated[Behavior, Field(description="what the user did")]
    timestamp: Annotated[int, Field(ge=0, le=1 << 40, description="when, unix seconds")]
    value: Annotated[
        float | None,
        Field(ge=0, le=MAX_VALUE, description="what it was worth; a conversion must have one"),
    ] = None

    @model_validator(mode="after")
    def _conversion_has_a_value(self) -> Self:
        if self.behavior == "conversion" and self.value is None:
            raise ValueError("expected a value")
        return self

    @property
    def kind(self) -> str:
        """A word, for counters."""
        return self.behavior

    @property
    def ad_id(self) -> int:
        """Id of the ad, of a key as `serving.keys.id_of` makes it."""
        return id_of(self.sent_id) if isinstance(self.sent_id, str) else self.sent_id
