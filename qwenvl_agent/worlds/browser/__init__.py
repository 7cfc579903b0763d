"""Pages in a real Chromium: drawn from seeds and written as data; and a world that is played in them."""

from qwenvl_agent.worlds.browser.browser import make_world
from qwenvl_agent.worlds.browser.env import BrowserEnv
from qwenvl_agent.worlds.browser.oracle import BrowserOracle, RandomAgent
from qwenvl_agent.worlds.browser.rules import BrowserRules


def make_env(**rules) -> BrowserEnv:
    return BrowserEnv(BrowserRules.from_json(rules))


def make_oracle(rules: dict, **settings) -> BrowserOracle:
    """It plays any rules: what a task wants comes with the observation."""
    return BrowserOracle(**settings)


__all__ = ["BrowserEnv", "BrowserOracle", "BrowserRules", "RandomAgent", "make_env", "make_oracle", "make_world"]
