"""What is done in a step of a data set, as actions in pixels, and the box of the element that it is done to."""

import re
from dataclasses import dataclass, field
from typing import Any

from qwenvl_agent.computer import Action
from qwenvl_agent.computer.dialects import Reading, read
from qwenvl_agent.computer.places import MAX_NUMBER, is_number, numbers_of
from qwenvl_agent.coordinates import Screen, centre
from qwenvl_agent.curation.gestures import GESTURES
from qwenvl_agent.curation.layout import ANY, OF_BOX, REFUSE, Layout
from qwenvl_agent.curation.paths import filled, paths_in, text_of, value_at, values_at
from qwenvl_agent.data.readers.computer import Box, RecordError, read_box
from qwenvl_agent.schema import Picture

POINT_SLACK_PX = 1.0
CALLED = re.compile(r"([A-Za-z_]\w*)\(")


@dataclass(frozen=True)
class Step:
    """A row with one of its items, and its picture."""

    values: dict
    index: int
    picture: Picture

    def at(self, path: str) -> object:
        return value_at(self.values, path, self.index)


@dataclass(frozen=True)
class Acted:
    actions: tuple[Action, ...]
    thought: str = ""
    box: Box | None = None
    details: dict = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def acted(layout: Layout, step: Step) -> Acted:
    """What is done in a step, and the box of the element that its first place is on."""
    if not layout.action:
        return _clicked(layout, step)
    natives = step.at(layout.action)
    natives = natives if isinstance(natives, list) and layout.actions else [natives]
    if not natives:
        raise RecordError("no_action", f"{layout.action} is empty: there is nothing to learn; give an action")
    readings: list[Reading] = []
    boxes: list[Box] = []
    notes: tuple[str, ...] = ()
    for native in natives:
        own, cut = _boxes(layout, step, native)
        reading = _read_native(layout, step, native, own)
        if not any(action.point_px for read in readings for action in read.actions):
            boxes, notes = (own, cut) if any(action.point_px for action in reading.actions) else ([], ())
        readings.append(reading)
    actions = tuple(action for reading in readings for action in reading.actions)
    boxes, more = _box_of_list(layout, step, actions, boxes)
    repairs = tuple(dict.fromkeys(name for reading in readings for name in reading.repairs))
    thought = next((reading.thought for reading in readings if reading.thought), "")
    _check_inside(actions, boxes)
    box, details, several = _one_box(boxes)
    return Acted(actions, thought, box, details, repairs + notes + more + several)


def _clicked(layout: Layout, step: Step) -> Acted:
    """A click on the annotated point, unless it lies beside its box: then on the box's middle."""
    boxes, notes = _boxes(layout, step, {})
    point = _point(layout, step)
    if point is None and not boxes:
        raise RecordError("no_position", "neither box nor point is given: there is nothing to hit")
    box, details, several = _one_box(boxes)
    if point is None or (boxes and not any(_is_inside(point, box) for box in boxes)):
        beside = () if point is None else ("point_beside_box",)
        point, notes = centre(boxes[0]), notes + beside
    return Acted((Action.click(*point),), "", box, details, notes + several)


def _point(layout: Layout, step: Step) -> tuple[float, float] | None:
    value = together(step, layout.point)
    if value is None:
        return None
    value = numbers_of(value[:200]) if isinstance(value, str) else value
    reading = read(value, Screen.of(step.picture), layout.point_unit)
    if reading.error:
        raise RecordError(reading.error, reading.message)
    if len(reading.actions) != 1 or reading.actions[0].kind != "left_click":
        raise RecordError("bad_argument", f"{layout.point[0]} is {str(value)[:80]}: no place to click; give [x, y]")
    return reading.actions[0].point_px


def _read_native(layout: Layout, step: Step, native: object, boxes: list[Box]) -> Reading:
    """An action as the data set writes it; RecordError for one that is refused, or cannot be read."""
    values = _translated(layout, step, native, boxes)
    readings = [_read_value(value, Screen.of(step.picture), layout.action_unit) for value in values]
    failed = next((reading for reading in readings if reading.error), None)
    if failed:
        raise RecordError(failed.error, failed.message)
    repairs = tuple(name for reading in readings for name in reading.repairs)
    actions = tuple(action for reading in readings for action in reading.actions)
    return Reading(actions, next((r.thought for r in readings if r.thought), ""), repairs)


