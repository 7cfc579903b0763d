"""Worlds by name. This is the only list of them; a world is imported when it is asked for."""

from importlib import import_module

from qwenvl_agent.schema import Env, Policy

WORLDS = {"browser": "qwenvl_agent.worlds.browser", "safari": "qwenvl_agent.worlds.safari"}


def _world(name: str):
    if name not in WORLDS:
        raise ValueError(f"world {name!r} does not exist: nothing can be run in it; choose one of {sorted(WORLDS)}")
    return import_module(WORLDS[name])


def make_env(name: str, **rules) -> Env:
    """The world of that name; `rules` are JSON values that the world checks."""
    return _world(name).make_env(**rules)


def make_oracle(name: str, rules: dict, **settings) -> Policy:
    """A policy that solves the world with these rules from what an agent sees."""
    return _world(name).make_oracle(rules, **settings)
