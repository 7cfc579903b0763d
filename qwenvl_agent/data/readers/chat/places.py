"""Places in the text: ms-swift's `objects`, which stand for <ref-object> and <bbox>, written as the family writes places.

A place is [x, y] or [x1, y1, x2, y2] on the model's grid (coordinates.py), whatever unit its data has declared.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from qwenvl_agent.computer.tool import GRID_TOOLS, PLACE_KEYS
from qwenvl_agent.coordinates import GRID, Screen
from qwenvl_agent.data.readers.chat.forms import ANSWERERS, Placed, speaker
from qwenvl_agent.schema import ToolCall

PLACEHOLDER = re.compile(r"<ref-object>|<bbox>")
MARK = re.compile(r"<\|(?:box|object_ref|quad)_(?:start|end)\|>|<ref-object>|<bbox>(?![^<]*</bbox>)")
"""What would be read as words: another model's marks, and placeholders that nothing stands for."""
UNITS = {"real": "px", "norm1": "fraction"}
"""ms-swift's names for `bbox_type`, the first its default."""
KNOWN_KEYS = frozenset(("ref", "bbox", "bbox_type", "image_id", "width", "height"))
TEXT_KEYS = ("content", "value", "tool_calls", "function_call")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
OWN_PLACE = re.compile(r'"(?:bbox_2d|point_2d)"\s*:\s*(\[[-\d.,\s]*\])')
"""A place in an answer as Qwen's models write it, in pixels of the picture (2.5) or on the grid (2, 3)."""
SLACK_PX = 1.0
"""A place so far over the edge is on it."""


def fill_places(
    placed: list[Placed], objects: Any, screen_of: Callable[[int], Screen]
) -> tuple[list[Placed], list[str]]:
    """The messages with what `objects` holds in place of their placeholders, in the order of both, and notes.

    `screen_of` gives the size of the row's picture of an index. ValueError unless each has its other.
    """
    if not objects:
        for item in placed:
            _check_unmarked(item)
        return placed, ["places_as_they_are_written"] if any(map(_has_own_places, placed)) else []
    numbers = [len(list(_placeholders(placed, name))) for name in ("<ref-object>", "<bbox>")]
    if not any(numbers):
        return placed, ["objects_without_placeholders"]
    if not isinstance(objects, dict) or not objects.keys() <= KNOWN_KEYS:
        raise ValueError(
            f"objects is {str(objects)[:80]!r}: what stands for <bbox> and <ref-object> is unknown; give "
            '{"ref": [...], "bbox": [...], "bbox_type": "real"}'
        )
    texts = {"<ref-object>": _references(objects), "<bbox>": _boxes(objects, screen_of)}
    for (name, values), number in zip(texts.items(), numbers, strict=True):
        if len(values) != number:
            raise ValueError(
                f"objects has {len(values)} for {number} {name}: which stands for which is unknown; give one for each"
            )
    left = {name: iter(values) for name, values in texts.items()}
    return [item._replace(message=_filled(item.message, left)) for item in placed], []


def _placeholders(placed: list[Placed], name: str) -> Iterator[str]:
    for item in placed:
        for text in _texts(item.message):
            yield from (found for found in PLACEHOLDER.findall(text) if found == name)


def _texts(message: Any) -> Iterator[str]:
    """Every text of a message, in order."""
    for key in TEXT_KEYS if isinstance(message, dict) else ():
        yield from _strings(message.get(key))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value if isinstance(value, list) else value.values():
            yield from _strings(item)


def _check_unmarked(item: Placed) -> None:
    message = item.message
    if not isinstance(message, dict):
        return
    content = message.get("content") or message.get("value")
    if isinstance(content, list):
        texts = [part.get("text") or part.get("value") for part in content if isinstance(part, dict)]
    else:
        texts = [content]
    for text in texts:
        found = MARK.search(text) if isinstance(text, str) and "<" in text else None
        if found:
            raise ValueError(
                f"{item.place} has {found.group()!r}, which marks a place or stands for one: it would be learned as words; "
                "write the place as [x1, y1, x2, y2] in thousandths of the picture, or give objects"
            )


def _has_own_places(item: Placed) -> bool:
    """Whether an answer writes places by itself; ValueError for those that cannot be on the grid."""
    message = item.message
    content = message.get("content", message.get("value")) if isinstance(message, dict) else None
    if not isinstance(content, str) or '_2d"' not in content or speaker(message) not in ANSWERERS:
        return False
    places = OWN_PLACE.findall(content)
    for place in places:
        _check_on_grid([float(number) for number in NUMBER.findall(place)], f"{item.place} has the place {place[:80]}")
    return bool(places)


