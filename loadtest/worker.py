"""One process of a load test: a locust environment and runner, started and told by `loadtest.processes`.

It says `ready` once its first request was answered. It reads `go <monotonic time>`, the start of the test for
all workers, and `stop` (or the end of the file, when that is gone): no more requests, a short wait
for answers.
"""

from gevent import monkey

monkey.patch_all()  # before anything that imports sockets, threads or gRPC

import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
from gevent.os import make_nonblocking, nb_read  # noqa: E402
from locust.env import Environment  # noqa: E402
from locust.event import Events  # noqa: E402
from locust.runners import Runner  # noqa: E402

from loadtest.clients import Client  # noqa: E402
from loadtest.mix import Mix  # noqa: E402
from loadtest.options import Load  # noqa: E402
from loadtest.recorder import Recorder  # noqa: E402
from loadtest.users import ClosedLoopUser, OpenLoopUser, Plan  # noqa: E402

_STOP_DRAIN_S = 2.0


def make_plan(load: Load, mix: Mix, worker: int, *, client: Client) -> Plan:
    """What the users of a worker do, all with the same client."""
    plan = Plan(
        mix,
        make_client=lambda: client,
        protocol=load.protocol,
        arrivals=lambda number: load.open_plan(mix, worker),
        max_outstanding=load.max_outstanding_of_each,
        parameters=load.parameters or None,
        drain_s=load.drain_s,
        own_clients=False,
    )
    if load.closed_users:
        first = sum(map(load.closed_users_of, range(worker)))
        plan.arrivals = lambda number: load.closed_plan(mix, first + number, start=plan.start or 0.0)
    return plan


def run_worker(load: Load, mix: Mix, worker: int, *, folder: Path) -> None:
    """Take part in a test; leaves worker-<n>.csv and worker-<n>.json in the folder."""
    connections = max(load.max_outstanding_of_each, load.closed_users)
    client = Client(load.url, protocol=load.protocol, deadline_s=load.deadline_s, connections=connections)
    plan = make_plan(load, mix, worker, client=client)
    client.infer(mix.users[0], plan.parameters)  # so that the first request does not wait for the connection
    user = ClosedLoopUser if load.closed_users else OpenLoopUser
    environment = Environment(user_classes=[user], events=Events())
    environment.gr4ad_plan = plan  # type: ignore[attr-defined]
    runner = environment.create_local_runner()
    recorder = Recorder(folder / f"worker-{worker}.csv", worker=worker)
    environment.events.request.add_listener(recorder.on_request)
    print("ready", flush=True)
    told = _line()
    if not told.startswith("go "):
        raise ValueError(f"expected `go <monotonic time>`, got {told!r}")
    plan.start = float(told.removeprefix("go "))
    users = load.closed_users_of(worker) if load.closed_users else 1
    gevent.sleep(max(0.0, plan.start - time.monotonic()))
    cpu = time.process_time()
    runner.start(users, spawn_rate=users)
    gevent.spawn(_stop_when_told, plan, runner)
    spawning = runner.spawning_greenlet
    while (spawning is not None and not spawning.ready()) or len(runner.user_greenlets):
        gevent.sleep(0.2)
        recorder.flush()
    recorder.close()
    used = {"cpu_s": time.process_time() - cpu, "rows": recorder.rows}
    (folder / f"worker-{worker}.json").write_text(json.dumps(used))


def _stop_when_told(plan: Plan, runner: Runner) -> None:
    _line()  # "stop", or the end of file when the command is gone
    plan.drain_s = min(plan.drain_s, _STOP_DRAIN_S)
    runner.stop()


def _line() -> str:
    """A line of the standard input; other greenlets run meanwhile, without a thread of gevent's pool."""
    make_nonblocking(sys.stdin.fileno())
    found = b""
    while not found.endswith(b"\n") and (piece := nb_read(sys.stdin.fileno(), 1)):
        found += piece
    return found.decode()


def main() -> None:
    """Command line of `loadtest.processes`: FOLDER WORKER."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the command says stop
    folder, worker = Path(sys.argv[1]), int(sys.argv[2])
    load = Load.from_json(json.loads((folder / "load.json").read_text()))
    mix = Mix.load(folder / "mix.npz")  # written by loadtest.processes
    status = 0
    try:
        run_worker(load, mix, worker, folder=folder)
    except Exception as error:  # noqa: BLE001
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # calls that are still outstanding would hold the process


if __name__ == "__main__":
    main()
