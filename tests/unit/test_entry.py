"""The entry of a server: refuses by what schedulers wrote, and tells the metric in few messages."""

import pytest

from serving.backend import entry as module
from serving.backend.entry import TELL_EVERY_S, Entry
from serving.load.outlook import Outlook, OutlookFile
from serving.load.policy import OverloadError
from tests.fake_triton import FakeTriton


@pytest.fixture
def triton():
    return FakeTriton()


@pytest.fixture
def entry(triton, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "outlook_path", lambda: tmp_path / "outlook")
    made = Entry(triton, max_queue=100)
    yield made
    made.close()
    assert not (tmp_path / "outlook").exists()


def test_it_refuses_what_the_scheduler_s_search_makes_late_and_counts_it(triton, entry, tmp_path):
    entry.check(9.0, rows=1)  # nobody has written
    scheduler = OutlookFile(tmp_path / "outlook")
    busy = Outlook(
        taken=9.0,
        began=10.0,
        search_s=0.2,
        batch_s=0.01,
        request_s=0.01,
        spread=0.1,
        slo_s=0.1,
        max_batch=4,
        overloaded=True,
    )
    scheduler.write(10.0, busy, slot=0)
    for i in range(10):
        with pytest.raises(OverloadError, match="overloaded: 0 requests wait, the narrowest answer takes"):
            entry.check(10.0 + i * 1e-3, rows=1)
    values = triton.MetricFamily.shown["gr4ad_rejected_total"].values
    (key,) = values
    assert values[key] == [1.0], "one message, for the first"
    scheduler.write(10.3, busy._replace(search_s=0.0), slot=0)
    entry.check(10.0 + TELL_EVERY_S + 0.1, rows=1)
    assert values[key] == [1.0, 10.0], "the others with the next request"
    scheduler.close()
