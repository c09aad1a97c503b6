"""The feedback service and a trainer, killed at random moments, while requests are served and reported on.

    python -m benchmarks.feedback_kills --kills 100     writes build/bench/feedback_kills.json

Records come from files, feedback over HTTP: sent again until it is taken, some of it twice, some late. At the
end every request must have been learnt from once a revision, the last with all that was reported. `lost` are
requests of which that is not so, `learnt_twice` samples that the trainer learnt from more than once.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.feedback_client import send_until_taken
from benchmarks.report import stamp
from feedback.store.samples import Samples
from launcher.indexer_process import FeedbackProcess, IndexerError
from launcher.paths import HOME
from serving.files import write_file
from serving.served_log.record import ServedRecord
from serving.served_log.segments import SegmentWriter

_WINDOW_S = 0.3
_CODES = {"impression": 1, "click": 2, "conversion": 3}
_ROUND_S = 2.5  # longest time from one kill to the next
_SETTLE_S = 120.0


class Feeder:
    """Serves and reports: a thread that writes records and posts what came of them.

    Attributes:
        facts: by request what was reported: ad, behavior, time, value.
    """

    def __init__(self, log: Path, service: FeedbackProcess, *, seed: int, every_s: float = 0.05) -> None:
        """Prepare; `start` begins, with a request every so many seconds."""
        self.facts: dict[str, set[tuple[int, int, int, float]]] = {}
        self._service, self._draw, self._every_s = service, random.Random(seed), every_s
        self._writer = SegmentWriter(log, file_bytes=1 << 16, keep_files=10_000)
        self._later: list[tuple[float, dict[str, Any]]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Serve no more, report what is left, end."""
        self._stopping.set()
        self._thread.join(_SETTLE_S)
        if self._thread.is_alive():
            raise TimeoutError(f"feedback was not taken within {_SETTLE_S:.0f} s")

    def _run(self) -> None:
        next_request = time.time()
        while not self._stopping.wait(0.05) or self._later:
            now = time.time()
            if now >= next_request and not self._stopping.is_set():
                self._serve()
                next_request = now + self._every_s
            due = [event for when, event in self._later if when <= now]
            self._later = [(when, event) for when, event in self._later if when > now]
            if due:
                self._post(due)

    def _serve(self) -> None:
        now, name = time.time(), f"r{len(self.facts)}"
        record = self.record(name, now=now)
        self.facts[name] = set()
        for ad in self._draw.sample(record.ad_ids, self._draw.randrange(len(record.ad_ids))):
            for behavior in ("impression", "click", "conversion")[: self._draw.randrange(1, 4)]:
                self._plan(name, ad, behavior, at=int(now))
        self._writer.write([record.encode()])

    def record(self, name: str, *, now: float) -> ServedRecord:
        """What was served: three ads."""
        return ServedRecord(
            request_id=name,
            user_id=self._draw.randrange(50),
            timestamp=int(now),
            written=now,
            model_version=1,
            index_version=1,
            slot_ads=[],
            slots=[],
            profile=[],
            ad_ids=[10, 20, 30],
            sids=[[1], [2], [3]],
            scores=[-1.0, -2.0, -3.0],
            expected_value=[1.0, 1.0, 1.0],
            num_ads=3,
            beam_widths=[3, 3],
            degraded=False,
            rank_by="probability",
            reranked=False,
        )

    def _plan(self, name: str, ad: int, behavior: str, *, at: int) -> None:
        value = float(self._draw.randrange(1, 100)) if behavior == "conversion" else 0.0
        event = {"request_id": name, "ad_id": ad, "behavior": behavior, "timestamp": at, "value": value}
        self.facts[name].add((ad, _CODES[behavior], at, value))
        for _ in range(self._draw.choice([1, 1, 2])):
            delay = self._draw.choice([0.0, 0.1, 0.1, 2.0 * _WINDOW_S, 3.0])
            self._later.append((time.time() + delay, event))

    def _post(self, events: list[dict[str, Any]]) -> None:
        """Until they are taken: after a kill nobody knows whether they were."""
        send_until_taken(lambda: self._service.url, events)


