"""The log of the sidecar is bounded, whatever repeats itself."""

import io
import logging

from indexer.sidecar.log_limit import LogLimit


def test_a_line_of_code_speaks_twenty_times_a_minute_and_tells_what_was_left_out():
    now, page = 0.0, io.StringIO()
    log, handler = logging.getLogger("test.log_limit"), logging.StreamHandler(page)
    handler.addFilter(LogLimit(clock=lambda: now))
    log.addHandler(handler)
    log.propagate = False

    def fail(number: int) -> None:
        log.error("event %d failed", number)

    for number in range(1000):
        fail(number)
        if number % 500 == 0:
            log.error("another line")
    assert page.getvalue().splitlines() == [
        "event 0 failed", "another line", *(f"event {n} failed" for n in range(1, 20)), "another line",
    ]  # fmt: skip
    now, _ = 60.0, page.truncate(page.seek(0))
    fail(1000)
    fail(1001)
    said = ["event 1000 failed (980 more like it were left out)", "event 1001 failed"]
    assert page.getvalue().splitlines() == said
    now, _ = 200.0, page.truncate(page.seek(0))
    fail(7)
    assert page.getvalue().splitlines() == ["event 7 failed"]
