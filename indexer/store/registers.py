"""What one event does to one ad: two registers, each of which keeps the latest version.

`status_version` is set by create, pause, resume and delete, `content_version` by create and update, so that
the same events end in the same state in any order. The one thing that depends on what came before, a create,
waits where it came too early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from indexer.events.error import shown
from indexer.events.event import CONTENT_FIELDS, AdEvent
from indexer.store.incoming import Result
from serving.index.layout import ACTIVE, STATUSES

WAITING_REASONS = ("unknown_ad", "duplicate_create")
PASSING_REASONS = (*WAITING_REASONS, "no_encoder")  # what waits goes on waiting
DELETED = STATUSES.index("deleted")
_STATUS_OF = {"create": ACTIVE, "resume": ACTIVE, "pause": STATUSES.index("paused"), "delete": DELETED}


@dataclass
class AdState:
    """An ad inside a transaction.

    Attributes:
        status: code of `STATUSES`.
        status_version: version of the event that set it.
        content_version: version of the event that set the content.
        content: account_id, conversion_type, text; None for an ad that came with given SIDs.
        key: the user's own; None where the ad only ever had a number.
    """

    status: int
    status_version: int
    content_version: int
    content: dict[str, str] | None
    key: str | None


@dataclass(frozen=True)
class Decision:
    """Result of an event, and why where it was not applied; `state` is the ad after it."""

    result: Result
    state: AdState | None
    reason: str = ""
    message: str = ""


def decide(
    event: AdEvent, state: AdState | None, *, refuse: Callable[[AdEvent], tuple[str, str] | None]
) -> Decision:
    """Effect of an event on an ad (None: unknown); `state` itself is not changed.

    Args:
        event: the event.
        state: the ad before it.
        refuse: reason and message why new content cannot be taken at the moment, None if it can.
    """
    if state is None and event.kind != "create":
        return Decision(
            "rejected", None, "unknown_ad", f"ad {event.ad}: {event.kind} of an ad that is not there"
        )
    if state is not None and event.key is not None and state.key not in (None, event.key):
        return Decision(
            "rejected",
            state,
            "key_collision",
            f"ad {event.ad}: its id {event.ad_id} is that of ad {shown(state.key)}, which is in the index; "
            f"rename one of the two",
        )
    sets_status = event.kind != "update" and (state is None or event.version > state.status_version)
    sets_content = event.kind in ("create", "update") and (
        state is None or event.version > state.content_version
    )
    if not sets_status and not sets_content:
        return Decision("stale", state)
    if event.kind == "create" and sets_status and state is not None and state.status != DELETED:
        return Decision(
            "rejected",
            state,
            "duplicate_create",
            f"ad {event.ad}: create of version {event.version}, but it is {STATUSES[state.status]} since "
            f"version {state.status_version}",
        )
    content = state.content if state else None
    if sets_content:
        if refusal := refuse(event):
            return Decision("rejected", state, *refusal)
        content = (content or {}) | event.content
        if len(content) < len(CONTENT_FIELDS):
            return Decision(
                "rejected",
                state,
                "no_content",
                f"ad {event.ad}: it came with a given SID, so an update needs {', '.join(CONTENT_FIELDS)}",
            )
    return Decision(
        "applied",
        AdState(
            _STATUS_OF[event.kind] if sets_status or state is None else state.status,
            event.version if sets_status or state is None else state.status_version,
            event.version if sets_content or state is None else state.content_version,
            content=content,
            key=event.key or (state.key if state else None),
        ),
    )
