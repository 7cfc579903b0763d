"""Positions and lengths in any spelling and unit -> pixels of the screen."""

import re
from collections.abc import Callable
from typing import TypeGuard

from qwenvl_agent.computer.actions import ActionError
from qwenvl_agent.computer.synonyms import plain
from qwenvl_agent.coordinates import BOX_ORDERS, GRID, UNITS, Screen, centre, corners

MAX_NUMBER = 1e9
MAX_SCREENS = 20
"""A longer scroll, stated as a share of the screen, has another unit."""
CORNERS = ("x1", "y1", "x2", "y2")
SIDES = ("left", "top", "right", "bottom")
NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
TAGS = re.compile(r"<\|?/?(?:box|point)(?:_start|_end)?\|?>")
WORDS = ("x", "y", "px", "x1", "y1", "x2", "y2", "point", "box", "coordinate")
"""What may stand in a position beside its numbers."""


def numbers_of(text: str) -> list[float]:
    """The numbers in a text such as "(300, 80)", whole ones as int."""
    return [float(n) if re.search(r"[.eE]", n) else int(n[:18]) for n in re.findall(NUMBER, text)]


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def are_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(is_number(item) for item in value)


def is_pair(value: object) -> bool:
    return are_numbers(value) and len(value) == 2  # type: ignore[arg-type]


