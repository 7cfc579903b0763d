"""How the places of a file are written: what is declared, and what the places themselves say against it.

A unit is declared or proved, never guessed. Every record is held against all ways of writing places (`WAYS`), which gives
an `Evidence` of a few bits; they are counted over the file, and `judge` says at its end whether the declared way can be
the right one:

| | what | then |
|---|---|---|
| proof | records that the declared way cannot have, while another way has nearly all | the file is refused |
| proof | actions in a form whose places are thousandths, while no unit is declared | the file is refused |
| suspicion | all within 0 to 1000 (or 100) on larger screens, while no unit is declared | counted, with the unit that fits |

A record that the declared way cannot have is a reject in any case, so a file of two units loses the rows of the other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, Protocol

from qwenvl_agent.computer.dialect_units import OWN_FORM
from qwenvl_agent.coordinates import BOX_ORDERS, GRID, UNITS, Screen, centre, corners

Point = tuple[float, float]
Numbers = Sequence[float]
UNIT_NAMES = tuple(unit for unit in UNITS if unit != "norm")
"""The units that a file may declare."""
SLACK_PX = 1.0
"""Annotators round: so far may a box reach over the picture's edge, and a click lie beside its box."""
MOST = 0.9
"""Share of the records with places that another way must have for the file to be refused."""
FEW = 0.05
"""Up to this share (and one record in any case) may be wrong before a file's unit is in question."""
MIN_SUSPECT = 10
"""Records on larger screens: of fewer, chance may have put all within the thousandths."""
LARGER = 1.2
"""Times 1000 (or 3 times 100): a side on which places beyond it are to be expected."""
OFF_SCREEN, BELOW_ONE, NO_INSIDE, OFF_PICTURE, OUTSIDE_BOX = (
    "beyond the screen",
    "all numbers below 1",
    "a box turned inside out",
    "a box beyond the picture",
    "a click outside its own box",
)
"""What the declared way may not have."""


class Way(NamedTuple):
    """One way of writing places."""

    unit: str
    box_unit: str
    box_order: str


WAYS = tuple(Way(*parts) for parts in product(UNIT_NAMES, UNIT_NAMES, BOX_ORDERS))


class Source(Protocol):
    """`config.SourceConfig`, or `Declared`."""

    @property
    def unit(self) -> str: ...

    @property
    def box_unit(self) -> str: ...

    @property
    def box_order(self) -> str: ...


@dataclass(frozen=True)
class Declared:
    """What is said about a file's places. Empty: px; boxes in the same unit; two corners."""

    unit: str = ""
    box_unit: str = ""
    box_order: str = ""

    @classmethod
    def of(cls, source: Source) -> "Declared":
        return cls(source.unit, source.box_unit, source.box_order)

    @property
    def way(self) -> Way:
        unit = self.unit or "px"
        return Way(unit, self.box_unit or unit, self.box_order or "xyxy")


UNDECLARED = Declared()


class Evidence(NamedTuple):
    """What one record says. Few records differ in it: a file's are counted in little memory, in any order."""

    fits: int
    """Bit i: the record may be written in WAYS[i]."""
    fault: str
    """Why it cannot be written as declared; "" if it can."""
    has_box: bool
    form: str
    """That the action is written in, if its places are thousandths elsewhere."""
    is_over_thousand: bool
    """Whether a side of the screen goes well beyond 1000 px,"""
    is_over_hundred: bool
    """or both beyond 100."""

    def ways(self) -> list[Way]:
        return [way for i, way in enumerate(WAYS) if self.fits >> i & 1]


def weigh(written: Sequence[Numbers], box: Numbers | None, screen: Screen, form: str, way: Way) -> Evidence | None:
    """Of the positions and the box of a record as they stand there; None without any.

    `way` is the declared one.
    """
    if not written and box is None:
        return None
    faults = _faults(written, box, screen)
    fits = sum(1 << i for i, fault in enumerate(faults) if not fault)
    sides = screen.width_px, screen.height_px
    larger = max(sides) > LARGER * GRID.cells, min(sides) > 3 * 100
    return Evidence(fits, faults[WAYS.index(way)], box is not None and bool(written), form, *larger)


