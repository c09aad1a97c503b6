"""RecoGym's users as a process of their own: what they view and click goes out, what to show comes in.

Runs in the virtual environment of `requirements-recogym.txt`, with RecoGym's environment and none of its
agents (they want TensorFlow and IPython). A line of JSON each way a round, until no user asks:

    -> {"events": [[user, time, product, kind, chance], ..], "asks": [user, ..]}
    <- [product, ..]

kind: view (organic), shown, click; chance: of what was shown, RecoGym's own probability of a click; time:
steps of the user. A user's draws come of (seed, user) alone, so that all policies meet the same users.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import numpy as np


def load_environment() -> ModuleType:
    """RecoGym's `reco_env_v1`, without what its package imports besides.

    Raises:
        ImportError: RecoGym, or something that its environment needs, is not installed.
    """
    found = importlib.util.find_spec("recogym")
    if found is None:
        raise ImportError("no module named recogym")
    package = ModuleType("recogym")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["recogym"] = package
    agents: Any = ModuleType("recogym.agents")
    agents.Agent = object
    sys.modules["recogym.agents"] = agents
    return importlib.import_module("recogym.envs.reco_env_v1")


class User:
    """One user: a copy of the world with draws of its own.

    Attributes:
        number: names the user.
        events: what happened since they were taken.
        asks: whether an ad is to be shown next.
    """

    def __init__(self, module: ModuleType, world: Any, number: int) -> None:
        """View until the first ad."""
        self.number, self._click_rate = number, module.ff
        self._world = copy.copy(world)
        self._world.time_generator = copy.copy(world.time_generator)
        self._world.rng = np.random.RandomState([world.config.random_seed, number])
        self._world.reset(number)
        self.events: list[list[Any]] = []
        observation, _, done, _ = self._world.step(None)
        self._view(observation, done)

    def show(self, product: int) -> None:
        """Show an ad, and view on until the next one."""
        time = self._world.current_time
        observation, reward, done, _ = self._world.step(product)
        clicked = reward[0] if isinstance(reward, tuple) else reward
        chance = float(self._click_rate(self._world.cached_state_seed)[product])
        self._add(time, product, "shown", chance)
        if clicked:
            self._add(time, product, "click", chance)
        self._view(observation, done)

    def take(self) -> list[list[Any]]:
        """Events since the last time."""
        taken, self.events = self.events, []
        return taken

    def _view(self, observation: Any, done: bool) -> None:
        for view in observation.sessions():
            self._add(view["t"], view["v"], "view", 0.0)
        self.asks = not done

    def _add(self, time: float, product: int, kind: str, chance: float) -> None:
        self.events.append([self.number, int(time), int(product), kind, chance])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", required=True, type=json.loads, help="of the environment, JSON")
    parser.add_argument("--users", required=True, type=int, nargs=2, help="first number, and how many")
    arguments = parser.parse_args()
    out, sys.stdout = sys.stdout, sys.stderr  # stdout has nothing but the lines
    module = load_environment()
    world = module.RecoEnv1()
    world.init_gym({**module.env_1_args, **arguments.settings})
    first, count = arguments.users
    users = [User(module, world, number) for number in range(first, first + count)]
    asking = users
    while True:
        events = [event for user in asking for event in user.take()]
        asking = [user for user in asking if user.asks]
        line = {"events": events, "asks": [user.number for user in asking]}
        print(json.dumps(line), file=out, flush=True)
        if not asking:
            return
        for user, product in zip(asking, json.loads(sys.stdin.readline()), strict=True):
            user.show(product)


if __name__ == "__main__":
    main()