def _read_value(value: object, screen: Screen, unit: str) -> Reading:
    if not (isinstance(value, dict) and value.get("action") in GESTURES):
        return read(value, screen, unit)
    try:
        parts = GESTURES[value["action"]](value, screen, unit)
    except ValueError as error:
        return Reading(error="bad_argument", message=str(error))
    readings = [Reading((part,)) if isinstance(part, Action) else read(part, screen, unit) for part in parts]
    failed = next((reading for reading in readings if reading.error), None)
    return failed or Reading(tuple(a for r in readings for a in r.actions), "", (value["action"],))


def _translated(layout: Layout, step: Step, native: object, boxes: list[Box]) -> list:
    """The dialects' values of a native action, by the layout's table."""
    if not layout.actions:
        return [native]
    if isinstance(native, str):
        _refuse_calls(layout, native)
        return [native]
    if not isinstance(native, dict):
        raise RecordError("no_action", f"{str(native)[:80]} is no action: nothing to learn; give an object")
    name, entry = _entry(layout, step, native)
    if isinstance(entry, dict) and REFUSE in entry:
        raise _refusal(name, entry[REFUSE])
    templates = entry if isinstance(entry, list) else [entry]
    place = Screen.of(step.picture).to_unit(*centre(boxes[0]), layout.action_unit) if boxes else None
    if place is None and any(OF_BOX in paths_in(template) for template in templates):
        raise RecordError(
            "not_drawn", f"{name} on an element without a box on the screen: where is not known; it is left out"
        )
    holes = {**native, OF_BOX: list(place) if place else None}
    return [filled(template, holes, step.index) for template in templates]


def _entry(layout: Layout, step: Step, native: dict) -> tuple[str, dict | list]:
    names = [name for path in layout.action_name if (name := text_of(native, path, step.index))]
    if not names:
        paths = " or ".join(layout.action_name)
        raise RecordError("no_action", f"{paths} names no action in {str(native)[:80]}: nothing to learn; name it")
    for name in names:
        for key in (name, name.lower()):
            if key in layout.actions:
                return name, layout.actions[key]
    if ANY in layout.actions:
        return names[-1], layout.actions[ANY]
    raise RecordError(
        "unknown_action",
        f"action is {names[-1][:60]!r}, which the layout does not know: use one of {', '.join(layout.actions)}",
    )


def _refuse_calls(layout: Layout, code: str) -> None:
    """RecordError for code that calls what the layout refuses."""
    for name in CALLED.findall(code[:20_000]):
        if REFUSE in layout.actions.get(name, ()):
            raise _refusal(name, layout.actions[name][REFUSE])


def _refusal(name: str, why: str) -> RecordError:
    word = re.sub(r"\W+", "_", name.lower()).strip("_")[:40]
    return RecordError(f"no_{word}", f"action is {name[:60]!r}: {why}; the step is left out")


def _boxes(layout: Layout, step: Step, native: object) -> tuple[list[Box], tuple[str, ...]]:
    """The drawn boxes of what is meant, in pixels."""
    values = [value for value in map(_four, _found_boxes(layout, step, native)) if value is not None]
    values = values[:1] if layout.boxes == "first" else values
    read_boxes = [_read_box(value, layout, step.picture) for value in values]
    notes = [note for _, cut in read_boxes for note in cut]
    return list(dict.fromkeys(box for box, _ in read_boxes if box)), tuple(dict.fromkeys(notes))


def _found_boxes(layout: Layout, step: Step, native: object) -> list:
    """The values that stand where the layout says that boxes are."""
    values = {**step.values, "native": native}
    if len(layout.box) == 4:
        numbers = [value_at(values, path, step.index) for path in layout.box]
        return [] if all(number is None for number in numbers) else [numbers]
    return [value for path in layout.box for value in values_at(values, path, step.index)]


