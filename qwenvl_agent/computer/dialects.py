"""Actions as people and other models write them -> actions in pixels. Nothing is guessed silently.

What is the tool's own form is read without repairs; everything else is read under a name, to be counted. What others
call actions and arguments is one table, `synonyms`; a key that stands in no row of its action is an error.

| repair | what was read |
|---|---|
| json_text, python_literal, python_call, upper_case_call, bare_coordinates | text (`dialect_text` shows each); code is never run |
| nested_action | {"action": {...}}, {"next_action": {...}}, {"action": "click(300, 80)"} |
| call_as_value, name_as_action | {"name": "computer_use", "arguments": {...}}; {"name": "click", "arguments": {...}} |
| several_actions | a list of actions |
| list_action | ["click", 300, 80] |
| renamed_action_key | {"type": "click"}, {"action_type": "click"} |
| renamed_action | "click", "CLICK", "tap" for left_click, "write" for type ... |
| missing_action | a position alone: left_click |
| renamed_argument | another name of an argument: `value` for text, `position` for coordinate ... |
| xy_keys | x and y in place of coordinate |
| box_centre | four numbers x1, y1, x2, y2, or a box of x, y, width, height by name: the middle |
| coordinate_text, nested_list, string_number, float_coordinate | "(300, 80)"; [[300, 80]]; "300"; 300.5 on the grid |
| clamped | a position outside the screen, moved to its edge (only with `clamp`) |
| key_combination | "ctrl+a", "ctrl a" for ["ctrl", "a"]; several keys pressed one after another (`chords`) |
| scroll_direction, default_scroll | "down"; without a length: half a screen |
| wheel_notches, wheel_delta, scroll_pages | a wheel's notches as WHEEL_NOTCH_PX each; a browser's event, above 0 down; shares of the screen |
| default_time, time_unit | a wait without a time: DEFAULT_WAIT_SECONDS; in milliseconds, "2s" |
| click_and_type, typed_enter | type with a position; type with enter or submit: the key after it |
| drag_start | a drag with both ends: a mouse_move to the first before it |
| number_as_text | a number to type |
| renamed_status, default_status | "done" for success; none: success |
| dropped_argument | a remark, or how fast the action is done |

The unit of positions and lengths (`coordinates.UNITS`) and the order of a box without names are the caller's to say.
"""

import json
import re
from dataclasses import dataclass, field, replace

from qwenvl_agent.computer.actions import Action, ActionError
from qwenvl_agent.computer.chords import chords_of
from qwenvl_agent.computer.dialect_text import split_thought, values_of
from qwenvl_agent.computer.places import CORNERS, MAX_SCREENS, Places, are_numbers, is_number, is_pair, short
from qwenvl_agent.computer.synonyms import (
    ACTION_KEYS,
    ACTIONS,
    AMOUNTS,
    ARGUMENTS,
    BUTTONS,
    CALL_KEYS,
    CALL_TYPES,
    CLICKED,
    DIRECTION_WORDS,
    DIRECTIONS,
    NESTING_KEYS,
    NOTHING,
    OTHER_REMARKS,
    PLACE,
    REFERENCES,
    REMARKS,
    SECONDS,
    STATUSES,
    THOUGHTS,
    TOOLS,
    UNCLEAR,
    plain,
)
from qwenvl_agent.computer.tool import CLICKS, KINDS, NAME
from qwenvl_agent.coordinates import GRID, Screen
from qwenvl_agent.schema import Turn

