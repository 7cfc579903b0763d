"""Vision Safari: rules, picture, tools, missions, oracle and records of one world."""

from qwenvl_agent.worlds.safari.baselines import NoisyOracle, RandomAgent
from qwenvl_agent.worlds.safari.env import SafariEnv
from qwenvl_agent.worlds.safari.oracle import SafariOracle
from qwenvl_agent.worlds.safari.safari import make_world
from qwenvl_agent.worlds.safari.world import SafariRules


def make_env(**rules) -> SafariEnv:
    return SafariEnv(SafariRules.from_json(rules))


def make_oracle(rules: dict, **settings) -> SafariOracle:
    return SafariOracle(SafariRules.from_json(rules), **settings)


__all__ = [
    "NoisyOracle",
    "RandomAgent",
    "SafariEnv",
    "SafariOracle",
    "SafariRules",
    "make_env",
    "make_oracle",
    "make_world",
]