def _read_box(value: Any, layout: Layout, picture: Picture) -> tuple[Box | None, tuple[str, ...]]:
    return read_box(_in_corners(value, layout, picture), layout.box_unit, "xyxy", picture)


def _four(value: Any) -> Any:
    """Four numbers in any spelling; None for a box that is not given, or whose numbers say that nothing was drawn."""
    if isinstance(value, str):
        value = numbers_of(value[:200]) if value.strip() else None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, dict) and {"top_left", "bottom_right"} <= set(value):
        first, second = value["top_left"], value["bottom_right"]
        value = [*first, *second] if isinstance(first, list) and isinstance(second, list) else value
    return None if value is None or value == [] or value == [-1, -1, -1, -1] else value


def _in_corners(value: Any, layout: Layout, picture: Picture) -> Any:
    """x1, y1, x2, y2 of four numbers in the layout's order; RecordError for those below a cropped screenshot."""
    is_box = isinstance(value, list) and len(value) == 4
    if not is_box or not all(is_number(n) and abs(n) <= MAX_NUMBER for n in value):
        return value  # read_box says what is wrong with it
    if layout.box_order.startswith("y"):
        value = [value[1], value[0], value[3], value[2]]
    if layout.box_order[2:] in ("wh", "hw"):
        value = [value[0], value[1], value[0] + value[2], value[1] + value[3]]
    bottom = Screen.of(picture).from_unit(0, value[3], layout.box_unit)[1]
    if layout.full_page and bottom > picture.height + POINT_SLACK_PX:
        raise RecordError(
            "below_fold",
            f"the element reaches down to {bottom:.0f} px of its page, the screenshot is {picture.height} px high: it is "
            "cropped, and the place is not on it; use the screenshot of the whole page",
        )
    return value


def _box_of_list(
    layout: Layout, step: Step, actions: tuple[Action, ...], boxes: list[Box]
) -> tuple[list[Box], tuple[str, ...]]:
    """The smallest of the screen's boxes that holds the first place, where the layout has only a list of them."""
    place = next((action.point_px for action in actions if action.point_px), None)
    if not layout.box_list or place is None:
        return boxes, ()
    holding = []
    for value in map(_four, values_at(step.values, layout.box_list, step.index)):
        try:
            box, _ = _read_box(value, layout, step.picture)
        except RecordError:
            continue  # of an element that is not meant
        if box and _is_inside(place, box):
            holding.append(box)
    smallest = sorted(holding, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))[:1]
    return smallest, ("box_around_place",) if smallest else ()


def _check_inside(actions: tuple[Action, ...], boxes: list[Box]) -> None:
    place = next((action.point_px for action in actions if action.point_px), None)
    if place and boxes and not any(_is_inside(place, box) for box in boxes):
        raise RecordError(
            "click_outside_box",
            f"the place ({place[0]:.0f}, {place[1]:.0f}) px lies outside of its element's box "
            f"{[round(n) for n in boxes[0]]} px: one of the two is wrong; correct it, or its declared unit",
        )


def _one_box(boxes: list[Box]) -> tuple[Box | None, dict, tuple[str, ...]]:
    """(box, details, notes): of several right boxes none is the box, and all are `hit_boxes`."""
    if len(boxes) < 2:
        return (boxes[0] if boxes else None), {}, ()
    return None, {"hit_boxes": [list(box) for box in boxes]}, ("several_boxes",)


def _is_inside(point: tuple[float, float], box: Box) -> bool:
    (x, y), (x1, y1, x2, y2) = point, box
    return x1 - POINT_SLACK_PX <= x <= x2 + POINT_SLACK_PX and y1 - POINT_SLACK_PX <= y <= y2 + POINT_SLACK_PX


def together(step: Step, paths: tuple[str, ...]) -> object:
    """The value at one path, or the values at several as a list; None if none is there."""
    values = [step.at(path) for path in paths]
    if not any(value is not None for value in values):
        return None
    return values[0] if len(values) == 1 else values
