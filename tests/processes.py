"""A function in several processes of one group, as under torchrun, without starting Python anew."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch


def in_processes(count: int, work: Callable[[int], Any], *, timeout: float = 60) -> list[Any]:
    """What `work(rank)` returned in each of `count` forked processes.

    Raises:
        AssertionError: one of them raised or did not end in time; says which, and its traceback.
    """
    context = multiprocessing.get_context("fork")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes, processes = [], []
    for rank in range(count):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(theirs, work, rank, count, port))
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    try:
        found = []
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(timeout), f"process {rank} of {count} did not end in {timeout} s"
            result, error = pipe.recv()
            assert error is None, f"process {rank} of {count}:\n{error}"
            found.append(result)
        return found
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _run(pipe: Any, work: Callable[[int], Any], rank: int, count: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        pipe.send((work(rank), None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