def _faults(written: Sequence[Numbers], box: Numbers | None, screen: Screen) -> list[str]:
    """For each of WAYS, why the record cannot be written in it."""
    has_boxes = any(len(place) == 4 for place in written)
    boxes = [box and _box(box, screen, unit, order) for unit, order in product(UNIT_NAMES, BOX_ORDERS)]
    faults: list[str] = []
    for unit in UNIT_NAMES:
        points = _points(written, screen, unit, "xyxy")
        # Most records have none of it: a unit that the places leave no room for, and places whose order says nothing.
        if isinstance(points, str) and not has_boxes:
            faults += [points] * len(boxes)
            continue
        by_order = points, _points(written, screen, unit, "xywh") if has_boxes else points
        slack = _slack(unit, screen)
        faults += [_fault(by_order[i % 2], box_px, slack) for i, box_px in enumerate(boxes)]
    return faults


def _fault(points: list[Point] | str, box: Numbers | str | None, slack: Point) -> str:
    if isinstance(points, str):
        return points
    if isinstance(box, str):
        return box
    return OUTSIDE_BOX if box and points and not _is_on(points, box, slack) else ""


def _is_on(points: Sequence[Point], box: Numbers, slack: Point) -> bool:
    """Whether one of the points lies on the box, its edges included."""
    (x1, y1, x2, y2), (dx, dy) = box, slack
    return any(x1 - dx <= x <= x2 + dx and y1 - dy <= y <= y2 + dy for x, y in points)


def _slack(unit: str, screen: Screen) -> Point:
    """What rounding may do to a place: SLACK_PX, or half a cell of the grid where that is more."""
    if UNITS[unit] != GRID.cells:
        return SLACK_PX, SLACK_PX
    return max(SLACK_PX, screen.width_px / GRID.cells / 2), max(SLACK_PX, screen.height_px / GRID.cells / 2)


def is_below_one(numbers: Numbers, unit: str) -> bool:
    """Whether these can be nothing but fractions: a place inside the first pixel (or cell), and not on whole numbers."""
    return unit != "fraction" and all(0 <= n <= 1 for n in numbers) and any(n != int(n) for n in numbers)


def _points(written: Sequence[Numbers], screen: Screen, unit: str, order: str) -> list[Point] | str:
    """Positions in px, or why they are none."""
    if written and is_below_one([n for place in written for n in place], unit):
        return BELOW_ONE
    points = []
    for place in written:
        box = corners(place, order) if len(place) == 4 else (*place, *place)
        if box[2] < box[0] or box[3] < box[1]:
            return NO_INSIDE
        x, y = screen.from_unit(*centre(box), unit)
        # The end of a grid reads as its last cell; what a pixel's row is beyond the last is nowhere.
        if not (0 <= x <= screen.width_px and 0 <= y <= screen.height_px) or (
            unit == "px" and not screen.contains(x, y)
        ):
            return OFF_SCREEN
        points.append((x, y))
    return points


def _box(box: Numbers, screen: Screen, unit: str, order: str) -> Numbers | str:
    """x1, y1, x2, y2 in px, or why it is no box."""
    if is_below_one(box, unit):
        return BELOW_ONE
    x1, y1, x2, y2 = corners(box, order)
    if not (x2 > x1 and y2 > y1):
        return NO_INSIDE
    px = (*screen.from_unit(x1, y1, unit), *screen.from_unit(x2, y2, unit))
    is_inside = min(px) >= -SLACK_PX and px[2] <= screen.width_px + SLACK_PX and px[3] <= screen.height_px + SLACK_PX
    return px if is_inside else OFF_PICTURE


def judge(found: Mapping[Evidence, int], declared: Declared, file: str) -> Counter[str]:
    """The suspicions over a whole file, counted by name; ValueError if its places cannot be as they are declared."""
    for part in (found, {evidence: n for evidence, n in found.items() if evidence.has_box}):
        fitting = _better_ways(part, declared)
        if fitting:
            raise ValueError(_refusal(part, fitting, declared, file))
    return Counter() if declared.unit else _suspicions(found, file)


def _count(found: Mapping[Evidence, int], way: Way) -> int:
    bit = WAYS.index(way)
    return sum(n for evidence, n in found.items() if evidence.fits >> bit & 1)


def _better_ways(found: Mapping[Evidence, int], declared: Declared) -> list[Way]:
    """The ways that nearly all records can be written in, nearest to the declared one, if too many cannot in that."""
    total, right = sum(found.values()), _count(found, declared.way)
    wrong = total - right
    if wrong <= max(1, FEW * total):
        return []
    counts = {way: n for way in WAYS if (n := _count(found, way)) >= MOST * total and n > right}
    # What differs in two things fits a record or two by chance.
    counts = {way: n for way, n in counts.items() if _distance(way, declared) == 1 or wrong >= 3}
    nearest = min((_distance(way, declared) for way in counts), default=0)
    counts = {way: n for way, n in counts.items() if _distance(way, declared) == nearest}
    return [way for way, n in counts.items() if n == max(counts.values())]


