"""Once a second: Triton's metrics page, and the server's memory and CPU time."""

from __future__ import annotations

import threading
import time
import urllib.request
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample as Series

_TRITON = (  # column, metric, model
    ("pending", "nv_inference_pending_request_count", "beam_scheduler"),
    ("success_total", "nv_inference_request_success", "gr4ad"),
    ("failure_total", "nv_inference_request_failure", "gr4ad"),
)
_OWN = "gr4ad_"

Sample = dict[str, float]


def read_metrics(url: str, *, timeout_s: float = 2.0) -> list[Series]:
    """Every series of a metrics page.

    Raises:
        OSError, ValueError: no answer, or it is no metrics page.
    """
    with urllib.request.urlopen(url, timeout=timeout_s) as page:
        return parse_metrics(page.read().decode())


def parse_metrics(text: str) -> list[Series]:
    """Every series of a metrics page's text."""
    return [series for family in text_string_to_metric_families(text) for series in family.samples]


def columns(metrics: list[Series]) -> Sample:
    """Triton's pending, success and failure counts, and the sums of all `gr4ad_*`.

    Series of a metric are added up over their labels; buckets of histograms are left out.
    """
    found: Sample = {}
    for sample in metrics:
        if sample.name.startswith(_OWN) and not sample.name.endswith(("_bucket", "_created")):
            column = sample.name
        else:
            # The parser gives counters the ending that Triton leaves out.
            wanted = sample.name.removesuffix("_total"), sample.labels.get("model")
            column = next((c for c, *triton in _TRITON if tuple(triton) == wanted), "")
        if column:
            found[column] = found.get(column, 0.0) + float(sample.value)
    return found


def process_sample(pid: int) -> Sample:
    """Memory (MB, pages that processes share counted in each) and CPU seconds of a process and its children.

    Raises:
        psutil.Error: there is no such process.
    """
    process = psutil.Process(pid)
    memory = cpu = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            with each.oneshot():
                memory += each.memory_info().rss / 1e6
                cpu += sum(each.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return {"server_rss_mb": memory, "server_cpu_s": cpu}


class Sampler(threading.Thread):
    """Samples until stopped. What cannot be read is missing from a sample, and counted in `failed`."""

    def __init__(
        self, *, metrics_url: str | None, pid: int | None, start: float, interval_s: float = 1.0
    ) -> None:
        """Describe; `start()` begins.

        Args:
            metrics_url: the metrics page, or None.
            pid: of the server, or None where it is on another machine.
            start: `time.monotonic()` at which the test starts.
            interval_s: seconds from sample to sample.
        """
        super().__init__(daemon=True)
        self.samples: list[dict[str, Any]] = []
        self.failed = 0
        self._url, self._pid, self._begin, self._interval = metrics_url, pid, start, interval_s
        self._stop_event = threading.Event()

    def run(self) -> None:
        """Sample at whole intervals from the start on."""
        number = 0
        while not self._stop_event.wait(max(0.0, self._begin + number * self._interval - time.monotonic())):
            self._sample()
            number = max(number + 1, int((time.monotonic() - self._begin) / self._interval) + 1)

    def stop(self) -> list[dict[str, Any]]:
        """Stop; all samples, each with `second`, its time from the start of the test."""
        self._stop_event.set()
        self.join(timeout=5)
        return self.samples

    def _sample(self) -> None:
        found: dict[str, Any] = {"second": time.monotonic() - self._begin}
        try:
            if self._url is not None:
                found |= columns(read_metrics(self._url))
        except (OSError, ValueError):
            self.failed += 1
        try:
            if self._pid is not None:
                found |= process_sample(self._pid)
        except psutil.Error:
            self.failed += 1
        self.samples.append(found)