def has_places(call: ToolCall, place: str) -> bool:
    """Whether a call of the computer's tools writes places, as it stands; ValueError for those that cannot be on the grid."""
    if call.name not in GRID_TOOLS:
        return False
    values = [call.arguments.get(name) for name in PLACE_KEYS]
    points = [value for value in values if isinstance(value, list) and all(type(n) in (int, float) for n in value)]
    for point in points:
        _check_on_grid(point, f"{place} calls {call.name} at {str(point)[:80]}")
    return bool(points)


def _check_on_grid(numbers: list[float], what: str) -> None:
    if any(number > GRID.cells or number < 0 for number in numbers):
        raise ValueError(
            f"{what}, which is not within 0 to {GRID.cells}: places are in thousandths of the picture here, and these are pixels "
            "(Qwen2.5-VL); divide by its width and height, times 1000"
        )
    if any(number % 1 for number in numbers) and all(number <= 1 for number in numbers):
        raise ValueError(
            f"{what}, fractions of the picture: places are in thousandths here, and all would be in the corner; write them "
            "times 1000"
        )


def _filled(message: Any, left: dict[str, Iterator[str]]) -> Any:
    if not isinstance(message, dict):
        return message
    return {key: _fill(value, left) if key in TEXT_KEYS else value for key, value in _in_order(message)}


def _in_order(message: dict) -> list[tuple[str, Any]]:
    """Texts in the order in which they are written, as `_texts` counts them."""
    texts = [(key, message[key]) for key in TEXT_KEYS if key in message]
    return texts + [(key, value) for key, value in message.items() if key not in TEXT_KEYS]


def _fill(value: Any, left: dict[str, Iterator[str]]) -> Any:
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda match: next(left[match.group()]), value)
    if isinstance(value, list):
        return [_fill(item, left) for item in value]
    return {key: _fill(item, left) for key, item in value.items()} if isinstance(value, dict) else value


def _references(objects: dict) -> list[str]:
    references = objects.get("ref") or []
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        raise ValueError(f"objects.ref is {str(references)[:80]!r}: it cannot be written; give a list of texts")
    return references


def _boxes(objects: dict, screen_of: Callable[[int], Screen]) -> list[str]:
    boxes, kind = objects.get("bbox") or [], objects.get("bbox_type") or "real"
    if not isinstance(boxes, list) or not all(_is_place(box) for box in boxes):
        raise ValueError(
            f"objects.bbox is {str(boxes)[:80]!r}: a place cannot be written; give a list of [x, y] and [x1, y1, x2, y2]"
        )
    if not isinstance(kind, str) or kind not in UNITS:
        raise ValueError(f"objects.bbox_type is {kind!r}: its unit is unknown; use one of {', '.join(UNITS)}")
    if boxes and kind == "real" and all(value <= 1 for box in boxes for value in box):
        raise ValueError(
            f"objects.bbox is {str(boxes)[:80]}, pixels by its bbox_type: all would be in the corner; if they are fractions "
            "of the picture, say bbox_type norm1"
        )
    return [
        _written(box, screen_of(index), UNITS[kind], f"objects.bbox[{i}]")
        for i, (box, index) in enumerate(zip(boxes, _image_ids(objects, len(boxes)), strict=True))
    ]


def _is_place(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) in (2, 4)
        and all(isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 for value in box)
    )


def _image_ids(objects: dict, number: int) -> list[int]:
    ids = objects.get("image_id") or [0] * number
    if not isinstance(ids, list) or len(ids) != number or not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(
            f"objects.image_id is {str(ids)[:80]} for {number} boxes: which picture each is in is unknown; give the index "
            "of a picture for each, from 0"
        )
    return ids


def _written(box: list[float], screen: Screen, unit: str, place: str) -> str:
    points = [screen.from_unit(x, y, unit) for x, y in zip(box[::2], box[1::2], strict=True)]
    for x, y in points:
        if not (-SLACK_PX <= x <= screen.width_px + SLACK_PX and -SLACK_PX <= y <= screen.height_px + SLACK_PX):
            raise ValueError(
                f"{place} is {box} ({unit}), outside the picture of {screen.width_px}x{screen.height_px} px: it is another "
                "picture's, or bbox_type is not its unit; correct it"
            )
    if len(points) == 2 and not (points[0][0] <= points[1][0] and points[0][1] <= points[1][1]):
        raise ValueError(
            f"{place} is {box}: its second corner is left of the first or above it, as if it were x, y, width, height; give "
            "[x1, y1, x2, y2]"
        )
    return str(
        [value for x, y in points for value in (GRID.encode(x, screen.width_px), GRID.encode(y, screen.height_px))]
    )
