"""Settings: frozen dataclasses, read strictly from JSON. What holds for one file of settings holds for all.

    @dataclass(frozen=True, kw_only=True)
    class Rules:
        width: Annotated[int, Range(10, 1000, "no such world can be built")] = 50
        \"""Tiles from left to right.\"""
        rules: Literal["reach", "catch"] = "reach"
        \"""What ends a mission.\"""

        def __post_init__(self):
            check_values(self, "safari")

    rules = build(Rules, {"width": 20}, "safari")

A file lists only what differs from the defaults. An unknown key is an error that names the nearest known one, a wrong
type one that names the path. A field says in its type which values it may have, as `Annotated[int, Range(...)]` or
`Literal[...]`, and in the text under it what it means: `list_settings` gives both to --help, docs/CONFIG.md and the
JSON schemas of editors. Overrides are `key.path=value`. Standard library only.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import json
import math
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

Settings = TypeVar("Settings")
Remedy = Callable[[str, Sequence[str]], str]
"""(unknown key, keys known in its place) -> what to do about it."""


# What a value may be


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have, both ends included; `harm` is what any other would do."""

    least: float
    most: float
    harm: str = "nothing could run"

    def check(self, path: str, value: float) -> None:
        """ValueError unless `value` is one of them; NaN never is."""
        if self.least <= value <= self.most:
            return
        if value != value:
            raise ValueError(f"{path} is {value}, no number: {self.harm}; use {self.least:g} to {self.most:g}")
        side, limit, remedy = ("below", self.least, "raise") if value < self.least else ("above", self.most, "lower")
        raise ValueError(f"{path} is {str(value)[:40]}, {side} {limit:.12g}: {self.harm}; {remedy} it")


def check_choice(path: str, value: object, choices: Sequence) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        names = (choice if isinstance(choice, str) else json.dumps(choice) for choice in choices)
        raise ValueError(f"{path} is {value!r}, which means nothing here; use one of {', '.join(names)}")


def check_values(settings: Any, path: str) -> None:
    """ValueError for the first value that its field's type does not allow: a number outside its range, an unknown
    choice, a text with control characters, or an empty one where the default is none. For `__post_init__`."""
    cls: Any = type(settings)
    for field in settings_of(cls):
        check_value(getattr(settings, field.name), hints_of(cls)[field.name], join(path, field.name), field)


def check_value(value: object, hint: object, path: str, field: dataclasses.Field) -> None:
    """Of the right type already."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for number in value if isinstance(value, tuple) else (value,):
            args[1].check(path, number)
    elif choices := choices_of(hint):
        check_choice(path, value, choices)
    elif isinstance(value, tuple):
        for item in value:
            check_value(item, args[0], path, field)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} is {value}, no finite number: nothing can be computed with it; correct the value")
    elif isinstance(value, str) and (not value.strip() or min(value) < " ") and value != field.default:
        raise ValueError(f"{path} is {value!r}: nothing has that name; write text without control characters")


def choices_of(hint: object) -> tuple:
    """All values of a type that has few, () if it has many: Literal["a", "b"], bool | Literal["auto"]."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        parts = [choices_of(part) for part in typing.get_args(hint)]
        return tuple(value for part in parts for value in part) if all(parts) else ()
    return (True, False) if hint is bool else typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


# From JSON


