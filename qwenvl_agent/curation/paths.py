"""Paths into rows, and texts and objects that are filled in from them: what layout files are written in.

| written | is |
|---|---|
| a.b | the value of key b in the object of key a |
| a.0 | element 0 of a list |
| a.# | the element of the item's own index |
| a.*.b | b of every value of an object or list: only where several values are wanted |
| a\\|b | a, or b where there is no a |
| {a.b}-{c}.png | a text with values in it |

A value of null counts as none.
"""

import re

HOLE = re.compile(r"\{([^{}]*)\}")


def value_at(record: dict, path: str, index: int = 0) -> object:
    """The value at the first alternative of a path that has one; None where there is none, or no path."""
    for alternative in path.split("|") if path else ():
        value: object = record
        for part in alternative.split("."):
            value = _step(value, str(index) if part == "#" else part)
        if value is not None:
            return value
    return None


def values_at(record: object, path: str, index: int = 0) -> list:
    """All values at the first alternative of a path with `*` that has any; those that are not there are left out."""
    found = (_all_at(record, alternative, index) for alternative in path.split("|"))
    return next(filter(None, found), [])


def _all_at(record: object, path: str, index: int) -> list:
    values = [record]
    for part in path.split("."):
        if part == "*":
            values = [item for value in values for item in _children(value)]
        else:
            values = [_step(value, str(index) if part == "#" else part) for value in values]
        values = [value for value in values if value is not None]
    return values


def _children(value: object) -> list:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _step(value: object, part: str) -> object:
    if isinstance(value, dict):
        return value.get(part)
    if isinstance(value, list) and part.isdecimal() and len(part) < 10 and int(part) < len(value):
        return value[int(part)]
    return None


def text_of(record: dict, template: str, index: int = 0) -> str:
    """A text with holes filled in, or the text at a path; "" if a value is missing or is no text or number."""
    if "{" not in template:
        return _shown(value_at(record, template, index))
    parts = {path: _shown(value_at(record, path, index)) for path in HOLE.findall(template)}
    return HOLE.sub(lambda hole: parts[hole.group(1)], template) if all(parts.values()) else ""


def _shown(value: object) -> str:
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def filled(template: object, record: dict, index: int = 0) -> object:
    """A template's value: a text that is one hole becomes the value there, other texts with holes a text, and keys
    whose value is missing are left out. The key `...` lays an object's keys in."""
    if isinstance(template, dict):
        given = {key: filled(item, record, index) for key, item in template.items()}
        spread = given.pop("...", None)
        return (spread if isinstance(spread, dict) else {}) | {k: v for k, v in given.items() if v is not None}
    if isinstance(template, list):
        return [filled(item, record, index) for item in template]
    if not isinstance(template, str) or "{" not in template:
        return template
    hole = HOLE.fullmatch(template)
    return value_at(record, hole.group(1), index) if hole else text_of(record, template, index) or None


def paths_in(template: object) -> list[str]:
    """The paths of all holes of a template."""
    if isinstance(template, dict):
        return [path for item in template.values() for path in paths_in(item)]
    if isinstance(template, list):
        return [path for item in template for path in paths_in(item)]
    return HOLE.findall(template) if isinstance(template, str) else []
