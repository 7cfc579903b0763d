"""Actions as people and other models write them -> actions in pixels. Nothing is guessed silently.

What is the tool's own form is read without repairs; everything else is read under a name, to be counted:

| repair | what was read |
|---|---|
| json_text, python_literal, python_call, upper_case_call, bare_coordinates | text (`dialect_text` shows each); code is never run |
| nested_action | {"action": {...}}, {"next_action": {...}} |
| call_as_value, name_as_action | {"name": "computer_use", "arguments": {...}}; {"name": "click", "arguments": {...}} |
| several_actions | a list of actions |
| list_action | ["click", 300, 80] |
| renamed_action_key | {"type": "click"}, {"action_type": "click"} |
| renamed_action | "click", "CLICK", "tap" for left_click, "write" for type ... |
| missing_action | a position alone: left_click |
| renamed_argument | another name of an argument: `value` for text, `position` for coordinate ... |
| xy_keys | x and y in place of coordinate |
| box_centre | four numbers x1, y1, x2, y2, or x, y, width, height by name: the middle |
| coordinate_text, nested_list, string_number, float_coordinate | "(300, 80)"; [[300, 80]]; "300"; 300.5 on the grid |
| clamped | a position outside the screen, moved to its edge (only with `clamp`) |
| key_combination | "ctrl+a", "ctrl a" for ["ctrl", "a"]; several keys pressed one after another |
| wheel_notches, scroll_direction, default_scroll | a wheel's notches as WHEEL_NOTCH_PX each; "down"; without a length: half a screen |
| default_time | a wait without a time: DEFAULT_WAIT_SECONDS |
| click_and_type, typed_enter | type with a position; type with enter or submit: the key after it |
| drag_start | a drag with both ends: a mouse_move to the first before it |
| number_as_text | a number to type |
| renamed_status, default_status | "done" for success; none: success |
| dropped_argument | what the action does not take |

The unit of positions and lengths (`coordinates.UNITS`) and the order of a box without names are the caller's to say.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from qwenvl_agent.computer.actions import Action, ActionError
from qwenvl_agent.computer.dialect_text import NotLiteralError, numbers_of, split_thought, values_of
from qwenvl_agent.computer.keys import key_name
from qwenvl_agent.computer.tool import CLICKS, KINDS, NAME
from qwenvl_agent.coordinates import BOX_ORDERS, GRID, UNITS, Screen, centre, corners
from qwenvl_agent.schema import Turn

WHEEL_NOTCH_PX = 100
"""What a browser scrolls for one notch of a wheel, about; pyautogui and recorders count notches."""
DEFAULT_WAIT_SECONDS = 1
MAX_DEPTH = 5
MAX_ACTIONS = 50
"""Of one value."""
MAX_NUMBER = 1e9

KIND_NAMES = {
    **{name.replace("_", ""): name for name in KINDS},
    **dict.fromkeys(("click", "tap", "leftsingle", "clickelement", "mouseclick", "singleclick"), "left_click"),
    **dict.fromkeys(("dblclick", "leftdouble", "doubletap"), "double_click"),
    **dict.fromkeys(("rightsingle", "contextclick", "contextmenu"), "right_click"),
    **dict.fromkeys(("hover", "move", "moveto", "movemouse"), "mouse_move"),
    **dict.fromkeys(("drag", "dragto", "draganddrop", "swipe"), "left_click_drag"),
    **dict.fromkeys(("input", "write", "typewrite", "typetext", "inputtext", "entertext", "fill"), "type"),
    **dict.fromkeys(("select", "selectoption"), "type"),
    **dict.fromkeys(("press", "hotkey", "keypress", "presskey", "keyboard"), "key"),
    **dict.fromkeys(("vscroll", "scrolldown", "scrollup", "scrollleft", "scrollright", "mousewheel"), "scroll"),
    "sleep": "wait",
    **dict.fromkeys(("finish", "finished", "done", "stop", "complete", "completed", "exit"), "terminate"),
    **dict.fromkeys(("respond", "say"), "answer"),
    **dict.fromkeys(("pressenter", "enter"), "key"),
}
"""Names without case, underscores, hyphens and spaces. A list is chosen from by clicking it and typing the option."""
ACTION_KEYS = ("action", "action_type", "actionType", "type", "operation", "op", "name", "function")
POINT_KEYS = (
    *("coordinate", "coordinates", "position", "point", "point_2d", "location", "pos", "xy", "center", "centre"),
    *("start_box", "start_point", "start_coordinate", "from", "start"),
)
START_KEYS = ("start_coordinate", "start_box", "start_point", "from", "start", "from_coord")
END_KEYS = ("coordinate2", "end_coordinate", "end_box", "end_point", "to", "end", "to_coord")
BOX_KEYS = ("box", "bbox", "bbox_2d", "bounding_box", "rect")
CORNER_KEYS = ("x1", "y1", "x2", "y2")
VALUE_KEYS = {
    "text": ("text", "content", "value", "input", "message", "answer", "string"),
    "keys": ("keys", "key", "hotkey", "key_comb", "value", "text"),
    "pixels": ("pixels", "amount", "distance", "delta", "scroll_amount"),
    "time": ("time", "seconds", "duration", "value"),
    "status": ("status", "result", "goal_status"),
}
"""For each argument of the tool its names elsewhere, its own first."""
THOUGHT_KEYS = ("reasoning", "thought", "thoughts", "rationale")
REMARK_KEYS = ("target", "element", "description", "confidence", "label", "id", "step")
"""What annotators write beside an action; it is no argument of it."""
STATUS_NAMES = {
    **dict.fromkeys(("success", "successful", "done", "complete", "completed", "ok", "finished", "true"), "success"),
    **dict.fromkeys(("failure", "fail", "failed", "infeasible", "impossible", "error", "false"), "failure"),
}
DIRECTIONS = {"up": ("scroll", 1), "down": ("scroll", -1), "left": ("hscroll", -1), "right": ("hscroll", 1)}


@dataclass(frozen=True)
class Reading:
    """What was read: actions and perhaps a thought, or an error's name and message; `repairs` in order of first use.

    `written` are the positions as they stand there, also those that the unit places nowhere: [x, y], or the four numbers
    of a box without names, whose order is the caller's to say.
    """

    actions: tuple[Action, ...] = ()
    thought: str = ""
    repairs: tuple[str, ...] = ()
    error: str = ""
    message: str = ""
    written: tuple[tuple[float, ...], ...] = field(default=(), compare=False)


def read(value: object, screen: Screen, unit: str = "norm", *, clamp: bool = False, box_order: str = "xyxy") -> Reading:
    """Actions of any value: an object, a list, a text. Never raises on what people or models write.

    Errors are those of `actions`, and no_action, too_many_actions, not_literal (code with variables or expressions),
    outside_screen, empty_box (one whose second corner lies before its first).
    """
    reader = _Reader(screen, unit, clamp, box_order)
    try:
        actions = tuple(reader.read(value, 0))
    except ActionError as error:
        written = tuple(reader.written)
        return Reading(repairs=tuple(reader.repairs), error=error.name, message=str(error), written=written)
    except RecursionError:
        return Reading(error="no_action", message="nested too deep: no action is read; write one object")
    if len(actions) > MAX_ACTIONS:
        message = f"{len(actions)} actions are no decision of one step: none is taken; give at most {MAX_ACTIONS}"
        return Reading(error="too_many_actions", message=message)
    return Reading(actions, reader.thought, tuple(reader.repairs), written=tuple(reader.written))


def read_turn(turn: Turn, screen: Screen) -> Reading:
    """The actions of a model's turn, mended where need be: its calls, or what its free text holds."""
    calls = [{"name": call.name, "arguments": call.arguments} for call in turn.tool_calls]
    if not calls:
        return read(turn.text, screen, clamp=True)
    readings = [read(call["arguments"] if call["name"] == NAME else call, screen, clamp=True) for call in calls]
    failed = next((reading for reading in readings if reading.error), None)
    repairs = tuple(dict.fromkeys(name for reading in readings for name in reading.repairs))
    if failed:
        return replace(failed, repairs=repairs)
    return Reading(tuple(a for reading in readings for a in reading.actions), turn.thought, repairs)


