"""What one event does to one ad: two registers, each of which keeps the latest version.

`status_version` is set by create, pause, resume and delete, `content_version` by create and update, so that
the same events end in the same state in any order. The one thing that depends on what came before, a create,
waits where it came too early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from indexer.events.content import Content
from indexer.events.error import shown
from indexer.events.event import CONTENT_FIELDS, AdEvent
from indexer.store.incoming import Result
from serving.index.audience import EVERYBODY
from serving.index.eligible import NO_ACCOUNT
from serving.index.layout import ACTIVE, STATUSES
from serving.keys import hash_of

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
        content: account_id, conversion_type, text and what else it came with; None where all that the index
            was given are SIDs.
        key: the user's own; None where the ad only ever had a number.
        audience: canonical text.
        account: `serving.keys.hash_of` its account.
    """

    status: int
    status_version: int
    content_version: int
    content: Content | None
    key: str | None
    audience: str = EVERYBODY
    account: int = NO_ACCOUNT


@dataclass(frozen=True)
class Decision:
    """Result of an event, and why where it was not applied; `state` is the ad after it."""

    result: Result
    state: AdState | None
    reason: str = ""
    message: str = ""


def decide(
    event: AdEvent,
    state: AdState | None,
    *,
    refuse: Callable[[AdEvent, Content], tuple[str, str] | None],
) -> Decision:
    """Effect of an event on an ad (None: unknown); `state` itself is not changed.

    Args:
        event: the event.
        state: the ad before it.
        refuse: reason and message why the content that the ad would have cannot be taken at the moment, None
            if it can.
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
    account = state.account if state else NO_ACCOUNT
    audience = state.audience if state and event.kind != "create" else EVERYBODY
    if sets_content:
        content = (content or {}) | event.content if event.content else content
        if refusal := refuse(event, content or {}):
            return Decision("rejected", state, *refusal)
        if event.content and not (content or {}).keys() >= set(CONTENT_FIELDS):
            return Decision(
                "rejected",
                state,
                "no_content",
                f"ad {event.ad}: it came with a given SID, so an update needs {', '.join(CONTENT_FIELDS)}",
            )
        account = hash_of(event.content["account_id"]) if "account_id" in event.content else account
        audience = audience if event.audience_text is None else event.audience_text
    elif state:
        audience = state.audience
    return Decision(
        "applied",
        AdState(
            _STATUS_OF[event.kind] if sets_status or state is None else state.status,
            event.version if sets_status or state is None else state.status_version,
            event.version if sets_content or state is None else state.content_version,
            content=content,
            key=event.key or (state.key if state else None),
            audience=audience,
            account=account,
        ),
    )
