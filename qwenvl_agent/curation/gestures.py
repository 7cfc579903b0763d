"""Actions of a layout's table that are more than one action of a computer, or depend on how far they go.

| action | arguments | becomes |
|---|---|---|
| gesture | from, to | a click, if the finger was lifted within TAP_SHARE of the screen from where it was set down; else a drag |
| scroll_by | down, right | scroll and hscroll by that much of the screen, in the layout's unit |
"""

import math

from qwenvl_agent.computer import Action
from qwenvl_agent.coordinates import Screen

TAP_SHARE = 0.04
"""Of the screen's sides, as Android in the Wild tells taps from swipes."""
MAX_NUMBER = 1e9


def _gesture(values: dict, screen: Screen, unit: str) -> list:
    start, end = _place(values, "from"), _place(values, "to")
    (x1, y1), (x2, y2) = screen.from_unit(*start, unit), screen.from_unit(*end, unit)
    if math.hypot((x2 - x1) / screen.width_px, (y2 - y1) / screen.height_px) <= TAP_SHARE:
        return [{"action": "left_click", "coordinate": list(start)}]
    places = (("mouse_move", start), ("left_click_drag", end))
    return [{"action": kind, "coordinate": list(place)} for kind, place in places]


def _scroll_by(values: dict, screen: Screen, unit: str) -> list:
    right, down = screen.from_unit(_number(values, "right"), _number(values, "down"), unit)
    actions = [Action("scroll", scroll_px=-down)] if down else []
    actions += [Action("hscroll", scroll_px=right)] if right else []
    if not actions:
        raise ValueError("scroll_by is 0 both ways: nothing is done; give down or right")
    return actions


GESTURES = {"gesture": _gesture, "scroll_by": _scroll_by}


def _place(values: dict, name: str) -> tuple[float, float]:
    value = values.get(name)
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name} is {str(value)[:40]!r}: no place; give [x, y]")
    x, y = (_finite(number, name) for number in value)
    return x, y


def _number(values: dict, name: str) -> float:
    value = values.get(name, 0)
    try:
        return _finite(float(value) if isinstance(value, str) else value, name)
    except ValueError:
        raise ValueError(f"{name} is {str(value)[:40]!r}: no distance; give a number") from None


def _finite(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
        raise ValueError(f"{name} has {str(value)[:40]!r}: no number that could be used; give a finite one")
    return value