def _distance(way: Way, declared: Declared) -> int:
    """How many things would have to be declared otherwise."""
    given = declared.way
    return (
        (way.unit != given.unit)
        + (way.box_unit != (declared.box_unit or way.unit))
        + (way.box_order != given.box_order)
    )


def _refusal(found: Mapping[Evidence, int], fitting: Sequence[Way], declared: Declared, file: str) -> str:
    total = sum(found.values())
    faults = Counter[str]()
    for evidence, n in found.items():
        faults[evidence.fault] += n
    del faults[""]
    causes = ", ".join(f"{n} x {fault}" for fault, n in faults.most_common())
    what = "records with a place and a box" if all(e.has_box for e in found) else "records with places"
    others = " or ".join(f"{setting(way, declared)} ({_count(found, way)} of {total} fit)" for way in fitting)
    return (
        f"{file}: {faults.total()} of {total} {what} cannot be in {described(declared.way)} ({causes}): clicks would be "
        f"learned where nothing is; declare {others} with the source, or correct the file"
    )


def hint(evidence: Evidence | None, declared: Declared) -> str:
    """For the reject of one record: what would have to be declared, if one thing, for it to fit."""
    ways = [way for way in evidence.ways() if _distance(way, declared) == 1] if evidence else []
    # Without quotes: what is counted by reason leaves out values in quotes.
    fitting = " or ".join(setting(way, declared).replace('"', "").replace(":", "") for way in ways)
    return f"; it would fit with {fitting}" if ways else ""


def setting(way: Way, declared: Declared) -> str:
    """What to write in a source so that its places are read that way."""
    given = {"unit": way.unit, "box_unit": way.box_unit, "box_order": way.box_order}
    if way.box_unit == way.unit:
        del given["box_unit"]
    if way.box_order == declared.way.box_order:
        del given["box_order"]
    if way.unit == declared.way.unit and len(given) > 1:
        del given["unit"]
    return ", ".join(f'"{key}": "{value}"' for key, value in given.items())


def described(way: Way) -> str:
    boxes = [] if way.box_unit == way.unit else [f"boxes in {way.box_unit}"]
    boxes += ["boxes as x, y, width, height"] if way.box_order == "xywh" else []
    return ", ".join([way.unit, *boxes])


def _suspicions(found: Mapping[Evidence, int], file: str) -> Counter[str]:
    """Of a file that declares no unit; ValueError if nearly all actions are in a form whose places are thousandths."""
    total = sum(found.values())
    stated = {evidence: n for evidence, n in found.items() if evidence.form not in ("", OWN_FORM)}
    own = {evidence: n for evidence, n in found.items() if evidence.form == OWN_FORM}
    wide_own = {evidence: n for evidence, n in own.items() if evidence.is_over_thousand}
    for part, least in ((stated, 1), (own, MIN_SUSPECT if _all_fit(wide_own, "thousand") else total + 1)):
        if sum(part.values()) >= max(least, MOST * total):
            raise ValueError(_undeclared(part, total, file))
    for unit, wide in (
        ("percent", {evidence: n for evidence, n in found.items() if evidence.is_over_hundred}),
        ("thousand", {evidence: n for evidence, n in found.items() if evidence.is_over_thousand}),
    ):
        if _all_fit(wide, unit):
            return Counter({f"taken_as_px_may_be_{unit}": sum(wide.values())})
    all_own = own and _count(own, Way("thousand", "thousand", "xyxy")) == sum(own.values())
    return Counter({"taken_as_px_may_be_thousand": sum(own.values())} if all_own else {})


def _all_fit(found: Mapping[Evidence, int], unit: str) -> bool:
    total = sum(found.values())
    return total >= MIN_SUSPECT and _count(found, Way(unit, unit, "xyxy")) == total


def _undeclared(found: Mapping[Evidence, int], total: int, file: str) -> str:
    forms = Counter[str]()
    for evidence, n in found.items():
        forms[evidence.form] += n
    causes = ", ".join(f"{n} x {form}" for form, n in forms.most_common())
    fits = ", ".join(f"{unit} {_count(found, Way(unit, unit, 'xyxy'))}" for unit in ("thousand", "px"))
    return (
        f"{file}: {forms.total()} of {total} records with places are in a form whose places are 0 to {GRID.cells} where it "
        f'comes from ({causes}): taken as pixels, clicks would be learned elsewhere; declare "unit": "thousand" with the '
        f'source, or "unit": "px" if they are pixels all the same (fit: {fits})'
    )