def to_seed(action: Action, screen: Screen, thought: str = "") -> dict:
    """{"action": "click", "x": 300, "y": 80, "reasoning": ...} in whole pixels of the picture; `read` with "px" reads it."""
    value: dict = {"action": "click" if action.kind == "left_click" else action.kind}
    if action.x_px is not None:
        value["x"], value["y"] = screen.to_pixel(action.x_px, action.y_px)
    if action.scroll_px is not None:
        value["pixels"] = round(action.scroll_px)
    for name, item in (("text", action.text), ("keys", action.keys), ("time", action.seconds)):
        if item is not None:
            value[name] = list(item) if name == "keys" else item
    if action.status is not None:
        value["status"] = action.status
    return value | ({"reasoning": thought} if thought else {})


class _Reader:
    """Reads one value; collects the names of repairs on the way."""

    def __init__(self, screen: Screen, unit: str, clamp: bool, box_order: str):
        assert unit in UNITS and box_order in BOX_ORDERS, (unit, box_order)
        self.screen, self.unit, self.clamp, self.box_order = screen, unit, clamp, box_order
        self.is_grid = UNITS[unit] == GRID.cells
        self.repairs: list[str] = []
        self.written: list[tuple[float, ...]] = []
        self.thought = ""

    def note(self, name: str) -> None:
        if name not in self.repairs:
            self.repairs.append(name)

    def read(self, value: object, depth: int) -> list[Action]:
        if depth > MAX_DEPTH:
            raise ActionError("no_action", "nested too deep: no action is read; write one object")
        if isinstance(value, str):
            return self._read_text(value, depth)
        if isinstance(value, dict):
            return self._read_object(value, depth)
        if isinstance(value, list | tuple) and value:
            return self._read_list(list(value), depth)
        raise ActionError("no_action", f"{_short(value)} is no action: give an object with action and coordinate")

    def _read_text(self, text: str, depth: int) -> list[Action]:
        self.thought, rest = split_thought(text)
        try:
            values, name = values_of(rest)
        except NotLiteralError as error:
            code = " ".join(str(error).split())
            raise ActionError("not_literal", f"{code} is code to run, which is not done: write numbers out") from None
        if not values:
            raise ActionError("no_action", f"{_short(text)} holds no action: write one")
        self.note(name)
        return [action for value in values for action in self.read(value, depth + 1)]

    def _read_list(self, values: list, depth: int) -> list[Action]:
        if all(_is_number(v) for v in values) or (len(values) == 1 and _is_numbers(values[0])):
            self.note("missing_action")
            return [Action("left_click", **self._point(values))]
        if isinstance(values[0], str) and _plain(values[0]) in KIND_NAMES:
            self.note("list_action")
            return self._read_object(_named(values), depth)
        self.note("several_actions")
        return [action for value in values for action in self.read(value, depth + 1)]

    def _read_object(self, value: dict, depth: int) -> list[Action]:
        fields = {str(key): item for key, item in value.items() if item is not None}
        self.thought = next((str(fields[key]) for key in THOUGHT_KEYS if fields.get(key)), self.thought)
        for key in ("next_action", "action", "function"):
            if isinstance(fields.get(key), dict | list):
                self.note("nested_action")
                return self.read(fields[key], depth + 1)
        arguments = next(
            (fields[k] for k in ("arguments", "args", "parameters") if isinstance(fields.get(k), dict)), None
        )
        if arguments is not None:
            return self._read_call(fields, arguments, depth)
        kind, name = self._kind(fields)
        actions = self._build(kind, name, fields)
        if any(key not in (*THOUGHT_KEYS, *REMARK_KEYS) for key in fields):
            self.note("dropped_argument")
        return actions

    def _read_call(self, fields: dict, arguments: dict, depth: int) -> list[Action]:
        name = fields.get("name", fields.get("action"))
        if name == NAME:
            self.note("call_as_value")
            return self._read_object(arguments, depth + 1)
        self.note("name_as_action")
        return self._read_object({**arguments, "action": name}, depth + 1)

    def _kind(self, fields: dict) -> tuple[str, str]:
        """The action's kind, and its name as it was written, plain."""
        key = next((key for key in ACTION_KEYS if isinstance(fields.get(key), str)), None)
        if key is None:
            if not any(k in fields for k in (*POINT_KEYS, *BOX_KEYS, "x")):
                raise ActionError("no_action", f"{_short(fields)} names no action: write action")
            self.note("missing_action")
            return "left_click", "click"
        written = fields.pop(key)
        kind = written if written in KINDS else KIND_NAMES.get(_plain(written), "")
        if not kind:
            message = f"action is {_short(written)}, which does not exist: use one of {', '.join(KINDS)}"
            raise ActionError("unknown_action", message)
        if key != "action":
            self.note("renamed_action_key")
        if written != kind:
            self.note("renamed_action")
        return kind, _plain(written)

    def _build(self, kind: str, name: str, fields: dict) -> list[Action]:
        """The actions of one object; takes what it uses out of `fields`."""
        if kind in CLICKS:
            return self._clicks(kind, fields)
        if kind == "left_click_drag":
            return self._drag(fields)
        if kind == "mouse_move":
            return [Action(kind, **self._place(kind, fields))]
        if kind == "type":
            return self._type(fields)
        if kind == "key":
            return self._press(name, fields)
        if kind in ("scroll", "hscroll"):
            return [self._scroll(kind, name, fields)]
        if kind == "wait":
            return [self._wait(fields)]
        if kind == "terminate":
            return self._terminate(fields)
        return [Action(kind, text=self._text(kind, fields))]

    def _wait(self, fields: dict) -> Action:
        seconds = self._take(fields, "time")
        if seconds is None:
            self.note("default_time")
            seconds = DEFAULT_WAIT_SECONDS
        return Action("wait", seconds=self._number(seconds))

    def _clicks(self, kind: str, fields: dict) -> list[Action]:
        button, count = str(fields.pop("button", "left")).lower(), fields.pop("clicks", 1)
        if kind == "left_click" and (button, count) != ("left", 1):
            known = {("left", "2"): "double_click", ("left", "3"): "triple_click", ("right", "1"): "right_click"}
            kind = (known | {("middle", "1"): "middle_click"}).get((button, str(count)), "")
            if not kind:
                raise ActionError(
                    "unknown_action", f"{_short(count)} clicks of button {button[:20]!r}: no action does that"
                )
            self.note("renamed_action")
        return [Action(kind, **self._place(kind, fields))]

    def _drag(self, fields: dict) -> list[Action]:
        """A start becomes a move of the pointer, as the tool drags from where that is."""
        fields.pop("button", None)
        if all(key in fields for key in CORNER_KEYS):
            start, end = ([fields.pop(f"{axis}{i}") for axis in "xy"] for i in (1, 2))
        else:
            start, end = self._first(fields, START_KEYS), self._first(fields, END_KEYS)
            start = self._first(fields, POINT_KEYS) if start is None and end is not None else start
        place = self._place("left_click_drag", fields) if end is None else self._point(end)
        if start is None:
            return [Action("left_click_drag", **place)]
        self.note("drag_start")
        return [Action("mouse_move", **self._point(start)), Action("left_click_drag", **place)]

    def _type(self, fields: dict) -> list[Action]:
        place = self._place("type", fields, is_needed=False)
        submits = [fields.pop(key, False) for key in ("enter", "submit", "press_enter")]
        actions = [Action("type", text=self._text("type", fields))]
        if place:
            self.note("click_and_type")
            actions.insert(0, Action("left_click", **place))
        if True in submits:
            self.note("typed_enter")
            actions.append(Action("key", keys=("enter",)))
        return actions

    def _press(self, name: str, fields: dict) -> list[Action]:
        keys = ["enter"] if name in ("pressenter", "enter") else self._take(fields, "keys")
        presses = fields.pop("presses", 1)
        if keys is None:
            raise ActionError("missing_argument", "key lacks keys: nothing is pressed; give it")
        if isinstance(keys, str):
            self.note("key_combination")
            keys = [keys] if key_name(keys) else re.split(r"(?<=.)\s*[+\s]\s*", keys)
        if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
            raise ActionError("bad_argument", f"keys is {_short(keys)}: give a list of names")
        if len(keys) == 1 and not key_name(keys[0]) and len(parts := re.split(r"(?<=.)\+", keys[0])) > 1:
            self.note("key_combination")
            keys = parts
        if name == "press" and (len(keys) > 1 or presses != 1):  # pyautogui presses them one after another
            self.note("key_combination")
            if not isinstance(presses, int) or not 1 <= presses <= MAX_ACTIONS:
                raise ActionError("bad_argument", f"presses is {_short(presses)}: give 1 to {MAX_ACTIONS}")
            return [Action("key", keys=(key,)) for _ in range(presses) for key in keys]
        return [Action("key", keys=tuple(keys))]

    def _scroll(self, kind: str, name: str, fields: dict) -> Action:
        place = self._place(kind, fields, is_needed=False)
        notches = fields.pop("notches", None)
        if notches is not None:
            self.note("wheel_notches")
            return Action(kind, scroll_px=self._number(notches) * WHEEL_NOTCH_PX, **place)
        direction = str(fields.pop("direction", name.removeprefix("scroll"))).lower().strip()
        pixels = self._take(fields, "pixels")
        if direction not in DIRECTIONS:
            if pixels is None:
                raise ActionError("missing_argument", f"{kind} lacks pixels: nothing is done; give it")
            return Action(kind, scroll_px=self._length(self._number(pixels), kind), **place)
        self.note("scroll_direction")
        kind, sign = DIRECTIONS[direction]
        if pixels is None:
            self.note("default_scroll")
            return Action(kind, scroll_px=sign * GRID.decode_length(GRID.cells / 2, self._side(kind)), **place)
        return Action(kind, scroll_px=sign * abs(self._length(self._number(pixels), kind)), **place)

    def _terminate(self, fields: dict) -> list[Action]:
        status = self._take(fields, "status")
        text = next((fields.pop(key) for key in ("text", "content", "answer") if fields.get(key)), None)
        known = STATUS_NAMES.get(str(status).lower()) if status is not None else "success"
        if known is None:
            raise ActionError("bad_argument", f"status is {_short(status)}: use success or failure")
        if known != status:
            self.note("default_status" if status is None else "renamed_status")
        answer = [Action("answer", text=str(text))] if text is not None else []
        return [*answer, Action("terminate", status=known)]

    def _text(self, kind: str, fields: dict) -> str:
        text = self._take(fields, "text")
        if _is_number(text):
            self.note("number_as_text")
            text = str(text)
        if not isinstance(text, str):
            raise ActionError("missing_argument", f"{kind} lacks text: nothing is done; give it")
        return text

    def _take(self, fields: dict, argument: str) -> object:
        """An argument by any of its names, taken out; None if there is none."""
        return self._first(fields, VALUE_KEYS[argument])

    def _first(self, fields: dict, names: Sequence[str]) -> object:
        name = next((name for name in names if name in fields), None)
        if name is None:
            return None
        if name != names[0]:
            self.note("renamed_argument")
        return fields.pop(name)

    def _place(self, kind: str, fields: dict, is_needed: bool = True) -> dict:
        """{"x_px": ..., "y_px": ...} of an object's position, {} if it has none."""
        box = next((fields.pop(key) for key in BOX_KEYS if key in fields), None)
        if not any(fields.get(key) is None for key in CORNER_KEYS):
            box = {key: fields.pop(key) for key in CORNER_KEYS}
        value = self._first(fields, POINT_KEYS)
        if value is None and "x" in fields and "y" in fields:
            self.note("xy_keys")
            value = {key: fields.pop(key) for key in ("x", "y", "width", "height") if key in fields}
        value = box if value is None else value
        if value is not None:
            return self._point(value)
        if is_needed:
            raise ActionError("missing_argument", f"{kind} lacks coordinate: nothing is done; give it")
        return {}

    def _point(self, value: object) -> dict:
        """{"x_px": ..., "y_px": ...} of a position in any spelling; ActionError if it is none or not on the screen."""
        numbers = self._numbers(value)
        if len(numbers) == 4:
            numbers = self._centre(value, numbers)
        elif len(numbers) == 2:
            self.written.append(tuple(numbers))
        else:
            raise ActionError("bad_argument", f"position {_short(value)} has {len(numbers)} numbers: give [x, y]")
        if self.is_grid and any(isinstance(n, float) and not n.is_integer() for n in numbers):
            self.note("float_coordinate")
        x_px, y_px = self._to_px(*numbers)
        if self.screen.contains(x_px, y_px):
            return {"x_px": x_px, "y_px": y_px}
        if not self.clamp:
            raise ActionError(
                "outside_screen",
                f"position {_short(value)} ({self.unit}) is outside the screen of {self.screen.width_px}x"
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
                "empty_box", f"box {_short(value)} ({order}) is turned inside out: it has no middle; correct it"
            )
        return list(centre(box))

    def _to_px(self, x: float, y: float) -> tuple[float, float]:
        if self.is_grid and 0 <= x <= GRID.cells and 0 <= y <= GRID.cells:
            return self.screen.to_px(x, y)  # the grid's own end reads as its last line
        return self.screen.from_unit(x, y, self.unit)

    def _numbers(self, value: object) -> list[float]:
        if isinstance(value, str):
            self.note("coordinate_text")
            return [self._number(number) for number in numbers_of(value[:200])]
        if isinstance(value, dict):
            return self._numbers_by_name(value)
        if isinstance(value, list | tuple):
            if len(value) == 1 and isinstance(value[0], list | tuple):
                self.note("nested_list")
                return self._numbers(value[0])
            if len(value) == 2 and all(_is_numbers(v) and len(v) == 2 for v in value):  # two corners of a box
                value = [*value[0], *value[1]]
            return [self._number(number) for number in value]
        raise ActionError("bad_argument", f"position {_short(value)} is none: give [x, y]")

    def _numbers_by_name(self, value: dict) -> list[float]:
        for names in (CORNER_KEYS, ("left", "top", "right", "bottom")):
            if all(name in value for name in names):
                return [self._number(value[name]) for name in names]
        try:
            x, y = self._number(value["x"]), self._number(value["y"])
            if "width" in value and "height" in value:
                return [x, y, x + self._number(value["width"]), y + self._number(value["height"])]
        except KeyError:
            raise ActionError("bad_argument", f"position {_short(value)} has no x and y: give [x, y]") from None
        self.note("xy_keys")
        return [x, y]

    def _number(self, value: object) -> float:
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                raise ActionError("bad_argument", f"{_short(value)} is no number: give one") from None
            self.note("string_number")
            value = number
        if not _is_number(value) or not abs(value) <= MAX_NUMBER:
            raise ActionError("bad_argument", f"{_short(value)} is no number that could be used: give a finite one")
        return value

    def _side(self, kind: str) -> int:
        return self.screen.width_px if kind == "hscroll" else self.screen.height_px

    def _length(self, length: float, kind: str) -> float:
        whole = UNITS[self.unit]
        return length / whole * self._side(kind) if whole else length


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_is_number(item) for item in value)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _named(values: list) -> dict:
    """["click", 300, 80], ["click", [300, 80]] or ["type", "text"] as an object."""
    name, *rest = values
    kind = KIND_NAMES[_plain(name)]
    numbers = rest if rest and all(_is_number(v) for v in rest) else rest[0] if rest else None
    if numbers is None:
        return {"action": name}
    if KINDS[kind].needs != ("coordinate",):
        numbers = rest[0] if len(rest) == 1 else rest
    return {"action": name, KINDS[kind].needs[0]: numbers}