class Places:
    """Reads positions and lengths of one value; tells `note` the names of repairs and keeps what was `written`."""

    def __init__(self, screen: Screen, unit: str, clamp: bool, box_order: str, note: Callable[[str], None]):
        assert unit in UNITS and box_order in BOX_ORDERS, (unit, box_order)
        self.screen, self.unit, self.clamp, self.box_order, self.note = screen, unit, clamp, box_order, note
        self.is_grid = UNITS[unit] == GRID.cells
        self.written: list[tuple[float, ...]] = []

    def point(self, value: object, is_box: bool = False) -> dict[str, float]:
        """{"x_px": ..., "y_px": ...} of a position; ActionError if it is none or not on the screen.

        `is_box`: it has the name of a box, so that `x, y, width, height` is its corner and size.
        """
        numbers = self._numbers(value, is_box)
        if len(numbers) == 4:
            self._check_unit(value, numbers)
            numbers = self._centre(value, numbers)
        elif len(numbers) == 2:
            self.written.append(tuple(numbers))
            self._check_unit(value, numbers)
        else:
            raise ActionError("bad_argument", f"position {short(value)} has {len(numbers)} numbers: give [x, y]")
        if self.is_grid and any(isinstance(n, float) and not n.is_integer() for n in numbers):
            self.note("float_coordinate")
        return self._on_screen(value, *self._to_px(*numbers))

    def _check_unit(self, value: object, numbers: list[float]) -> None:
        """A position inside the first pixel, or the first cell, was meant as a share of the screen."""
        if UNITS[self.unit] == 1 or not all(0 <= n <= 1 for n in numbers):
            return
        if any(isinstance(n, float) and not n.is_integer() for n in numbers):
            if len(numbers) == 4:
                self.written.append(tuple(numbers))
            raise ActionError(
                "unknown_unit",
                f"position {short(value)} is no place in {self.unit}: it would be the corner of the screen; if these are "
                "shares of the screen, declare the unit fraction",
            )

    def _on_screen(self, value: object, x_px: float, y_px: float) -> dict[str, float]:
        if self.screen.contains(x_px, y_px):
            return {"x_px": x_px, "y_px": y_px}
        if not self.clamp:
            raise ActionError(
                "outside_screen",
                f"position {short(value)} ({self.unit}) is outside the screen of {self.screen.width_px}x"
                f"{self.screen.height_px} px: nothing is there; correct it",
            )
        self.note("clamped")
        x_px, y_px = self.screen.to_px(*self.screen.to_norm(x_px, y_px))
        return {"x_px": x_px, "y_px": y_px}

    def _centre(self, value: object, numbers: list[float]) -> list[float]:
        """Of a box in the declared order, or of one whose own form says which number is what."""
        self.note("box_centre")
        has_names = isinstance(value, dict) or (isinstance(value, list | tuple) and len(value) == 2)
        box = corners(numbers, "xyxy" if has_names else self.box_order)
        self.written.append(centre(box) if has_names else tuple(numbers))
        if box[2] < box[0] or box[3] < box[1]:
            order = "x1, y1, x2, y2" if has_names else self.box_order
            raise ActionError(
                "empty_box", f"box {short(value)} ({order}) is turned inside out: it has no middle; correct it"
            )
        return list(centre(box))

    def _to_px(self, x: float, y: float) -> tuple[float, float]:
        if self.is_grid and 0 <= x <= GRID.cells and 0 <= y <= GRID.cells:
            return self.screen.to_px(x, y)  # the grid's own end reads as its last line
        return self.screen.from_unit(x, y, self.unit)

    def _numbers(self, value: object, is_box: bool) -> list[float]:
        if isinstance(value, str):
            self.note("coordinate_text")
            return self._numbers_of_text(value)
        if isinstance(value, dict):
            return self._numbers_by_name(value, is_box)
        if isinstance(value, list | tuple):
            if len(value) == 1 and isinstance(value[0], list | tuple):
                self.note("nested_list")
                return self._numbers(value[0], is_box)
            if len(value) == 2 and is_pair(value[0]) and is_pair(value[1]):  # two corners of a box
                value = [*value[0], *value[1]]
            return [self.number(number) for number in value]
        raise ActionError("bad_argument", f"position {short(value)} is none: give [x, y]")

    def _numbers_of_text(self, text: str) -> list[float]:
        rest = re.sub(NUMBER, " ", TAGS.sub(" ", text[:200]))
        strange = [word for word in re.findall(r"[^\W\d_]+|%", rest) if word.lower() not in WORDS]
        if strange or len(text) > 200:
            raise ActionError("bad_argument", f"position {short(text)} is more than numbers: give [x, y]")
        return [self.number(number) for number in numbers_of(text)]

    def _numbers_by_name(self, value: dict, is_box: bool) -> list[float]:
        given = {plain(str(key)): item for key, item in value.items() if item is not None}
        for names in (CORNERS, SIDES, ("x", "y", "width", "height"), ("x", "y")):
            if set(given) == set(names) and (is_box or "width" not in names):
                numbers = [self.number(given[name]) for name in names]
                break
        else:
            if "x" not in given or "y" not in given:
                raise ActionError("bad_argument", f"position {short(value)} has no x and y: give [x, y]")
            raise ActionError(
                "bad_argument",
                f"position {short(value)} is more than x and y: which place it is is unknown; give [x, y]",
            )
        if names == ("x", "y"):
            self.note("xy_keys")
        return corners_of(numbers, names)

    def box_px(self, value: object) -> tuple[float, float, float, float] | None:
        """x1, y1, x2, y2 in pixels of a box in any spelling; None if it has not four numbers."""
        numbers = self._numbers(value, is_box=True)
        if len(numbers) != 4:
            return None
        has_names = isinstance(value, dict) or (isinstance(value, list | tuple) and len(value) == 2)
        x1, y1, x2, y2 = corners(numbers, "xyxy" if has_names else self.box_order)
        return (*self.screen.from_unit(x1, y1, self.unit), *self.screen.from_unit(x2, y2, self.unit))

    def number(self, value: object) -> float:
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                raise ActionError("bad_argument", f"{short(value)} is no number: give one") from None
            self.note("string_number")
            value = number
        if not is_number(value) or not abs(value) <= MAX_NUMBER:
            raise ActionError("bad_argument", f"{short(value)} is no number that could be used: give a finite one")
        return value  # type: ignore[return-value]

    def side(self, kind: str) -> int:
        return self.screen.width_px if kind == "hscroll" else self.screen.height_px

    def length(self, value: object, kind: str) -> float:
        """Pixels of a scroll's length in the declared unit."""
        number, whole = self.number(value), UNITS[self.unit]
        if whole in (1, 100) and abs(number) > MAX_SCREENS * whole:
            raise ActionError(
                "unknown_unit",
                f"a scroll of {number} ({self.unit}) is {abs(number) / whole:g} screens: correct its unit",
            )
        return number / whole * self.side(kind) if whole else number


def corners_of(numbers: list[float], names: tuple[str, ...]) -> list[float]:
    """x1, y1, x2, y2 of a corner and a size; others as they are."""
    x, y, *size = numbers
    return [x, y, x + size[0], y + size[1]] if "width" in names else numbers