def build(cls: Callable[..., Settings], values: object, path: str = "", remedy: Remedy | None = None) -> Settings:
    """Settings from plain JSON values; ValueError names the path of what is wrong. `path`: what is said before a key.

    `remedy` answers unknown keys; without it the nearest known key is named.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{path or 'config'} is {values!r}, not an object with settings; write {{...}}")
    if not path:
        values = {key: value for key, value in values.items() if key != "$schema"}  # the editor's
    known = {field.name: field for field in settings_of(cls)}
    for key in values:
        if key not in known:
            meant = (remedy or nearest)(key, list(known))
            raise ValueError(f"unknown key {join(path, key)!r}: it would have no effect; {meant}")
    required = [name for name, field in known.items() if has_no_default(field) and name not in values]
    if required:
        raise ValueError(f"{join(path, required[0])!r} is missing and has no default: set it")
    hints, given = hints_of(cls), {}
    for key, value in values.items():
        where = join(path, key)
        given[key] = convert(value, hints[key], where, remedy)
        check_value(given[key], hints[key], where, known[key])
    return cls(**given)


def convert(value: Any, hint: Any, path: str, remedy: Remedy | None = None) -> object:
    """A JSON value as a field's type has it; ValueError if it is of another."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if value is None and is_optional_group(hint):
        return None
    if typing.get_origin(hint) is tuple:
        return _tuple(value, hint, path, remedy)
    if group := group_of(hint):
        return build(group, value, path, remedy)
    if hint is float and type(value) is int:
        return float(value) if abs(value) < 2**1000 else math.inf if value > 0 else -math.inf
    if type(value) not in kinds_of(hint):
        raise _wrong_type(value, hint, path)
    return value


def _tuple(value: object, hint: object, path: str, remedy: Remedy | None) -> tuple:
    """A list; one value of a list that may have any length may stand alone."""
    args = typing.get_args(hint)
    if args[-1] is Ellipsis and type(value) in kinds_of(args[0]) and type(value) is not dict:
        value = [value]
    if not isinstance(value, list | tuple):
        raise _wrong_type(value, hint, path)
    kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
    if len(kinds) != len(value):
        raise _wrong_type(value, hint, path)
    return tuple(convert(v, k, f"{path}[{i}]", remedy) for i, (v, k) in enumerate(zip(value, kinds, strict=True)))


def kinds_of(hint: Any) -> tuple[type, ...]:
    """The Python types of a field's JSON values."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return kinds_of(args[0])
    if origin is Literal:
        return tuple(dict.fromkeys(map(type, args)))
    if origin in (types.UnionType, typing.Union):
        return tuple(dict.fromkeys(kind for part in args for kind in kinds_of(part)))
    return (dict,) if dataclasses.is_dataclass(hint) else (list if origin is tuple else origin or hint,)


def _wrong_type(value: object, hint: object, path: str) -> ValueError:
    return ValueError(f"{path} is {value!r}, which is not of type {type_name(hint)}; correct the value")


def type_name(hint: object) -> str:
    """For messages and tables: `int`, `tuple[float, float]`, `str | bool`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return type_name(args[0])
    if origin is tuple:
        return f"tuple[{', '.join('...' if arg is Ellipsis else type_name(arg) for arg in args)}]"
    return " | ".join(kind.__name__ for kind in kinds_of(hint))


def nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key.strip().lower().replace("-", "_"), known, n=1)
    return f"nearest known key: {near[0]!r}" if near else f"known keys here: {', '.join(known)}"


def read_values(path: str | Path, overrides: Sequence[str] = (), what: str = "config") -> dict:
    """The object in a JSON file, overrides applied; `what` the file is, for messages."""
    try:
        values = parse(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg}): no setting can be read; correct it") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}: no setting can be read; correct it") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: there is no {what} to run; name an existing file") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, not an object with settings: write {{...}}")
    for override in overrides:
        apply_override(values, override)
    return values


