"""HTTP API of the sidecar: events in, ads and dead letters out, health and metrics."""

from __future__ import annotations

from fastapi import FastAPI

from indexer.http.api import Api
from indexer.http.dead_letters import add_dead_letters
from indexer.http.errors import add_error_answers
from indexer.http.events import add_events
from indexer.http.gaps import add_gaps
from indexer.http.guard import HostCheck
from indexer.http.reads import add_health, add_reads
from indexer.http.schema import add_event_schemas, bulk_body, event_body


def create_app(api: Api) -> FastAPI:
    """The application; it holds no state of its own."""
    app = FastAPI(
        title="gr4ad indexer",
        version="1",
        description="Takes ad events and keeps the semantic-ID index of the ads. An event is answered after "
        "its commit: what was answered survives a crash. Events of an ad carry a version; they may be "
        "repeated and may come in any order.",
    )
    app.add_middleware(HostCheck, guard=api.guard)
    add_error_answers(app)
    add_events(
        app,
        api,
        path="/events",
        event_body=event_body(),
        bulk_body=bulk_body(rows=api.limits.bulk_rows),
    )
    add_dead_letters(app, api)
    add_gaps(app, api)
    add_reads(app, api)
    add_health(app, api)
    add_event_schemas(app)
    return app
