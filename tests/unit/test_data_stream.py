"""The stream of batches: the same with any number of workers; errors arrive; nothing stays behind."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.tiny_log import open_run, write_run
from training.data.order import BatchOrder
from training.data.stream import StreamError, stream

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Batches of the tiny log by step."""
    preset, spec, dataset = open_run(write_run(tmp_path_factory.mktemp("log")))
    groups = dataset.groups("train", target_behaviors=("conversion",), min_history=3)
    order = BatchOrder(dataset.target_counts(groups), batch_size=8, seed=1)

    def batch(step):
        epoch, rows = order(step)
        return dataset.batch(groups, rows, config=preset.training, buckets=spec.value_buckets, epoch=epoch)

    return batch


def content(batch):
    return [(name, a.dtype, a.shape, a.tobytes()) for name, a in vars(batch).items() if a is not None]


@pytest.mark.parametrize("workers", [0, 2])
def test_bit_for_bit_what_the_steps_give_in_order(build, workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    got = list(stream(build, range(5, 45), workers=workers))  # over several epochs
    assert [content(batch) for batch in got] == [content(build(step)) for step in range(5, 45)]
    assert torch.equal(torch.get_rng_state(), before)  # nor does it touch what seeds the model
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_works_ahead_without_end_until_closed(workers):
    with multiprocessing.Manager() as manager:
        built = manager.list()

        def build(step):
            built.append((step, os.getpid(), torch.get_num_threads()))
            return step

        batches = stream(build, itertools.count(7), workers=workers)
        assert next(batches) == 7
        deadline = time.monotonic() + 20
        while len(built) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(built) >= 2  # nobody asked for the second one yet
        children = psutil.Process().children()
        assert [next(batches) for _ in range(4)] == [8, 9, 10, 11]
        batches.close()
        if workers:
            pids = {pid for _, pid, _ in built}
            assert len(pids) == workers
            assert {threads for *_, threads in built} == {1}
            assert pids <= {child.pid for child in children}
            assert not any(psutil.pid_exists(pid) for pid in pids)
        count = len(built)
        time.sleep(0.1)
        assert len(built) == count < 20


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_the_step_what_it_holds_and_the_fault(workers):
    class UnusualError(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} is not {two}")

    def build(step):
        if step == 3:
            raise UnusualError("bad", "good")
        return step

    batches = stream(build, range(9), workers=workers, describe=lambda step: f"users {step * 10}, 5")
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StreamError, match="step 3") as caught:
        next(batches)
    assert str(caught.value) == "step 3: UnusualError: bad is not good; users 30, 5"
    assert 'raise UnusualError("bad", "good")' in caught.value.__notes__[0]  # where it came from
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_an_error():
    def build(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return step

    with pytest.raises(StreamError, match="killed by signal: Killed"):
        list(stream(build, range(9), workers=1))
    assert not multiprocessing.active_children()


ENDLESS = """
import itertools, os, signal, sys, time
from training.data.stream import stream
stopped, forked = [], []
# The signal comes before the second worker has run a line.
os.register_at_fork(before=lambda: forked.append(1), after_in_child=lambda: time.sleep(len(forked) - 1))
for step in stream(lambda step: step, itertools.count(), workers=2):
    if sys.argv[1] == "handled":  # as the training loop does, which finishes what it is at
        signal.signal(int(sys.argv[2]), lambda *_: stopped.append(1))
    print(step, flush=True)
    if stopped:
        stopped.append(step)
    if len(stopped) > 20:
        print("orderly", flush=True)
        break
    time.sleep(0.02)
"""


@pytest.mark.parametrize(
    ("how", "number"), [("handled", signal.SIGINT), ("plain", signal.SIGINT), ("handled", signal.SIGTERM)]
)
def test_ctrl_c_leaves_no_process(how, number):
    """A signal for the whole group, as a terminal (SIGINT) or torchrun (SIGTERM) sends it."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, how, str(int(number))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "0\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2
        os.killpg(process.pid, number)
        out, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == (0 if how == "handled" else -number), said
    assert ("orderly" in out) == (how == "handled")
    assert ("Traceback" in said) == (how == "plain"), said
    assert "_worker_loop" not in said  # workers are silent
    assert not [child for child in children if child.is_running()]


INTERRUPTED = """
import itertools, os, signal, threading, time
from training.data.stream import stream
def build(step):
    time.sleep(1 if step else 0)
    return step
for step in stream(build, itertools.count(), workers=2):
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
"""


def test_ctrl_c_while_a_batch_is_waited_for_ends_the_process():
    """The workers ignore the signal that `multiprocessing` ends them with."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=30
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr.count("Traceback") == 1, done.stderr


def test_contexts_need_no_copy_of_the_log():
    """A worker reads the memory of the main process."""
    big = np.zeros(50_000_000, np.int8)
    big[::4096] = 1

    def build(step):
        before = psutil.Process().memory_full_info().uss
        total = int(big.sum())
        return total, psutil.Process().memory_full_info().uss - before

    total, grown = next(stream(build, range(1), workers=1))
    assert total == int(big.sum())
    assert grown < 10_000_000
