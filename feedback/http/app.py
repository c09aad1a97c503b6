"""HTTP API of the feedback service: feedback in, what is known out, health and metrics."""

from __future__ import annotations

from fastapi import FastAPI

from feedback.http.reads import add_reads
from feedback.http.schema import add_event_schema, bulk_body, event_body
from feedback.join.joiner import Joiner
from indexer.http.api import WriterApi
from indexer.http.errors import add_error_answers
from indexer.http.events import add_events
from indexer.http.guard import HostCheck
from indexer.http.reads import add_health


def create_app(api: WriterApi, joiner: Joiner) -> FastAPI:
    """The application; it holds no state of its own."""
    app = FastAPI(
        title="gr4ad feedback",
        version="1",
        description="Takes what came of answers and joins it to what was served. An event is answered after "
        "its commit: what was answered survives a crash. Events may be repeated and may come in any order. "
        "`stale` is what was known already; `applied` with the reason `waiting` is kept until the record of "
        "its request comes.",
    )
    app.add_middleware(HostCheck, guard=api.guard)
    add_error_answers(app)
    add_events(
        app,
        api,
        path="/feedback",
        event_body=event_body(),
        bulk_body=bulk_body(rows=api.limits.bulk_rows),
    )
    add_reads(app, api, joiner)
    add_health(app, api)
    add_event_schema(app)
    return app
