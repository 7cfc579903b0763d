"""Worlds by name: one of ours, one of an installed package, or one in a file.

    safari                                  a world of this package
    minigrid                                an installed package's entry point of the group `qwenvl_agent.worlds`
    examples/worlds/minigrid/world.py:make_world    a function in a file, which needs no installation

A world's module is imported when it is asked for. In a package's setup.cfg:

    [options.entry_points]
    qwenvl_agent.worlds =
        minigrid = my_package.world:make_world
"""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from qwenvl_agent.worlds.world import World

WORLDS = {
    "browser": "qwenvl_agent.worlds.browser:make_world",
    "safari": "qwenvl_agent.worlds.safari:make_world",
}
GROUP = "qwenvl_agent.worlds"


def make_world(name: str, rules: dict | None = None) -> World:
    """The world of that name under these rules, JSON values which the world checks; ValueError if there is none."""
    maker = find_maker(name)
    check_rules(name, maker, rules or {})
    world = maker(**(rules or {}))
    if not isinstance(world, World):
        raise ValueError(
            f"world {name!r} gives {type(world).__name__}, no qwenvl_agent.worlds.World: nothing could be played in it; "
            "let its function return one"
        )
    return world


def check_rules(name: str, maker: Callable[..., World], rules: dict) -> None:
    """ValueError for a rule that the maker does not take; what it takes by `**` it checks itself."""
    parameters = inspect.signature(maker).parameters
    known = [key for key, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    if len(known) < len(parameters):
        return
    for rule in rules:
        if rule not in known:
            raise ValueError(
                f"world {name!r} has no rule {rule!r}: nothing would change; it has {', '.join(known) or 'none'}"
            )


def known_worlds() -> tuple[str, ...]:
    """Names that need no path: ours and those of installed packages."""
    return tuple(sorted({*WORLDS, *(entry.name for entry in entry_points(group=GROUP))}))


def find_maker(name: str) -> Callable[..., World]:
    """The function that makes worlds of that name."""
    if name in WORLDS:
        module, _, attribute = WORLDS[name].partition(":")
        return getattr(import_module(module), attribute)
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _in_file(name, Path(path), attribute)
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if len({entry.value for entry in found}) > 1:
        raise ValueError(
            f"world {name!r} is of several packages ({', '.join(sorted(entry.value for entry in found))}): which one is "
            "meant cannot be told; uninstall one, or name its file as path/to/file.py:make_world"
        )
    if not found:
        raise ValueError(
            f"world {name!r} does not exist: nothing can be played in it; choose one of {', '.join(known_worlds())}, or "
            "give path/to/file.py:make_world"
        )
    return found[0].load()


def _in_file(name: str, path: Path, attribute: str) -> Callable[..., World]:
    if not path.is_file():
        raise ValueError(
            f"world {name!r}: there is no file {path} (looked for from {Path.cwd()}): nothing can be played; correct the "
            "path, or start from the folder that it is relative to"
        )
    maker = getattr(_load(path.resolve()), attribute, None)
    if not callable(maker):
        raise ValueError(f"world {name!r}: {path} has no function {attribute!r}; write PATH:FUNCTION")
    return maker


@cache
def _load(path: Path) -> ModuleType:
    """The module of a file, under a name of its own; modules beside it can be imported by their plain names."""
    module_name = f"qwenvl_agent_world_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # before it runs, as dataclasses and pickle look there
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
