"""The queue reader against a small HTTP server that answers, dawdles, lies and dies."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serving.load.queue_depth import MeanTime, QueueDepth, parse_metrics, spent

PAGE = """# HELP nv_inference_pending_request_count Pending requests awaiting execution
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="ad_resolver",version="1"} 90
nv_inference_pending_request_count{model="beam_scheduler",version="1"} 7
nv_inference_pending_request_count{model="beam_scheduler",version="2"} 5
nv_inference_pending_request_count{model="not_beam_scheduler",version="1"} 1000
nv_inference_request_success{model="beam_scheduler",version="1"} 100
nv_inference_request_success{model="ad_resolver",version="1"} 5000
nv_inference_request_failure{model="beam_scheduler",reason="BACKEND",version="1"} 3
nv_inference_request_failure{model="beam_scheduler",reason="OTHER",version="1"} 4
"""


ENTRY = """nv_inference_pending_request_count{model="request_features",version="1"} 2
nv_inference_request_success{model="request_features",version="1"} 110
nv_inference_request_failure{model="request_features",reason="OTHER",version="1"} 900
"""


class Server:
    """Metrics on a free port; `behave` is a function of the handler."""

    def __init__(self, behave):
        self.behave, self.served = behave, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                outer.served += 1
                outer.behave(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/metrics"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def page(text, *, status=200):
    def behave(handler):
        data = text.encode() if isinstance(text, str) else text
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return behave


def drip(handler):
    """A byte at a time, each within any socket timeout."""
    handler.send_response(200)
    handler.send_header("Content-Length", "10000")
    handler.end_headers()
    try:
        for _ in range(10000):
            handler.wfile.write(b"#")
            handler.wfile.flush()
            time.sleep(0.02)
    except OSError:
        pass


@pytest.fixture
def serve():
    opened = []

    def make(behave, **settings):
        server = Server(behave)
        depth = QueueDepth(server.url, **{"every_s": 0.02, "timeout_s": 0.15, "stale_s": 0.4, **settings})
        opened.extend([depth, server])
        return server, depth

    yield make
    for thing in opened:
        thing.close()


def wait_for(condition, *, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_counts_of_the_model_add_up_over_versions_and_reasons():
    reading = parse_metrics(PAGE, model="beam_scheduler", at=2.0)
    assert reading == (12, 100 + 3 + 4 + 12, 2.0, None)


def test_a_page_without_finished_requests_has_no_total():
    text = 'nv_inference_pending_request_count{version="1", model="m"} 3 1712345678\n'
    assert parse_metrics(text, model="m", at=0.0) == (3, None, 0.0, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>not found</html>",
        PAGE.replace("beam_scheduler", "other"),
        'nv_inference_pending_request_count{model="beam_scheduler"',
        'nv_inference_pending_request_count{model="beam_scheduler"} ',
        'nv_inference_pending_request_count{model="beam_scheduler"} many',
        'nv_inference_pending_request_count{model="beam_scheduler"} NaN',
        'nv_inference_pending_request_count{model="beam_scheduler"} -3',
        'nv_inference_pending_request_count{model="beam_scheduler"} +Inf',
    ],
)
def test_a_page_that_says_nothing_gives_no_reading(text):
    assert parse_metrics(text, model="beam_scheduler", at=0.0) is None


def test_reads_again_and_again(serve):
    server, depth = serve(page(PAGE))
    assert wait_for(lambda: depth.read() is not None)
    assert depth.read().pending == 12
    server.behave = page(PAGE.replace("} 7", "} 30"))
    assert wait_for(lambda: depth.read().pending == 35)


@pytest.mark.parametrize(
    "behave",
    [page("garbage"), page(b"\xff\x00" * 1000), page(PAGE, status=500), page("#" * (5 << 20)), drip],
    ids=["garbage", "binary", "error", "huge", "drip"],
)
def test_a_useless_page_makes_the_reading_stale_and_a_good_one_brings_it_back(serve, behave):
    server, depth = serve(page(PAGE))
    assert wait_for(lambda: depth.read() is not None)
    server.behave = behave
    assert wait_for(lambda: depth.read() is None)
    served = server.served
    assert wait_for(lambda: server.served > served + 1), "it goes on asking"
    server.behave = page(PAGE)
    assert wait_for(lambda: depth.read() is not None)


def test_a_server_that_is_slow_never_holds_up_the_reader_of_the_value(serve):
    server, depth = serve(lambda handler: time.sleep(3.0))
    began = time.monotonic()
    for _ in range(1000):
        assert depth.read() is None
    assert time.monotonic() - began < 0.2
    assert wait_for(lambda: server.served >= 3, seconds=2.0), "each try ends by its timeout"


def test_a_server_that_goes_away(serve):
    server, depth = serve(page(PAGE))
    assert wait_for(lambda: depth.read() is not None)
    server.close()
    server.http.server_close()
    assert wait_for(lambda: depth.read() is None, seconds=3.0)


def test_nothing_listens_and_the_log_says_it_once(caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/metrics"
        depth = QueueDepth(url, every_s=0.01)
        time.sleep(0.3)
        assert depth.read() is None
        depth.close()
    assert sum("queue depth" in r.message for r in caplog.records) == 1


def test_a_reading_is_stale_after_its_time():
    clock = [100.0]
    server = Server(page(PAGE))
    depth = QueueDepth(server.url, every_s=0.02, stale_s=1.0, clock=lambda: clock[0])
    try:
        assert wait_for(lambda: depth.read() is not None)
        depth.close()  # no new reading from here on
        clock[0] = 101.0
        assert depth.read() is not None
        clock[0] = 101.01
        assert depth.read() is None
    finally:
        server.close()


def test_a_proxy_of_the_environment_is_not_asked(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    _, depth = serve(page(PAGE))
    assert wait_for(lambda: depth.read() is not None)


def test_a_url_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"expected http.*got 'file:"):
        QueueDepth("file:///proc/self/status")


def test_arrivals_are_counted_where_requests_come_in():
    """What the entry turns away never reaches the scheduler, but it came."""
    reading = parse_metrics(PAGE + ENTRY, model="beam_scheduler", entry="request_features", at=1.0)
    assert (reading.pending, reading.total) == (12, 110 + 900 + 2)
    alone = parse_metrics(PAGE, model="beam_scheduler", entry="request_features", at=1.0)
    assert (alone.pending, alone.total) == (12, None)


def test_the_time_elsewhere_is_the_mean_of_late():
    mean = MeanTime(over_s=1.0)
    mean.update(0.0, 5.0, 100)
    assert mean.value is None, "of before it looked it says nothing"
    mean.update(0.5, 5.4, 110)
    assert mean.value == pytest.approx(0.04)
    mean.update(1.0, 5.4, 110)
    mean.update(1.6, 5.7, 120)
    assert mean.value == pytest.approx(0.3 / 10), "of the last second"
    for at in (2.0, 2.5, 3.0):
        mean.update(at, 5.7, 120)
    assert mean.value == pytest.approx(0.03), "what is known stays while nothing comes"
    mean.update(4.0, 0.1, 1)
    mean.update(4.1, 0.3, 2)
    assert mean.value == pytest.approx(0.2), "the server was started again"


def test_time_and_requests_of_a_model_are_read_from_the_page():
    text = """
nv_inference_request_success{model="ad_resolver",version="1"} 7
nv_inference_request_duration_us{model="ad_resolver",version="1"} 3500000
nv_inference_request_success{model="other",version="1"} 9
"""
    assert spent(text, model="ad_resolver") == (3.5, 7.0)
    assert spent(text, model="other") is None
