"""Worlds: what an agent is played in. A world is imported when it is asked for (`registry.py`)."""

from qwenvl_agent.schema import Env, Policy
from qwenvl_agent.worlds.registry import WORLDS, find_maker, known_worlds, make_world
from qwenvl_agent.worlds.world import Counterfactual, Labels, Mark, SeedSets, World


def make_env(name: str, **rules) -> Env:
    """An environment of the world of that name; `rules` are JSON values that the world checks."""
    return make_world(name, rules).make_env()


def make_oracle(name: str, rules: dict, **settings) -> Policy | None:
    """A policy that solves the world with these rules from what an agent sees."""
    return make_world(name, rules).make_oracle(**settings)


__all__ = [
    "WORLDS",
    "Counterfactual",
    "Labels",
    "Mark",
    "SeedSets",
    "World",
    "find_maker",
    "known_worlds",
    "make_env",
    "make_oracle",
    "make_world",
]
