"""Where on the screen: the only place that converts between pixels, the model's grid and other units.

Three spaces, told apart by the ending of a name:

| ending | space |
|---|---|
| _px | pixels of the picture as it was taken, from its top left corner; floats, 0 <= x_px < width |
| _norm | the model's relative grid: whole numbers from 0 to 1000 across the picture, whatever its size |
| _css | units of a web page: pixels divided by the device scale |

`GRID` states the grid in the prompt, checks what a model wrote, and converts, so that prompt and parser cannot disagree.
The grid is Qwen3-VL's: its own computer-use example tells the model of a 1000x1000 screen and decodes v / 1000 * size.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

UNITS = {"px": 0, "fraction": 1, "percent": 100, "thousand": 1000, "norm": 1000}
"""Ways in which data states positions: what stands for the whole width or height; 0: pixels. `thousand` is what users
call the grid's unit, `norm` what the code does."""
BOX_ORDERS = ("xyxy", "xywh")
"""Of the four numbers of a box: two corners, or one and the size."""


class Sized(Protocol):
    """A picture, in a file or in memory."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...


@dataclass(frozen=True)
class Grid:
    """`cells` a side. Written positions are 0 to `cells` - 1; `cells` itself, which models write too, reads as the last."""

    cells: int = 1000

    @property
    def prompt_line(self) -> str:
        """What the prompt says of positions; its first sentence is the one that Qwen's own tool states."""
        return (
            f"The screen's resolution is {self.cells}x{self.cells}: (0, 0) is the top left corner of the picture and "
            f"({self.cells}, {self.cells}) the bottom right, whatever its size in pixels."
        )

    @property
    def schema(self) -> dict:
        """JSON schema of a position [x, y]."""
        number = {"type": "integer", "minimum": 0, "maximum": self.cells}
        return {"type": "array", "items": number, "minItems": 2, "maxItems": 2}

    def parse(self, value: Any) -> tuple[int, int]:
        """(x_norm, y_norm) of what `schema` allows; ValueError otherwise."""
        is_pair = isinstance(value, list | tuple) and len(value) == 2
        if not is_pair or not all(type(v) is int and 0 <= v <= self.cells for v in value):
            raise ValueError(
                f"coordinate {str(value)[:60]} is not on the screen: give [x, y], whole numbers from 0 to {self.cells}"
            )
        return value[0], value[1]

    def encode(self, value_px: float, size_px: int) -> int:
        """The nearest grid line of a position along a side of `size_px` pixels, clamped to the picture."""
        check_finite(value_px)
        return min(max(round(value_px / size_px * self.cells), 0), self.cells - 1)

    def decode(self, value_norm: float, size_px: int) -> float:
        """Pixels of a position on the grid, clamped to the picture: 0 <= result < size_px."""
        check_finite(value_norm)
        return min(max(value_norm, 0), self.cells - 1) / self.cells * size_px

    def encode_length(self, length_px: float, size_px: int) -> int:
        """A distance in grid cells; it may be negative or longer than the side."""
        check_finite(length_px)
        return round(length_px / size_px * self.cells)

    def decode_length(self, length_norm: float, size_px: int) -> float:
        check_finite(length_norm)
        return length_norm / self.cells * size_px


GRID = Grid()


@dataclass(frozen=True)
class Screen:
    """The size of a screenshot, and how many of its pixels make one unit of the page (the device scale)."""

    width_px: int
    height_px: int
    scale: float = 1.0

    def __post_init__(self):
        if self.width_px < 1 or self.height_px < 1:
            raise ValueError(f"screen of {self.width_px}x{self.height_px} px: no position is on it; give its real size")
        if not (is_finite(self.scale) and self.scale > 0):
            raise ValueError(f"device scale is {self.scale}: pixels have no place on the page; give a number above 0")

    @classmethod
    def of(cls, picture: Sized, scale: float = 1.0) -> "Screen":
        """The screen that a `Picture` or an image shows."""
        return cls(picture.width, picture.height, scale)

    def to_norm(self, x_px: float, y_px: float) -> tuple[int, int]:
        return GRID.encode(x_px, self.width_px), GRID.encode(y_px, self.height_px)

    def to_px(self, x_norm: float, y_norm: float) -> tuple[float, float]:
        return GRID.decode(x_norm, self.width_px), GRID.decode(y_norm, self.height_px)

    def to_css(self, x_px: float, y_px: float) -> tuple[float, float]:
        return x_px / self.scale, y_px / self.scale

    def from_css(self, x_css: float, y_css: float) -> tuple[float, float]:
        return x_css * self.scale, y_css * self.scale

    def to_pixel(self, x_px: float, y_px: float) -> tuple[int, int]:
        """The nearest whole pixel of the picture."""
        return min(round(x_px), self.width_px - 1), min(round(y_px), self.height_px - 1)

    def from_unit(self, x: float, y: float, unit: str) -> tuple[float, float]:
        """Pixels of a position in one of `UNITS`, not clamped: whether it is on the screen is for the caller to ask."""
        whole = UNITS[unit]
        return (x / whole * self.width_px, y / whole * self.height_px) if whole else (x, y)

    def to_unit(self, x_px: float, y_px: float, unit: str) -> tuple[float, float]:
        """The position in one of `UNITS`, not rounded: what `from_unit` takes."""
        whole = UNITS[unit]
        return (x_px / self.width_px * whole, y_px / self.height_px * whole) if whole else (x_px, y_px)

    def contains(self, x_px: float, y_px: float) -> bool:
        """Whether a click there would hit the screen; False for NaN."""
        return 0 <= x_px < self.width_px and 0 <= y_px < self.height_px


def is_finite(value: float) -> bool:
    """Whether a float holds it: no NaN, no infinity, and no whole number so large that math.isfinite raises."""
    return abs(value) <= sys.float_info.max


def check_finite(value: float) -> None:
    """ValueError for NaN and infinities, which no clamp could place."""
    if not is_finite(value):
        raise ValueError(f"position {value} is nowhere on the screen: nothing can be clicked; give a finite number")


def corners(box: Sequence[float], order: str) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a box in one of `BOX_ORDERS`."""
    x, y, right, bottom = box
    return (x, y, x + right, y + bottom) if order == "xywh" else (x, y, right, bottom)


def centre(box: Sequence[float]) -> tuple[float, float]:
    """The middle of a box (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2, (y1 + y2) / 2
