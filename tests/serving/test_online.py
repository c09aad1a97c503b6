"""The loop closed once: an answer is reported on, learnt from, published, and the server answers by that."""

from __future__ import annotations

from benchmarks.feedback_client import send_feedback
from benchmarks.loop.stack import PUBLISHER, TRAINER, Learning, Ledger
from examples.client import Catalogue, send
from launcher.indexer_process import FeedbackProcess
from serving.model.bundle import read_manifest
from tests.waiting import wait_until
from tests.whole_way import SERVING, WholeWay, tables_with_sids
from training.loop.retention import open_checkpoint


def test_feedback_on_one_answer_changes_the_weights_that_answer(tmp_path, no_curves):
    """By the commands of the documents; then the trainer ends cleanly, and goes on."""
    tables = tables_with_sids(tmp_path / "tables")
    served = tmp_path / "served"
    way = WholeWay(
        tmp_path,
        tables=tables,
        data={"split": {"by": "weeks", "validation": 1, "test": 1}, "target_behaviors": ["conversion"]},
        tokenizer={"sids": "given", "given_sizes": [None, 8, None]},
        serving=SERVING
        | {"graph_calls": "in_process", "served_log": {"sink": "file", "folder": str(served)}},
        online={"batch_size": 4, "checkpoint_seconds": 0, "wait_seconds": 0},
        publish={"max_recall50_loss": 1.0},  # what twenty steps have learnt is little
    )
    way.to_index()
    run = way.run
    learning = Learning(run, preset=(f"--config={way.preset}",), repository=way.repository)
    options = (f"--store={run / 'feedback'}", f"--served={served}", "--window-s=0.5")
    with (
        way.serve() as server,
        FeedbackProcess(*options, log_file=tmp_path / "feedback.log") as service,
    ):
        for name in (TRAINER, PUBLISHER):
            learning.start(name)
        try:
            learning.ready()
            tensors = Catalogue.load(run).request(3, num_ads=5)

            def ask(name=""):
                return send(server.grpc_url, tensors, request_id=name)

            before = ask("first")
            assert before["model_version"].tolist() == [[1]]
            ad, at = int(before["ad_ids"][0, 4]), int(tensors["timestamp"][0, 0])
            event = {"request_id": "first", "timestamp": at, "ad_id": ad}
            events = [event | {"behavior": "conversion", "value": 9.0}]
            events += [event | {"ad_id": int(a), "behavior": "impression"} for a in before["ad_ids"][0]]
            assert not send_feedback(service.url, events)["rejected"]
            ledger = Ledger(run / "online")
            answers = [before]

            def is_new():
                answers.append(ask())
                return answers[-1]["model_version"][0, 0] > 1

            wait_until(is_new, timeout_s=120, what="a new version")
            after = answers[-1]  # not the one after it: each scheduler takes a version over by itself
            ledger.look()
            ledger.close()
            made = read_manifest(run / "bundles" / str(after["model_version"][0, 0]))
            assert made.step >= min(ledger.by_step)
            assert {state["learnt"] for state in ledger.by_step.values()} == {1}
            place = {a: i for i, a in enumerate(after["ad_ids"][0].tolist())}
            assert ad in place
            assert after["scores"][0, place[ad]] > before["scores"][0, 4]  # it was bought
            assert learning.stop(TRAINER) == 0
            assert "stopped at step" in learning.log(TRAINER)
            learning.start(TRAINER)
            wait_until(lambda: f"goes on at step {made.step}" in learning.log(TRAINER), timeout_s=120)
        finally:
            for name in learning.processes:
                learning.stop(name)
    saved = open_checkpoint(run / "online")
    assert (saved.online["learnt"], saved.online["refused"], saved.step) == (1, 0, made.step)
