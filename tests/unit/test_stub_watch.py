"""What the stub watch makes of processes and states, look by look, without a server."""

from __future__ import annotations

import os

import pytest

from launcher import stub_watch
from launcher.server_files import ServerError
from launcher.stub_watch import StubWatch, instances
from launcher.stubs import Stub
from launcher.triton_admin import ModelVersion

PYTHON = {"backend": "python", "instance_group": [{"count": 1}]}


class World:
    """A server as the watch sees it."""

    def __init__(self) -> None:
        self.stubs: list[Stub] = []
        self.states: dict[tuple[str, str], str] = {}
        self.configs: dict[str, dict] = {}
        self.reloaded: list[str] = []
        self.fails = False
        self.now = 1000.0
        self.killed: list[int] = []
        self.freed: list[str] = []

    def start(self, model: str, *pids: int, version: str = "1") -> None:
        """Processes of a version that is READY."""
        self.configs.setdefault(model, {**PYTHON, "instance_group": [{"count": len(pids)}]})
        self.states[model, version] = "READY"
        self.stubs += [
            Stub(pid=pid, model=model, version=version, started=pid, region=f"r{pid}") for pid in pids
        ]

    def lose(self, pid: int) -> None:
        self.stubs = [stub for stub in self.stubs if stub.pid != pid]

    # As Admin

    def versions(self) -> list[ModelVersion]:
        return [ModelVersion(model, version, state, "") for (model, version), state in self.states.items()]

    def config(self, model: str) -> dict:
        return self.configs[model]

    def reload(self, model: str) -> None:
        self.reloaded.append(model)
        if self.fails:
            raise ServerError("no index")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(stub_watch, "stubs", lambda _: list(made.stubs))
    monkeypatch.setattr(stub_watch, "free_region", made.freed.append)
    monkeypatch.setattr(stub_watch.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(os, "kill", lambda pid, number: made.killed.append(pid))
    return made


def watch(world: World) -> StubWatch:
    return StubWatch(world, shm_prefix="p_")  # type: ignore[arg-type]


def test_a_loss_seen_twice_is_repaired_and_what_is_left_is_ended(world: World) -> None:
    world.start("scheduler", 1, 2)
    looks = watch(world)
    looks.look()
    world.lose(1)
    looks.look()
    assert world.reloaded == []  # once is a moment between two processes
    looks.look()
    assert world.reloaded == ["scheduler"]
    world.start("scheduler", 3, 4)
    looks.look()
    world.now += 9
    looks.look()
    assert (world.killed, world.freed) == ([], [])  # it may still answer what it has
    world.now += 2
    looks.look()
    assert world.killed == [2]
    assert sorted(world.freed) == ["r1", "r2"]
    world.now += 60
    looks.look()
    assert (world.reloaded, world.killed) == (["scheduler"], [2])


@pytest.mark.parametrize("state", ["UNLOADING", "UNAVAILABLE", "LOADING", ""])
def test_a_version_that_comes_or_goes_is_left_alone(world: World, state: str) -> None:
    world.start("prefix", 1, version="1")
    world.start("prefix", 2, version="2")
    looks = watch(world)
    looks.look()
    world.lose(1)
    world.states["prefix", "1"] = state
    for _ in range(5):
        looks.look()
    assert world.reloaded == []


def test_a_lost_version_of_two_is_seen(world: World) -> None:
    world.start("prefix", 1, version="1")
    world.start("prefix", 2, version="2")
    looks = watch(world)
    looks.look()
    world.lose(2)
    looks.look()
    looks.look()
    assert world.reloaded == ["prefix"]


def test_nothing_is_done_to_a_model_while_another_version_of_it_loads(world: World) -> None:
    world.start("prefix", 1, version="1")
    looks = watch(world)
    looks.look()
    world.lose(1)
    world.states["prefix", "2"] = "LOADING"
    for _ in range(3):
        looks.look()
    assert world.reloaded == []
    world.states["prefix", "2"] = "READY"
    world.start("prefix", 2, version="2")
    looks.look()
    assert world.reloaded == ["prefix"]


def test_a_reload_that_fails_is_tried_again_for_ever(world: World) -> None:
    world.start("resolver", 1)
    looks = watch(world)
    looks.look()
    world.lose(1)
    world.fails = True
    tries = []
    for _ in range(200):
        before = len(world.reloaded)
        looks.look()
        tries += [world.now] * (len(world.reloaded) - before)
        world.now += 0.25
    pauses = [later - earlier for earlier, later in zip(tries, tries[1:], strict=False)]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert set(pauses[4:]) == {5.0}
    world.fails = False
    world.now += 5
    looks.look()
    world.start("resolver", 2)
    looks.look()
    count = len(world.reloaded)
    world.now += 60
    looks.look()
    assert len(world.reloaded) == count


def test_a_model_that_somebody_unloads_is_forgotten(world: World) -> None:
    world.start("resolver", 1)
    looks = watch(world)
    looks.look()
    world.lose(1)
    world.fails = True
    for _ in range(3):
        looks.look()
    world.states["resolver", "1"] = "UNAVAILABLE"
    count = len(world.reloaded)
    world.now += 60
    for _ in range(3):
        looks.look()
    assert len(world.reloaded) == count


def test_another_number_of_instances_is_no_loss(world: World) -> None:
    """An operator has loaded another config."""
    world.start("scheduler", 1, 2)
    looks = watch(world)
    looks.look()
    world.configs["scheduler"] = PYTHON
    world.lose(2)
    for _ in range(3):
        looks.look()
    assert world.reloaded == []


def test_instances_of_a_config() -> None:
    assert instances(PYTHON) == 1
    assert instances({"backend": "python"}) == 1
    assert instances({"backend": "python", "instance_group": [{"count": 2}, {"count": 3}]}) == 5
    assert instances({"platform": "ensemble"}) == 0
    assert instances({"backend": "onnxruntime", "instance_group": [{"count": 2}]}) == 0


def test_only_processes_are_killed_that_are_left_over(world: World) -> None:
    world.start("a", 1)
    world.start("b", 2)
    looks = watch(world)
    for _ in range(10):
        looks.look()
        world.now += 10
    assert (world.killed, world.freed, world.reloaded) == ([], [], [])