def train(store: Path, checkpoint: Path) -> None:
    """A trainer that never ends: what it has learnt and the offset are one file, written whole."""
    state: dict[str, Any] = {"offset": 0, "learnt": {}}
    if checkpoint.is_file():
        state = json.loads(checkpoint.read_text())
    with Samples(store) as samples:
        while True:
            found = samples.read(after=state["offset"], limit=16)
            for sample in found:
                facts = [[f.ad_id, f.behavior, f.timestamp, f.value] for f in sample.facts]
                learnt = state["learnt"].setdefault(sample.record.request_id, [])
                learnt.append([sample.revision, facts])
                state["offset"] = sample.sequence
            if found:
                write_file(checkpoint, json.dumps(state))
            else:
                time.sleep(0.05)


def measure(
    folder: Path, *, kills: int, seed: int = 0, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Kill, and count what is wrong.

    Args:
        folder: empty one to work in.
        kills: of the service; the trainer is killed about as often.
        seed: of everything that is drawn.
        say: is told what is done.

    Raises:
        TimeoutError: what was reported is not learnt in time.
    """
    draw, log, store, checkpoint = (
        random.Random(seed),
        folder / "log",
        folder / "store",
        folder / "trained.json",
    )
    folder.mkdir(parents=True, exist_ok=True)
    options = (f"--store={store}", f"--served={log}", f"--window-s={_WINDOW_S}", "--correct-s=3600")
    service = FeedbackProcess(*options, log_file=folder / "service.log")
    feeder = Feeder(log, service, seed=seed)
    service.start()
    feeder.start()
    trainer = _start_trainer(store, checkpoint)
    trainer_kills = 0
    try:
        for number in range(kills):
            time.sleep(draw.uniform(0, _ROUND_S))
            service.kill()
            if draw.random() < 0.5:
                trainer.kill()
                trainer.wait()
                trainer, trainer_kills = _start_trainer(store, checkpoint), trainer_kills + 1
            start_again(service, draw)
            if number % 10 == 9:
                say(f"{number + 1} kills, {len(feeder.facts)} requests")
        feeder.stop()
        learnt = _settled(feeder, checkpoint)
    finally:
        trainer.kill()
        trainer.wait()
        service.stop()
    return _judged(feeder, learnt) | {"kills": kills, "trainer_kills": trainer_kills}


def start_again(service: FeedbackProcess, draw: random.Random) -> None:
    """Start it; now and then it is killed while it starts."""
    while True:
        early = threading.Timer(draw.uniform(0.2, 1.5), service.kill) if draw.random() < 0.2 else None
        try:
            if early:
                early.start()
            service.start(ready=False)
            return
        except IndexerError:
            if early is None:
                raise
        finally:
            if early:
                early.cancel()
                early.join()


def _start_trainer(store: Path, checkpoint: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.feedback_kills", "--train", str(store), str(checkpoint)]
    return subprocess.Popen(command, cwd=HOME)


def _settled(feeder: Feeder, checkpoint: Path) -> dict[str, list[Any]]:
    """What the trainer knows, once that is everything, or no more comes."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        learnt = json.loads(checkpoint.read_text())["learnt"] if checkpoint.is_file() else {}
        if not _judged(feeder, learnt)["lost"] or time.monotonic() > deadline:
            return learnt
        time.sleep(0.5)


def _judged(feeder: Feeder, learnt: dict[str, list[Any]]) -> dict[str, Any]:
    lost = twice = samples = 0
    for name, facts in feeder.facts.items():
        revisions = learnt.get(name, [])
        samples += len(revisions)
        counts = Counter(revision for revision, _ in revisions)
        twice += sum(counts.values()) - len(counts)
        last = {tuple(fact) for fact in max(revisions)[1]} if revisions else None
        lost += last != facts or sorted(counts) != list(range(len(counts)))
    twice += sum(len(found) for name, found in learnt.items() if name not in feeder.facts)
    reported = sum(map(len, feeder.facts.values()))
    return {
        "requests": len(feeder.facts),
        "facts": reported,
        "samples": samples,
        "lost": lost,
        "learnt_twice": twice,
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="of the service [100]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, default=Path("build/bench"), help="work folder [build/bench]")
    parser.add_argument("--train", type=Path, nargs=2, metavar=("STORE", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(*arguments.train)
    folder = arguments.run / f"feedback_kills_{int(time.time())}"
    result = stamp() | measure(
        folder, kills=arguments.kills, seed=arguments.seed, say=lambda text: print(text, flush=True)
    )
    text = json.dumps(result, indent=1)
    (arguments.run / "feedback_kills.json").write_text(text + "\n")
    print(text)
    return 1 if result["lost"] or result["learnt_twice"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
