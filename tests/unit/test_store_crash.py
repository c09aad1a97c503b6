"""SIGKILL in the middle of everything: what was acknowledged is there, once, and every table agrees."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

from indexer.events.event import AdEvent
from indexer.store.index_store import IndexStore
from indexer.store.verify import verify
from tests.index_store import (
    FakeEncoder,
    apply,
    as_reader_sees,
    create,
    empty_store,
    load,
    pause,
    resume,
    update,
)

FORK = multiprocessing.get_context("fork")
TOK = FakeEncoder("tok")


BATCH = 3


def crash_events(number: int) -> list[AdEvent]:
    """Batch `number` of an endless stream: every event takes effect, and each does something else."""
    kinds = ("update", "pause", "resume")
    if number < 10:
        return [create(BATCH * number + i, 0) for i in range(BATCH)]
    events = []
    for i in range(BATCH):
        kind, ad_id = kinds[(number + i) % 3], (number * 7 + i * 11) % (10 * BATCH)
        version = number * BATCH + i
        events.append(
            update(ad_id, version, text=str(number))
            if kind == "update"
            else (pause if kind == "pause" else resume)(ad_id, version)
        )
    return events


def apply_for_ever(path: Path, acknowledge: int) -> None:
    with IndexStore(path, encoders=[TOK]) as store:
        number = int(store.offset("test") or b"-1") + 1
        while True:
            apply(store, *crash_events(number), offset=number)
            os.write(acknowledge, number.to_bytes(8, "big"))
            number += 1


def test_killed_in_the_middle_of_applies(tmp_path):
    empty_store(tmp_path).close()
    generator, acknowledged, kills = random.Random(0), -1, 12
    for _ in range(kills):
        reading, writing = os.pipe()
        process = FORK.Process(target=apply_for_ever, args=(tmp_path, writing))
        process.start()
        os.close(writing)
        time.sleep(0.03 + 0.12 * generator.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        numbers = b""
        while chunk := os.read(reading, 1 << 16):
            numbers += chunk
        os.close(reading)
        acknowledged = max(
            acknowledged,
            int.from_bytes(numbers[len(numbers) // 8 * 8 - 8 :][:8], "big") if len(numbers) >= 8 else -1,
        )
        assert verify(tmp_path) == []
    with IndexStore(tmp_path, encoders=[TOK]) as store:
        last = int(store.offset("test"))
        assert last >= acknowledged > kills
        counters = store.file.counters
        assert sum(n for name, n in counters.items() if name.startswith("applied")) == BATCH * (last + 1)
        assert counters.keys() <= {f"applied.{k}" for k in ("create", "update", "pause", "resume")}
        assert store.meta.sequence == last + 2
        seen = as_reader_sees(store)
    with empty_store(tmp_path / "whole", sync=False) as store:
        for number in range(last + 1):
            apply(store, *crash_events(number), offset=number)
        assert as_reader_sees(store) == seen


def test_killed_in_the_middle_of_builds(tmp_path):
    with IndexStore(tmp_path) as store:
        contents = [load(store, seed, 3000) for seed in range(2)]

    def build_for_ever():
        with IndexStore(tmp_path) as store:
            while True:
                for seed in range(2):
                    load(store, seed, 3000)

    for number in range(6):
        process = FORK.Process(target=build_for_ever)
        process.start()
        time.sleep(0.08 + number * 0.015)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert verify(tmp_path) == []
        with IndexStore(tmp_path) as store:
            assert as_reader_sees(store) in contents
