"""Suites by name: those of data, and one for every world, which is named as worlds are (`worlds.registry`).

steps, clicks, screenspot, elements         offline, on data (`steps.py`, `screens.py`)
safari, path/to/file.py:make_world, ...     episodes in that world (`episodes.py`)
none                                        nothing, of an evaluation inside training
"""

import re
from collections.abc import Iterable, Mapping

from qwenvl_agent.config import Config
from qwenvl_agent.evaluation.suites.episodes import Episodes, world_of_source
from qwenvl_agent.evaluation.suites.screens import Clicks, Elements, ScreenSpot
from qwenvl_agent.evaluation.suites.steps import Steps
from qwenvl_agent.evaluation.suites.suite import Suite
from qwenvl_agent.worlds import World, known_worlds, make_world

FOLDER_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class Nothing(Suite):
    """Of an evaluation inside training that looks at held-out rows alone."""

    name = "none"


DATA_SUITES: dict[str, type[Suite]] = {suite.name: suite for suite in (Steps, Clicks, ScreenSpot, Elements, Nothing)}


def is_world(name: str) -> bool:
    """Whether a suite of that name plays episodes in a world, if there is one."""
    return name not in DATA_SUITES


def find_suite(name: str, rules: Mapping[str, object] | None = None) -> Suite:
    """The suite of that name, a world under these rules; ValueError if there is none."""
    if not is_world(name):
        return DATA_SUITES[name]()
    if name not in known_worlds() and ":" not in name:
        names = [suite for suite in DATA_SUITES if suite != Nothing.name]
        raise ValueError(
            f"suite {name!r} does not exist: nothing can be evaluated; choose one of {', '.join([*names, *known_worlds()])}, "
            "or a world in a file, path/to/file.py:make_world"
        )
    world = make_world(name, dict(rules or {}))
    if not is_world(world.name) or not FOLDER_NAME.fullmatch(world.name):
        raise ValueError(
            f"world {name!r} calls itself {world.name!r}: its results would have no folder of their own; give it a name of "
            f"letters and digits that is none of {', '.join(DATA_SUITES)}"
        )
    return Episodes(world, name)


def suite_for(name: str, config: Config, rules: Mapping[str, object] | None = None) -> Suite:
    """The suite for an evaluation under a config; `rules` go over those of `eval.world`, if they are of this world."""
    if name == Steps.name:
        sources = [(source.kind, source.world) for source in config.data.sources]
        return Steps(world_of_rows(config.eval.suite, config.eval.world, sources))
    is_other = is_world(config.eval.suite) and config.eval.suite != name
    return find_suite(name, {**({} if is_other else config.eval.world), **(rules or {})})


def world_of_rows(suite: str, rules: Mapping[str, object], sources: Iterable[tuple[str, str]]) -> World | None:
    """The world that rows are of: that of `eval.suite`, else the one that all their sources (kind, world) are of."""
    if is_world(suite):
        return make_world(suite, dict(rules))
    worlds = {world_of_source(*source) for source in sources} - {""}
    return make_world(worlds.pop()) if len(worlds) == 1 else None


def suite_of(about: dict) -> Suite:
    """The suite of a result, from what it says about itself."""
    name = about["suite"]
    if name == Steps.name:
        config = about.get("config", {})
        sources = [(s["kind"], s.get("world", "")) for s in config.get("data", {}).get("sources", ())]
        played = config.get("eval", {})
        return Steps(world_of_rows(played.get("suite", Nothing.name), played.get("world", {}), sources))
    return find_suite(about.get("world_from", name), about.get("world"))
