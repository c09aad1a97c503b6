"""One answer as it was given: a line of JSON.

Letters: S history slots, H habits, P columns of profile and request, k ads, T SID levels.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.keys import MAX_KEY, id_of
from serving.search.rank import RankBy

MAX_REQUEST_ID = 256  # characters; a row of several has its number behind it
MAX_RECORD_BYTES = 1 << 20

_Id = Annotated[int, Field(ge=0, lt=1 << 63)]
_Key = Annotated[str, Field(min_length=1, max_length=MAX_KEY)]
_Slot = Annotated[list[int], Field(min_length=3, max_length=3)]
_Time = Annotated[int, Field(ge=0, le=1 << 40)]


class RecordError(ValueError):
    """A line is no served record."""


class ServedRecord(BaseModel):
    """One row of one request, and its answer.

    Attributes:
        kind: says what it is, among others in one stream.
        request_id: as the client gave it; of the row r of several, `<id>#<r>`. None where it gave none:
            nobody can say what came of it.
        user_id: number or key, as the client gave it; None where it gave none.
        timestamp: the request's own time, unix seconds.
        written: when it was answered, unix seconds by the server's clock.
        model_version: what answered.
        index_version: what is at least in it.
        slot_ads: [S + H], ad that each history slot shows, then habits, -1 for an empty row. With the index's
            SIDs of these ads and `slots` they are the context that the model was given.
        slots: [S + H, 3], behavior, gap bucket and count bucket.
        profile: [P], codes.
        ad_ids: [k], best first: an ad's place is its position.
        sids: [k, T].
        scores: [k], log-probabilities of the SIDs.
        expected_value: [k].
        num_ads: asked for.
        beam_widths: [T + 1], what each level kept, then beams with a value.
        degraded: searched with less than the configured widths.
        rank_by: order of the ads.
        reranked: the ranking stage has ordered them once more.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["served"] = "served"
    request_id: Annotated[str, Field(min_length=1, max_length=MAX_REQUEST_ID + 12)] | None
    user_id: _Id | _Key | None
    timestamp: _Time
    written: Annotated[float, Field(ge=0, le=1 << 40)]
    model_version: Annotated[int, Field(ge=0)]
    index_version: Annotated[int, Field(ge=0)]
    slot_ads: list[int]
    slots: list[_Slot]
    profile: list[int]
    ad_ids: list[_Id]
    sids: list[list[int]]
    scores: list[float]
    expected_value: list[float]
    num_ads: int
    beam_widths: list[int]
    degraded: bool
    rank_by: RankBy
    reranked: bool

    @model_validator(mode="after")
    def _columns_agree(self) -> ServedRecord:
        columns = {"sids": "ad_ids", "scores": "ad_ids", "expected_value": "ad_ids", "slots": "slot_ads"}
        for name, other in columns.items():
            got, expected = len(getattr(self, name)), len(getattr(self, other))
            if got != expected:
                raise ValueError(f"{name}: expected {expected} (one for each of {other}), got {got}")
        return self

    @property
    def user(self) -> int | None:
        """The user's id, of a key as `serving.keys.id_of` makes it."""
        return id_of(self.user_id) if isinstance(self.user_id, str) else self.user_id

    def encode(self) -> bytes:
        """One line, without its end."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, raw: bytes) -> ServedRecord:
        """Inverse of `encode`.

        Raises:
            RecordError: it is none; says in which field.
        """
        if len(raw) > MAX_RECORD_BYTES:
            raise RecordError(f"expected at most {MAX_RECORD_BYTES} bytes, got {len(raw)}")
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "record"
            raise RecordError(f"{where}: {first['msg']}") from None
