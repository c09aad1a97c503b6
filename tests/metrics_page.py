"""Metrics pages as gateway, Triton and sidecar show them, and a service that shows some."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def server_page(
    *,
    answered: int = 0,
    rejected: int = 0,
    queue: int = 0,
    within: dict[str, int] | None = None,
    beams: tuple[int, ...] = (64, 128, 256, 64),
    model: int = 1,
    index: int = 11,
) -> str:
    """Triton's page with our families on it."""
    process = 'process="beam_scheduler_0_0"'
    levels = (*map(str, range(1, len(beams))), "value")
    rows = [
        "# TYPE nv_inference_request_success counter",
        f'nv_inference_request_success{{model="gr4ad",version="1"}} {answered + rejected}',
        f'nv_inference_request_success{{model="beam_scheduler",version="1"}} {answered}',
        "# TYPE nv_inference_request_duration_us counter",
        f'nv_inference_request_duration_us{{model="gr4ad",version="1"}} {30_000 * (answered + rejected)}',
        "# TYPE nv_inference_queue_duration_us counter",
        f'nv_inference_queue_duration_us{{model="beam_scheduler",version="1"}} {5_000 * answered}',
        "# TYPE nv_inference_pending_request_count gauge",
        f'nv_inference_pending_request_count{{model="beam_scheduler",version="1"}} {queue}',
        "# TYPE gr4ad_requests_total counter",
        f'gr4ad_requests_total{{outcome="answered",process="ad_resolver"}} {answered}',
        f'gr4ad_requests_total{{outcome="rejected",process="request_features"}} {rejected}',
        'gr4ad_requests_total{outcome="failed",process="request_features"} 0',
        "# TYPE gr4ad_rejected_total counter",
        f'gr4ad_rejected_total{{process="request_features",reason="queue"}} {rejected}',
        "# TYPE gr4ad_answered_within_total counter",
        *(f'gr4ad_answered_within_total{{le="{le}",{process}}} {n}' for le, n in (within or {}).items()),
        "# TYPE gr4ad_beam_rows gauge",
        f"gr4ad_beam_rows{{{process}}} {sum(beams[:-2]) + beams[-1]}",
        f"gr4ad_beam_rows_base{{{process}}} 256",
        f"gr4ad_slo_seconds{{{process}}} 0.1",
        f"gr4ad_max_queue{{{process}}} 1024",
        *(
            f'gr4ad_level_beams{{level="{name}",{process}}} {n}'
            for name, n in zip(levels, beams, strict=True)
        ),
        f"gr4ad_model_version{{{process}}} {model}",
        f"gr4ad_index_version {index}",
        "gr4ad_index_lag_seconds 0.25",
    ]
    return "\n".join(rows) + "\n"


def indexer_page(*, sequence: int = 11, applied: int = 0) -> str:
    """The sidecar's."""
    return (
        "# TYPE gr4ad_indexer_events_total counter\n"
        f'gr4ad_indexer_events_total{{kind="pause",reason="",result="applied",source="http"}} {applied}\n'
        f"gr4ad_indexer_sequence {sequence}\n"
        'gr4ad_indexer_ads{generation="t",status="active"} 55\n'
        "gr4ad_indexer_queue_depth 0\ngr4ad_indexer_dead_letters 2\n"
    )


class PageServer(ThreadingHTTPServer):
    """Shows `page`; `reads` is how often it did."""

    page, reads = "", 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/metrics"


@contextmanager
def showing(page: str) -> Iterator[PageServer]:
    """A service that shows one page until it is changed."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            server.reads += 1
            body = server.page.encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = PageServer(("127.0.0.1", 0), Handler)
    server.page = page
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