def apply_override(values: dict, override: str) -> None:
    """Set `a.b=value` in nested dicts, in place. What is not JSON (`true`, `1e-4`, `null`, `[1, 2]`) is a text. An item of
    a list is named by its key `name` or its number from 0, or all are by *: `stages.agent.set.train.max_steps=9`."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r} has no '=': nothing would be set; write key.path=value")
    try:
        value = parse(text)
    except json.JSONDecodeError:
        value = text
    except ValueError as error:
        raise ValueError(f"override {override!r}: {error}: nothing is set; correct the value") from None
    _set(values, key.strip().split("."), value, override)


def _set(values: Any, keys: Sequence[str], value: object, override: str) -> None:
    """A whole rest of the path may be one key: a stage may have written it so."""
    first, *rest = keys
    if isinstance(values, list) and rest:
        for item in _items(values, first, override):
            _set(item, rest, value, override)
    elif not isinstance(values, dict):
        raise ValueError(f"override {override!r}: {first!r} is no key of a value; name a key of a group")
    elif not rest or ".".join(keys) in values:
        values[".".join(keys)] = value
    else:
        inner = values.setdefault(first, {})
        if not isinstance(inner, dict | list):
            raise ValueError(f"override {override!r}: {first!r} is a value, not a group; name a key of a group")
        _set(inner, rest, value, override)


def _items(values: list, key: str, override: str) -> list:
    """Of a list, by `name`, by number, or all."""
    named = [item for item in values if isinstance(item, dict) and item.get("name") == key]
    if named or key == "*":
        return named or values
    if key.isdecimal() and int(key) < len(values):
        return [values[int(key)]]
    names = [str(item.get("name", i)) for i, item in enumerate(values) if isinstance(item, dict)]
    raise ValueError(f"override {override!r}: the list has no {key!r}; name one of {', '.join([*names, '*'])}")


def parse(text: str) -> object:
    """JSON in which no key is given twice and every number is one; ValueError says what is not so."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("JSON nested too deep for any setting") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is given twice, so that one value would be lost")
    return values


def to_json(settings: Any) -> dict:
    """Resolved settings as plain JSON values; `build` reads them back."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


# What there is to set


@dataclass(frozen=True)
class Setting:
    """One field of a settings class or of a group in it."""

    path: str
    """Dotted: `train.betas`, `data.sources[].path`."""
    hint: object
    """Its type, with Range or Literal; a settings class for a group."""
    default: object
    """dataclasses.MISSING if it must be set."""
    meaning: str

    @property
    def is_group(self) -> bool:
        return group_of(self.hint) is not None

    @property
    def group_path(self) -> str:
        """What is said before the keys of the group: `data`, of each of a list `data.sources[]`."""
        return f"{self.path}[]" if typing.get_origin(self.hint) is tuple else self.path


def list_settings(cls: type, path: str = "") -> list[Setting]:
    """All settings of a class and of the groups in it, each group before what is in it."""
    found = []
    for field in settings_of(cls):
        hint, where = hints_of(cls)[field.name], join(path, field.name)
        found.append(Setting(where, hint, default_of(field), docs_of(cls).get(field.name, "")))
        if group := group_of(hint):
            found += list_settings(group, found[-1].group_path)
    return found


def group_of(hint: Any) -> type | None:
    """The settings class of a group, of a list of groups, or of a group that may be null."""
    if typing.get_origin(hint) is tuple or is_optional_group(hint):
        hint = typing.get_args(hint)[0]
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def is_optional_group(hint: Any) -> bool:
    """`Group | None`."""
    is_union, args = typing.get_origin(hint) in (types.UnionType, typing.Union), typing.get_args(hint)
    return is_union and len(args) == 2 and args[1] is type(None) and dataclasses.is_dataclass(args[0])


def settings_of(cls: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.init]


@functools.cache
def hints_of(cls: type) -> dict[str, object]:
    return typing.get_type_hints(cls, include_extras=True)


def default_of(field: dataclasses.Field) -> object:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def has_no_default(field: dataclasses.Field) -> bool:
    return default_of(field) is dataclasses.MISSING


@functools.cache
def docs_of(cls: type) -> dict[str, str]:
    """Field -> the text under it in the source, on one line."""
    docs: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        if dataclasses.is_dataclass(part):
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
            assert isinstance(tree, ast.ClassDef)
            for node, after in zip(tree.body, tree.body[1:], strict=False):
                if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                    docs[ast.unparse(node.target)] = " ".join(ast.literal_eval(after.value).split())
    return docs


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