WHEEL_NOTCH_PX = 100
"""What a browser scrolls for one notch of a wheel, about; pyautogui and recorders count notches."""
MAX_NOTCHES = 100
"""More are pixels, or Windows' 120 for each notch."""
DEFAULT_WAIT_SECONDS = 1
MAX_DEPTH = 5
MAX_ACTIONS = 50
"""Of one value."""
BOX_SLACK_PX = 1.0
TIME = re.compile(r"([0-9]+(?:\.[0-9]*)?)\s*([a-z]*)")
NAMES = {argument: tuple(plain(name) for name in names) for argument, names in ARGUMENTS.items()}
NESTING_NAMES = tuple(plain(name) for name in NESTING_KEYS)
CALL_NAMES = tuple(plain(name) for name in CALL_KEYS)
REMARK_NAMES = {plain(name) for name in REMARKS}
OTHER_REMARK_NAMES = {plain(name) for name in OTHER_REMARKS}
REFERENCE_NAMES = {plain(name) for name in REFERENCES}
OWN_CLICK = {kind: click for click, kind in CLICKED.items()}


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
    outside_screen, empty_box (one whose second corner lies before its first), unknown_unit (numbers of a unit or sign that
    is not said).
    """
    reader = _Reader(screen, unit, clamp, box_order)
    try:
        actions = tuple(reader.read(value, 0))
    except ActionError as error:
        written = tuple(reader.places.written)
        return Reading(repairs=tuple(reader.repairs), error=error.name, message=str(error), written=written)
    except RecursionError:
        return Reading(error="no_action", message="nested too deep: no action is read; write one object")
    if len(actions) > MAX_ACTIONS:
        message = f"{len(actions)} actions are no decision of one step: none is taken; give at most {MAX_ACTIONS}"
        return Reading(error="too_many_actions", message=message)
    return Reading(actions, reader.thought, tuple(reader.repairs), written=tuple(reader.places.written))


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


class Fields:
    """The keys of one object, compared by `plain`. What is read is taken out: what is left was not understood."""

    def __init__(self, value: dict):
        self.values: dict[str, object] = {}
        self.written: dict[str, str] = {}
        for key, item in value.items():
            name = plain(str(key))
            if item is None:
                continue
            if name in self.values:
                raise ActionError("extra_argument", f"{short(key)} is there twice: which holds is unknown; keep one")
            self.values[name], self.written[name] = item, str(key)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def has(self, argument: str) -> bool:
        return any(name in self.values for name in NAMES[argument])

    def take(self, argument: str) -> tuple[object, str]:
        """(value, name as written) of an argument by the first of its names that is there; (None, "") if none is."""
        for name in NAMES[argument]:
            if name in self.values:
                return self.values.pop(name), self.written[name]
        return None, ""


class _Reader:
    """Reads one value; collects the names of repairs on the way."""

    def __init__(self, screen: Screen, unit: str, clamp: bool, box_order: str):
        self.places = Places(screen, unit, clamp, box_order, self.note)
        self.repairs: list[str] = []
        self.thought = ""

    def note(self, name: str) -> None:
        if name not in self.repairs:
            self.repairs.append(name)

    # values, down to one object

    def read(self, value: object, depth: int) -> list[Action]:
        if depth > MAX_DEPTH:
            raise ActionError("no_action", "nested too deep: no action is read; write one object")
        if isinstance(value, str):
            return self._read_text(value, depth)
        if isinstance(value, dict):
            return self._read_object(value, depth)
        if isinstance(value, list | tuple) and value:
            return self._read_list(list(value), depth)
        raise ActionError("no_action", f"{short(value)} is no action: give an object with action and coordinate")

    def _read_text(self, text: str, depth: int) -> list[Action]:
        thought, rest = split_thought(text)
        self.thought = thought or self.thought
        values, name = values_of(rest)
        if not values:
            raise ActionError("no_action", f"{short(text)} holds no action: write one")
        self.note(name)
        return [action for value in values for action in self.read(value, depth + 1)]

    def _read_list(self, values: list, depth: int) -> list[Action]:
        if all(is_number(v) for v in values) or (len(values) == 1 and are_numbers(values[0])):
            self._note_missing_action()
            return [Action("left_click", **self.places.point(values))]
        if isinstance(values[0], str) and plain(values[0]) in ACTIONS:
            self.note("list_action")
            return self._read_object(named(values), depth)
        self.note("several_actions")
        return [action for value in values for action in self.read(value, depth + 1)]

    def _note_missing_action(self) -> None:
        if "missing_action" in self.repairs:
            raise ActionError(
                "no_action", "several positions without an action: which is meant is unknown; write action"
            )
        self.note("missing_action")

    def _read_object(self, value: dict, depth: int) -> list[Action]:
        fields = Fields(value)
        self._take_thought(fields)
        for key in NESTING_NAMES:
            if isinstance(nested := fields.values.get(key), dict | list):
                self.note("nested_action")
                return self._read_nested(fields, key, nested, depth)
        for key in CALL_NAMES:
            if key in fields and (arguments := arguments_of(fields.values[key])) is not None:
                del fields.values[key]
                return self._read_call(fields, arguments, depth)
        written = fields.values.get("action")
        if isinstance(written, str) and "(" in written:
            self.note("nested_action")
            return self._read_nested(fields, "action", written, depth)
        kind, name, implied = self._kind(fields)
        actions = self._build(kind, name, implied, fields)
        self._check_references(kind, actions, fields)
        self._check_rest(kind, fields)
        return actions

    def _take_thought(self, fields: Fields) -> None:
        thoughts = [fields.values.pop(key) for key in THOUGHTS if key in fields]
        self.thought = next((str(thought) for thought in thoughts if thought), self.thought)

    def _read_nested(self, fields: Fields, key: str, nested: object, depth: int) -> list[Action]:
        del fields.values[key]
        self._check_rest("an object with an action in it", fields)
        return self.read(nested, depth + 1)

    def _read_call(self, fields: Fields, arguments: dict, depth: int) -> list[Action]:
        names = [key for key in ("name", *ACTION_KEYS) if isinstance(fields.values.get(plain(key)), str)]
        names = [key for key in names if fields.values[plain(key)] not in CALL_TYPES] or names
        if not names:
            raise ActionError("no_action", f"{short(arguments)} are arguments of no action: write name")
        name = str(fields.values.pop(plain(names[0])))
        self._check_rest(short(name), fields)
        if name in TOOLS:
            self.note("call_as_value")
            return self._read_object(arguments, depth + 1)
        self.note("name_as_action")
        if arguments.get("action", name) != name:
            raise ActionError(
                "extra_argument", f"{name[:60]!r} has an action of its own: which holds is unknown; keep one"
            )
        return self._read_object({**arguments, "action": name}, depth + 1)

    def _kind(self, fields: Fields) -> tuple[str, str, dict]:
        """The action's kind, its name as it was written, plain, and what that name implies."""
        key = next((key for key in ACTION_KEYS if isinstance(fields.values.get(plain(key)), str)), None)
        if key is None:
            if not any(fields.has(argument) for argument in (*PLACE, "start")):
                raise ActionError("no_action", f"{short(fields.values)} names no action: write action")
            self._note_missing_action()
            return "left_click", "click", {}
        written = str(fields.values.pop(plain(key)))
        kind, implied = ACTIONS.get(plain(written), ("", {}))
        if not kind:
            message = f"action is {short(written)}, which does not exist: use one of {', '.join(KINDS)}"
            raise ActionError("unknown_action", message)
        if key != "action":
            self.note("renamed_action_key")
        if written != kind:
            self.note("renamed_action")
        return kind, plain(written), implied

    def _check_rest(self, kind: str, fields: Fields) -> None:
        """ActionError for a key that was not read and is no remark: whatever it says would be lost."""
        for name, item in fields.values.items():
            is_scalar = isinstance(item, str | int | float)
            is_empty = (item is False and kind != "terminate") or (
                isinstance(item, str | list | tuple | dict) and not item
            )
            is_empty = is_empty or (isinstance(item, str) and item.lower() in NOTHING)
            if is_empty or (name in REMARK_NAMES and is_scalar):
                continue
            if name in ("type", "status") and isinstance(item, str) and item in CALL_TYPES:
                continue
            if not is_scalar or name not in OTHER_REMARK_NAMES:
                raise self._unread(kind, fields.written[name], name, item)
            self.note("dropped_argument")

    def _check_references(self, kind: str, actions: list[Action], fields: Fields) -> None:
        """ActionError for an element that is named by a number or a path in a page, where nothing else says the place."""
        named = REFERENCE_NAMES & fields.values.keys()
        if named and not any(action.x_px is not None for action in actions):
            name = min(named)
            raise self._unread(kind, fields.written[name], name, fields.values[name])

    def _unread(self, kind: str, written: str, name: str, item: object) -> ActionError:
        hint = UNCLEAR.get(kind, {}).get(name)
        if hint:
            return ActionError("unknown_unit", f"{written} {short(item)} of {kind}: {hint}")
        return ActionError(
            "extra_argument", f"{kind} takes no {written[:60]!r} ({short(item)}): it would be lost; leave it out"
        )

    # one action

    def _build(self, kind: str, name: str, implied: dict, fields: Fields) -> list[Action]:
        """The actions of one object; takes what it uses out of `fields`."""
        if kind in CLICKS:
            return self._clicks(kind, fields)
        if kind == "left_click_drag":
            return self._drag(fields)
        if kind == "mouse_move":
            place = self._place(kind, fields)
            self._drop(fields, "speed")
            return [Action(kind, **place)]
        if kind == "type":
            return self._type(fields)
        if kind == "key":
            return self._press(name, implied, fields)
        if kind in ("scroll", "hscroll"):
            return [self._scroll(kind, implied, fields)]
        if kind == "wait":
            return [self._wait(fields)]
        if kind == "terminate":
            return self._terminate(implied, fields)
        return [Action(kind, text=self._text(kind, fields))]

    def _take(self, fields: Fields, argument: str) -> object:
        """An argument by any of its names, taken out; None if there is none."""
        value, written = fields.take(argument)
        if written and written != ARGUMENTS[argument][0]:
            self.note("renamed_argument")
        return value

    def _drop(self, fields: Fields, argument: str) -> None:
        if fields.take(argument)[1]:
            self.note("dropped_argument")

    def _clicks(self, kind: str, fields: Fields) -> list[Action]:
        button, count = self._take(fields, "button"), self._take(fields, "clicks")
        own_button, own_count = OWN_CLICK[kind]
        made = (
            own_button if button is None else BUTTONS.get(plain(str(button)), str(button)),
            own_count if count is None else str(count),
        )
        clicked = CLICKED.get(made, "")
        if not clicked or (kind != "left_click" and clicked != kind):
            raise ActionError(
                "unknown_action", f"{kind} of button {made[0][:20]!r}, {made[1][:20]} times: no action does that"
            )
        if clicked != kind:
            self.note("renamed_action")
        return [Action(clicked, **self._place(kind, fields))]

    def _drag(self, fields: Fields) -> list[Action]:
        """A start becomes a move of the pointer, as the tool drags from where that is."""
        button = self._take(fields, "button")
        if button is not None and BUTTONS.get(plain(str(button))) != "left":
            raise ActionError("unknown_action", f"a drag with button {short(button)}: no action does that")
        self._drop(fields, "speed")
        start, end = self._ends(fields)
        place = self._place("left_click_drag", fields) if end is None else self.places.point(end)
        if start is None:
            return [Action("left_click_drag", **place)]
        self.note("drag_start")
        return [Action("mouse_move", **self.places.point(start)), Action("left_click_drag", **place)]

    def _ends(self, fields: Fields) -> tuple[object, object]:
        """(start, end) of a drag, None for what is not given by a name that only it can have."""
        if all(name in fields for name in CORNERS):
            x1, y1, x2, y2 = (fields.values.pop(name) for name in CORNERS)
            return [x1, y1], [x2, y2]
        path = self._take(fields, "path")
        if path is not None:
            if not isinstance(path, list | tuple) or len(path) != 2:
                raise ActionError(
                    "bad_argument", f"path is {short(path)}: a drag goes straight; give its first and its last point"
                )
            return path[0], path[1]
        start, end = self._end(fields, "start"), self._end(fields, "end")
        if start is None and end is not None:
            return self._point_value(fields), end
        points = self._points(fields) if start is None else None
        return points or (start, end)

    def _points(self, fields: Fields) -> tuple[object, object] | None:
        """Both ends, where they stand as one position."""
        name = next((name for name in NAMES["coordinate"] if name in fields), "")
        value = fields.values.get(name)
        if isinstance(value, list | tuple) and len(value) == 2 and not are_numbers(value):
            self._take(fields, "coordinate")
            return value[0], value[1]
        if isinstance(value, list | tuple) and len(value) == 4:
            raise ActionError(
                "bad_argument", f"{name} {short(value)} of a drag: two ends or a box is not said; write path"
            )
        return None

    def _end(self, fields: Fields, which: str) -> object:
        names = (f"x_{which}", f"y_{which}")
        if all(fields.has(name) for name in names):
            self.note("xy_keys")
            return [fields.take(name)[0] for name in names]
        return self._take(fields, which)

    def _type(self, fields: Fields) -> list[Action]:
        submits = self._take(fields, "submit")
        if submits not in (None, True, False) or isinstance(submits, int) and not isinstance(submits, bool):
            raise ActionError("bad_argument", f"enter is {short(submits)}: give true or false")
        place = self._place("type", fields, is_needed=False)
        actions = [Action("type", text=self._text("type", fields))]
        if place:
            self.note("click_and_type")
            actions.insert(0, Action("left_click", **place))
        if submits:
            self.note("typed_enter")
            actions.append(Action("key", keys=("enter",)))
        return actions

    def _press(self, name: str, implied: dict, fields: Fields) -> list[Action]:
        keys = implied.get("keys") or self._take(fields, "keys")
        presses, held = self._take(fields, "presses"), self._take(fields, "modifiers")
        if keys is None:
            raise ActionError("missing_argument", "key lacks keys: nothing is pressed; give it")
        if isinstance(keys, str):
            self.note("key_combination")
        chords = chords_of(keys, name)
        if held:
            if len(chords) > 1:
                raise ActionError("bad_argument", f"keys {short(keys)} with {short(held)} held: write each combination")
            self.note("key_combination")
            chords = [(*chord, *chords[0]) for chord in chords_of(held, "hotkey")]
        if presses is None:
            presses = 1
        if type(presses) is not int or not 1 <= presses <= MAX_ACTIONS:
            raise ActionError("bad_argument", f"presses is {short(presses)}: give 1 to {MAX_ACTIONS}")
        if len(chords) > 1 or presses > 1 or (isinstance(keys, list) and len(keys) != len(chords[0])):
            self.note("key_combination")
        return [Action("key", keys=chord) for _ in range(presses) for chord in chords]

    def _scroll(self, kind: str, implied: dict, fields: Fields) -> Action:
        place = self._place(kind, fields, is_needed=False)
        direction = self._direction(implied, fields)
        amount = self._amount(fields)
        unclear = next((name for name in UNCLEAR[kind] if name in fields), None)
        if unclear:
            raise self._unread(kind, fields.written[unclear], unclear, fields.values[unclear])
        if direction:
            self.note("scroll_direction")
            kind = self._turned(kind, direction)
        if amount is None:
            if not direction:
                raise ActionError("missing_argument", f"{kind} lacks pixels: nothing is done; give it")
            self.note("default_scroll")
            length = GRID.decode_length(GRID.cells / 2, self.places.side(kind))
            return Action(kind, scroll_px=DIRECTIONS[direction][1] * length, **place)
        kind, length = self._scrolled(kind, *amount, direction)
        return Action(kind, scroll_px=length, **place)

    def _direction(self, implied: dict, fields: Fields) -> str:
        """up, down, left or right; "" if none is given. A number in such a place is no direction."""
        given = [implied["direction"]] if implied else []
        for name in NAMES["direction"]:
            if isinstance(fields.values.get(name), str):
                word = DIRECTION_WORDS.get(plain(str(fields.values[name])))
                if word is None:
                    raise ActionError(
                        "bad_argument", f"direction is {short(fields.values[name])}: use one of {', '.join(DIRECTIONS)}"
                    )
                del fields.values[name]
                given.append(word)
        if len(set(given)) > 1:
            raise ActionError("bad_argument", f"a scroll {' and '.join(given)}: which holds is unknown; keep one")
        return given[0] if given else ""

    def _turned(self, kind: str, direction: str) -> str:
        turned = DIRECTIONS[direction][0]
        if kind == "hscroll" != turned:
            raise ActionError("bad_argument", f"hscroll {direction}: it goes left or right; write scroll")
        return turned

    def _amount(self, fields: Fields) -> tuple[str, object] | None:
        """(argument, value) of how far a scroll goes; of a wheel event's two sides the one that turns."""
        given = {argument: self._take(fields, argument) for argument in AMOUNTS if fields.has(argument)}
        if set(given) == {"wheel_x", "wheel_y"}:
            still = next((name for name in ("wheel_x", "wheel_y") if given[name] == 0), "")
            given.pop(still, None)
        if len(given) > 1:
            raise ActionError("bad_argument", f"a scroll by {' and '.join(given)}: one goes one way; give one of them")
        return next(iter(given.items()), None)

    def _scrolled(self, kind: str, argument: str, value: object, direction: str) -> tuple[str, float]:
        """(kind, length in pixels, above 0 up or right)."""
        length = self._signed(kind, argument, value)
        if argument == "steps" and not direction:
            raise ActionError(
                "unknown_unit", f"a scroll of {short(value)} steps: up or down is not said; give direction"
            )
        if argument.startswith("wheel"):
            self.note("wheel_delta")
            turned = "hscroll" if argument == "wheel_x" else "scroll"
            if turned != kind and (direction or kind == "hscroll"):
                raise ActionError("bad_argument", f"{kind} by {argument}: which way it goes is unknown; correct one")
            kind, length = turned, length if turned == "hscroll" else -length
        if not direction:
            return kind, length
        sign = DIRECTIONS[direction][1]
        if length * sign < 0 and (length < 0 or argument.startswith("wheel")):
            raise ActionError(
                "bad_argument",
                f"a scroll {direction} by {short(value)}, which goes the other way: correct one of the two",
            )
        return kind, sign * abs(length)

    def _signed(self, kind: str, argument: str, value: object) -> float:
        if argument in ("pixels", "wheel_x", "wheel_y"):
            side = {"wheel_x": "hscroll", "wheel_y": "scroll"}.get(argument, kind)
            return self.places.length(value, side)
        number = self.places.number(value)
        if argument == "pages":
            self.note("scroll_pages")
            if abs(number) > MAX_SCREENS:
                raise ActionError("unknown_unit", f"a scroll of {number} pages: no page is so long; correct its unit")
            return number * self.places.side(kind)
        self.note("wheel_notches")
        if number != int(number) or abs(number) > MAX_NOTCHES:
            raise ActionError(
                "unknown_unit", f"{number} notches of a wheel: no wheel is turned so; if these are others, write pixels"
            )
        return number * WHEEL_NOTCH_PX

    def _wait(self, fields: Fields) -> Action:
        unit, value = "s", self._take(fields, "time")
        if value is None and fields.has("milliseconds"):
            unit, value = "ms", fields.take("milliseconds")[0]
        if value is None:
            self.note("default_time")
            return Action("wait", seconds=DEFAULT_WAIT_SECONDS)
        return Action("wait", seconds=self._seconds(value, unit))

    def _seconds(self, value: object, unit: str) -> float:
        timed = TIME.fullmatch(value[:40].lower().strip()) if isinstance(value, str) else None
        if timed and timed[2]:
            self.note("time_unit")
            return float(timed[1]) * self._unit(timed[2])
        if unit != "s":
            self.note("time_unit")
            return self.places.number(value) * self._unit(unit)
        return self.places.number(value)

    def _unit(self, unit: str) -> float:
        if unit not in SECONDS:
            raise ActionError("bad_argument", f"time in {unit[:20]!r}: give seconds")
        return SECONDS[unit]

    def _terminate(self, implied: dict, fields: Fields) -> list[Action]:
        given = self._take(fields, "status")
        status = implied.get("status") if given is None else given
        text = self._take(fields, "text")
        known = STATUSES.get(str(status).lower()) if status is not None else "success"
        if known is None:
            raise ActionError("bad_argument", f"status is {short(status)}: use success or failure")
        if known != implied.get("status", known):
            raise ActionError("bad_argument", f"status is {short(status)} of an action that says it failed: keep one")
        if known != status:
            self.note("default_status" if status is None else "renamed_status")
        if text is not None and not isinstance(text, str):
            raise ActionError("bad_argument", f"text is {short(text)}: give a text")
        return [*([Action("answer", text=text)] if text else []), Action("terminate", status=known)]

    def _text(self, kind: str, fields: Fields) -> str:
        text = self._take(fields, "text")
        if text is None:
            raise ActionError("missing_argument", f"{kind} lacks text: nothing is done; give it")
        if is_number(text):
            self.note("number_as_text")
            text = str(text)
        if not isinstance(text, str):
            raise ActionError("bad_argument", f"text is {short(text)}: give a text")
        return text

    def _place(self, kind: str, fields: Fields, is_needed: bool = True) -> dict:
        """{"x_px": ..., "y_px": ...} of an object's position, {} if it has none."""
        box = fields.take("box")[0]
        if all(name in fields for name in CORNERS):
            box = {name: fields.values.pop(name) for name in CORNERS}
        value = self._point_value(fields)
        if value is not None:
            place = self.places.point(value)
            if box is not None:
                self._check_inside(place, box)
            return place
        if box is not None:
            return self.places.point(box, is_box=True)
        if is_needed:
            raise ActionError("missing_argument", f"{kind} lacks coordinate: nothing is done; give it")
        return {}

    def _point_value(self, fields: Fields) -> object:
        value = self._take(fields, "coordinate")
        if value is None and fields.has("start"):
            self.note("renamed_argument")
            value = fields.take("start")[0]
        if value is None and "x" in fields and "y" in fields:
            self.note("xy_keys")
            value = {axis: fields.values.pop(axis) for axis in "xy"}
        return value

    def _check_inside(self, place: dict, box: object) -> None:
        """ActionError if an action lies outside of its own box: then one of the two has another unit or order."""
        repairs, written = list(self.repairs), list(self.places.written)
        numbers = self.places.box_px(box)
        self.repairs[:], self.places.written[:] = repairs, written
        if numbers is None:
            return
        x1, y1, x2, y2 = numbers
        if not (x1 - BOX_SLACK_PX <= place["x_px"] <= x2 + BOX_SLACK_PX) or not (
            y1 - BOX_SLACK_PX <= place["y_px"] <= y2 + BOX_SLACK_PX
        ):
            raise ActionError(
                "bad_argument", f"the position lies outside of its box {short(box)}: correct one of the two"
            )


def arguments_of(value: object) -> dict | None:
    """The object that holds a call's arguments, perhaps as JSON text; None if this is none."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def named(values: list) -> dict:
    """["click", 300, 80], ["click", [300, 80]], ["drag", [1, 2], [3, 4]] or ["type", "text"] as an object."""
    name, *rest = values
    kind = ACTIONS[plain(name)][0]
    argument = next(iter(KINDS[kind].needs))
    if not rest:
        return {"action": name}
    if kind == "left_click_drag" and len(rest) == 2 and is_pair(rest[0]) and is_pair(rest[1]):
        return {"action": name, "path": rest}
    if len(rest) > 1 and not (argument in ("coordinate", "keys") and len({type(v) is str for v in rest}) == 1):
        raise ActionError("bad_argument", f"{name} with {short(rest)}: which is which is unknown; write an object")
    return {"action": name, argument: rest[0] if len(rest) == 1 else rest}
