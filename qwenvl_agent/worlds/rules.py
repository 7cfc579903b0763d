"""JSON values become a world's rules: a frozen dataclass whose fields say what may be set and of which type."""

import math
import typing
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import TypeVar

Rules = TypeVar("Rules")


def rules_from_json(cls: type[Rules], world: str, values: Mapping) -> Rules:
    """Rules of the world of that name; ValueError for a key that does not exist, naming the nearest, and a wrong type."""
    hints = typing.get_type_hints(cls)
    known = [field.name for field in fields(cls) if field.init]
    for key in values:
        if key not in known:
            near = get_close_matches(key, known, n=1) or [", ".join(known)]
            raise ValueError(
                f"{world} rule {key!r} does not exist, so it would change nothing; did you mean {near[0]}?"
            )
    return cls(**{key: _convert(value, hints[key], f"{world} rule {key}") for key, value in values.items()})


def _convert(value: object, hint: type, name: str) -> object:
    if typing.get_origin(hint) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(item, typing.get_args(hint)[0], name) for item in items)
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        kind = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[hint]
        raise ValueError(f"{name} is {value!r}, not {kind}: no world can be built of it; correct the value")
    return value
