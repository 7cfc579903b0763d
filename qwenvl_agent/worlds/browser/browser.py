"""A live browser as a world."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial

from qwenvl_agent.schema import Policy
from qwenvl_agent.worlds.browser.env import BrowserEnv
from qwenvl_agent.worlds.browser.oracle import BrowserOracle, RandomAgent
from qwenvl_agent.worlds.browser.rules import BrowserRules
from qwenvl_agent.worlds.world import Labels, World

MAX_BROWSERS = 4
"""Episodes at once: each has a browser of its own, of some 200 MB."""


class Browser(World):
    name = "browser"
    max_envs = MAX_BROWSERS
    labels = Labels(
        columns={
            "success_rate": "success %",
            "progress": "goals %",
            "mean_turns": "turns",
            "mean_turns_success": "if won",
            "harm_rate": "harm %",
        }
    )

    def __init__(self, rules: BrowserRules):
        self.settings = rules
        self.rules = json.loads(json.dumps(dataclasses.asdict(rules)))

    def make_env(self) -> BrowserEnv:
        return BrowserEnv(self.settings)

    def make_oracle(self, **settings) -> BrowserOracle:
        """It plays any rules: what a task wants comes with the observation."""
        return BrowserOracle(**settings)

    def make_baselines(self) -> Mapping[str, Callable[..., Policy]]:
        return {"random": partial(RandomAgent, self.settings)}


def make_world(**rules) -> Browser:
    return Browser(BrowserRules.from_json(rules))
