"""What people and models write for actions is right or refused, never another action; and the table of synonyms."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_agent.computer import Action, dialects
from qwenvl_agent.computer.synonyms import (
    ACTIONS,
    ARGUMENTS,
    BUTTONS,
    CLICKED,
    DIRECTION_WORDS,
    DIRECTIONS,
    KINDS,
    OTHER_REMARKS,
    REFERENCES,
    REMARKS,
    SECONDS,
    TAKES,
    UNCLEAR,
    plain,
)
from qwenvl_agent.computer.tool import CLICKS
from qwenvl_agent.coordinates import GRID, UNITS, Screen

PAGE = Screen(1000, 500)
ENTER = Action("key", keys=("enter",))


def click(x: float, y: float, kind: str = "left_click") -> list[Action]:
    return [Action.click(x, y, kind)]


def key(*keys: str) -> Action:
    return Action("key", keys=keys)


def scroll(length: float, kind: str = "scroll", **place: float) -> list[Action]:
    return [Action(kind, scroll_px=length, **place)]


def drag(x1: float, y1: float, x2: float, y2: float) -> list[Action]:
    return [Action("mouse_move", x_px=x1, y_px=y1), Action("left_click_drag", x_px=x2, y_px=y2)]


AT = {"x_px": 300, "y_px": 80}
READ_PX = [
    # how far and which way: each source has its own sign and unit
    ({"action": "scroll", "coordinate": [300, 80], "scroll_direction": "down", "scroll_amount": 5}, scroll(-500, **AT)),
    ({"action": "scroll", "coordinate": [300, 80], "scroll_direction": "right", "scroll_amount": 2}, scroll(200, "hscroll", **AT)),
    ({"type": "scroll", "x": 300, "y": 80, "scroll_x": 0, "scroll_y": 300}, scroll(-300, **AT)),
    ({"type": "scroll", "x": 300, "y": 80, "scrollX": -40, "scrollY": 0}, scroll(-40, "hscroll", **AT)),
    ({"action": "scroll", "deltaY": -120}, scroll(120)),
    ({"action": "scroll", "direction": "down", "deltaY": 120}, scroll(-120)),
    ({"action": "scroll", "direction": "down", "pixels": -120}, scroll(-120)),
    ({"action": "scroll", "direction": "downwards", "notches": 3}, scroll(-300)),
    ({"action": "scroll", "clicks": -3}, scroll(-300)),
    ({"action": "scroll", "direction": "up", "pages": 0.5}, scroll(250)),
    ({"action": "SCROLL", "value": "left", "position": [300, 80]}, scroll(-500, "hscroll", **AT)),
    ("pyautogui.scroll(-3, x=300, y=80)", scroll(-300, **AT)),
    ("pyautogui.scroll(page=-0.25)", scroll(-125)),
    ("pyautogui.hscroll(page=0.5)", scroll(500, "hscroll")),
    ("SCROLL_DOWN(box=[[280,70,320,90]], element_type='Scroll', step_count=5)", scroll(-500, **AT)),
    ("scroll(direction='down', point='<point>300 80</point>')", scroll(-250, **AT)),
    # both ends of a drag
    ({"type": "drag", "path": [{"x": 10, "y": 20}, {"x": 30, "y": 40}]}, drag(10, 20, 30, 40)),
    ({"action": "drag", "path": [[10, 20], [30, 40]]}, drag(10, 20, 30, 40)),
    ({"action": "drag", "startX": 10, "startY": 20, "endX": 30, "endY": 40}, drag(10, 20, 30, 40)),
    ({"action": "drag", "from_x": 10, "from_y": 20, "to_x": 30, "to_y": 40}, drag(10, 20, 30, 40)),
    ({"action": "drag", "x": 10, "y": 20, "x2": 30, "y2": 40}, drag(10, 20, 30, 40)),
    ({"action": "drag", "from": {"x": 10, "y": 20}, "to": {"x": 30, "y": 40}}, drag(10, 20, 30, 40)),
    ({"action": "SWIPE", "position": [[10, 20], [30, 40]], "value": None}, drag(10, 20, 30, 40)),
    ({"action": "swipe", "coordinate": [10, 20], "coordinate2": [30, 40], "time": 0.5}, drag(10, 20, 30, 40)),
    (["drag", [10, 20], [30, 40]], drag(10, 20, 30, 40)),
    ("drag(start_box='(10,20)', end_box='(30,40)')", drag(10, 20, 30, 40)),
    ("swipe([10, 20], [30, 40])", drag(10, 20, 30, 40)),
    ("pyautogui.moveTo(10, 20); pyautogui.dragTo(30, 40, 2, button='left')", drag(10, 20, 30, 40)),
    ("actions:\nDRAG <point>[[10,20]]</point> <point>[[30,40]]</point>", drag(10, 20, 30, 40)),
    ({"name": "drag_and_drop", "args": {"x": 10, "y": 20, "destination_x": 30, "destination_y": 40}}, drag(10, 20, 30, 40)),
    # keys together, and one after another
    ({"action": "press", "key": "Control+A"}, [key("ctrl", "a")]),
    ({"action": "key", "text": "ctrl shift t"}, [key("ctrl", "shift", "t")]),
    ({"action": "key", "text": "ctrl + a"}, [key("ctrl", "a")]),
    ({"action": "key", "text": "ctrl++"}, [key("ctrl", "+")]),
    ({"action": "key", "text": "ctrl+minus"}, [key("ctrl", "-")]),
    ({"action": "key", "text": "Down Down"}, [key("down"), key("down")]),
    ({"action": "key", "text": "ctrl+a BackSpace"}, [key("ctrl", "a"), key("backspace")]),
    ({"action": "key", "keys": ["ctrl+a", "delete"]}, [key("ctrl", "a"), key("delete")]),
    ({"action": "key", "key": "a", "modifiers": ["Control"]}, [key("ctrl", "a")]),
    ({"action": "hotkey", "keys": ["ctrl", "c"], "presses": 2}, [key("ctrl", "c")] * 2),
    ({"type": "keypress", "keys": ["CTRL", "A"]}, [key("ctrl", "a")]),
    ("pyautogui.press(['tab', 'enter'])", [key("tab"), ENTER]),
    ("pyautogui.press(keys=['backspace']*3)", [key("backspace")] * 3),
    ("hotkey(key='ctrl c')", [key("ctrl", "c")]),
    ("KEY_PRESS(key='F11')", [key("f11")]),
    # buttons and counts
    ({"type": "click", "button": "wheel", "x": 300, "y": 80}, click(300, 80, "middle_click")),
    ({"type": "click", "button": "left", "x": 300, "y": 80, "keys": None}, click(300, 80)),
    ({"type": "click", "button": "left", "x": 300, "y": 80, "keys": []}, click(300, 80)),
    ({"action": "click", "x": 300, "y": 80, "num_clicks": 2}, click(300, 80, "double_click")),
    ({"action": "double_click", "x": 300, "y": 80, "button": "left"}, click(300, 80, "double_click")),
    ("pyautogui.click((300, 80))", click(300, 80)),
    ("pyautogui.doubleClick(x=300, y=80, interval=0.1)", click(300, 80, "double_click")),
    ({"action": "click", "coordinate": [300, 80], "bbox": [280, 70, 320, 90]}, click(300, 80)),
    # how long
    ({"action": "wait", "ms": 500}, [Action("wait", seconds=0.5)]),
    ({"action": "wait", "duration": "2s"}, [Action("wait", seconds=2)]),
    ({"action": "wait", "time": "1500 ms"}, [Action("wait", seconds=1.5)]),
    ("wait(duration=3)", [Action("wait", seconds=3)]),
    # calls in calls
    ({"name": "mobile_use", "arguments": {"action": "click", "coordinate": [300, 80]}}, click(300, 80)),
    ({"type": "tool_use", "id": "t", "name": "computer", "input": {"action": "left_click", "coordinate": [300, 80]}}, click(300, 80)),
    ({"type": "computer_call", "call_id": "c", "status": "completed", "action": {"type": "click", "x": 300, "y": 80}}, click(300, 80)),
    ({"type": "function", "function": {"name": "click", "arguments": '{"x": 300, "y": 80}'}}, click(300, 80)),
    ({"action_type": "CLICK", "parameters": {"x": 300, "y": 80}}, click(300, 80)),
    ({"name": "click", "kwargs": {"x": 300, "y": 80}}, click(300, 80)),
    ({"thought": "t", "action": "pyautogui.click(300, 80)"}, click(300, 80)),
    ({"thought": "t", "actions": [{"action": "click", "x": 300, "y": 80}, {"action": "press_enter"}]}, [*click(300, 80), ENTER]),
    ("computer_use({\"action\": \"left_click\", \"coordinate\": [300, 80]})", click(300, 80)),
    ("type({'text': 'abc', 'x': 300, 'y': 80})", [*click(300, 80), Action("type", text="abc")]),
    ("{'action': 'CLICK', 'position': [300, 80]}, {'action': 'ENTER', 'value': None}", [*click(300, 80), ENTER]),
    ("```json\n{\"action\": \"click\", \"x\": 300, \"y\": 80}\n```\nthen\n```json\n{\"action\": \"press_enter\"}\n```", [*click(300, 80), ENTER]),
    ("Grounded Operation: CLICK(box=[[280, 70, 320, 90]], element_info='Save')\n<<op>>", click(300, 80)),
    ("CLICK(box=[[080,070,520,090]], element_info='007')", click(300, 80)),
    ("Action: click(300, 80)\nAction: type(content='abc')", [*click(300, 80), Action("type", text="abc")]),
    ({"action": "click", "point": [300, 80], "input_text": "no input text"}, click(300, 80)),
    ("FAIL", [Action("terminate", status="failure")]),
    ({"action": "done", "success": False}, [Action("terminate", status="failure")]),
    ({"action": "done", "success": True}, [Action("terminate", status="success")]),
    ({"action": "finish", "message": "three"}, [Action("answer", text="three"), Action("terminate", status="success")]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), READ_PX, ids=[str(value)[:50] for value, _ in READ_PX])
def test_what_others_write_is_read_as_they_mean_it(value, expected):
    reading = dialects.read(value, PAGE, "px")
    assert (reading.error, reading.message, list(reading.actions)) == ("", "", expected)


REFUSED = [
    ({"action": "fail", "status": "success"}, "px", "bad_argument"),
    ({"action": "done", "completed": False}, "px", "extra_argument"),
    ({"action": "type", "text": "abc", "index": 3}, "px", "extra_argument"),
    # a unit or a sign that is not said
    ({"action": "scroll", "direction": "down", "amount": 3}, "px", "unknown_unit"),
    ({"action": "scroll", "amount": -300}, "px", "unknown_unit"),
    ({"action": "scroll", "dx": 0, "dy": 300}, "px", "unknown_unit"),
    ({"action": "scroll", "delta": 120}, "px", "unknown_unit"),
    ({"action": "scroll", "scroll_amount": 5}, "px", "unknown_unit"),
    ({"action": "scroll", "direction": "down", "scroll_amount": 300}, "px", "unknown_unit"),
    ("pyautogui.scroll(0.13)", "fraction", "unknown_unit"),
    ("pyautogui.scroll(-500)", "px", "unknown_unit"),
    ({"action": "scroll", "direction": "down", "pixels": 300}, "fraction", "unknown_unit"),
    ({"action": "click", "x": 0.3, "y": 0.08}, "px", "unknown_unit"),
    ({"action": "click", "x": 0.3, "y": 0.08}, "norm", "unknown_unit"),
    ({"action": "click", "bbox": [0.1, 0.2, 0.3, 0.4]}, "thousand", "unknown_unit"),
    ({"action": "click", "x": 300, "y": 80, "width": 20, "height": 10}, "px", "unknown_unit"),
    ({"action": "click", "coordinate": {"x": 300, "y": 80, "width": 20, "height": 10}}, "px", "bad_argument"),
    ({"action": "click", "coordinate": "30%, 8%"}, "px", "bad_argument"),
    ({"action": "wait", "timeout": 2000}, "px", "extra_argument unknown_unit"),
    # two ways at once
    ({"action": "scroll", "direction": "up", "pixels": -300}, "px", "bad_argument"),
    ({"action": "scroll", "direction": "up", "delta_y": 300}, "px", "bad_argument"),
    ({"action": "scroll_down", "direction": "up"}, "px", "bad_argument"),
    ({"action": "hscroll", "direction": "down"}, "px", "bad_argument"),
    ({"action": "scroll", "scroll_x": 30, "scroll_y": 40}, "px", "bad_argument"),
    ({"action": "scroll", "direction": "sideways"}, "px", "bad_argument"),
    ({"action": "click", "coordinate": [300, 80], "x": 310, "y": 80}, "px", "extra_argument"),
    ({"action": "click", "coordinate": [300, 80], "bbox": [400, 70, 420, 90]}, "px", "bad_argument"),
    ({"action": "click", "X": 1, "x": 300, "y": 80}, "px", "extra_argument"),
    ({"action": "type", "text": "a", "content": "b"}, "px", "extra_argument"),
    # what the tool cannot do
    ({"action": "left_click", "coordinate": [300, 80], "text": "shift"}, "px", "extra_argument"),
    ({"type": "click", "x": 300, "y": 80, "keys": ["CTRL"]}, "px", "extra_argument"),
    ({"action": "click", "x": 300, "y": 80, "modifiers": ["Shift"]}, "px", "extra_argument"),
    ({"action": "click", "x": 300, "y": 80, "duration": 2}, "px", "extra_argument"),
    ({"action": "click", "x": 300, "y": 80, "hold": True}, "px", "extra_argument"),
    ({"action": "click", "x": 300, "y": 80, "button": "back"}, "px", "unknown_action"),
    ({"action": "click", "x": 300, "y": 80, "button": 2}, "px", "unknown_action"),
    ({"action": "double_click", "x": 300, "y": 80, "button": "right"}, "px", "unknown_action"),
    ({"action": "drag", "x": 300, "y": 80, "button": "right"}, "px", "unknown_action"),
    ({"action": "key", "key": "a", "duration": 2}, "px", "extra_argument"),
    ({"action": "type", "text": "a", "clear": True}, "px", "extra_argument"),
    ({"action": "drag", "path": [[1, 2], [3, 40], [5, 6]]}, "px", "bad_argument"),
    ({"action": "swipe", "coordinate": [10, 20, 30, 40]}, "px", "bad_argument"),
    ({"action": "swipe", "coordinate": [300, 80], "direction": "up"}, "px", "extra_argument"),
    ({"action": "SWIPE", "direction": "up"}, "px", "missing_argument"),
    ("SWIPE [UP]", "px", "missing_argument"),
    ({"action": "click", "start_box": "(300,80)", "end_box": "(320,90)"}, "px", "extra_argument"),
    ({"name": "mobile_use", "arguments": {"action": "system_button", "button": "Back"}}, "norm", "unknown_action"),
    ({"name": "mobile_use", "arguments": {"action": "long_press", "coordinate": [3, 4], "time": 2}}, "norm", "unknown_action"),
    ({"action": "点击", "x": 300, "y": 80}, "px", "unknown_action"),
    ({"action": "클릭", "x": 300, "y": 80}, "px", "unknown_action"),
    ("pyautogui.move(30, 0)", "px", "unknown_action"),
    ("pyautogui.drag(30, 0)", "px", "unknown_action"),
    ("move(30, 40)", "px", "missing_argument extra_argument"),
    ("pyautogui.keyDown('shift'); pyautogui.click(3, 4); pyautogui.keyUp('shift')", "px", "unknown_action"),
    # keys together, or one after another?
    ({"action": "press", "keys": ["ctrl", "a"]}, "px", "bad_argument"),
    ({"action": "key", "text": "ctrl a Down"}, "px", "bad_argument"),
    ("hotkey(key='tab enter')", "px", "bad_argument"),
    ({"action": "key", "keys": ["a", "b", "c", "d", "e", "f"]}, "px", "bad_argument"),
    # what would be lost
    ({"action": "click", "coordinate": [300, 80], "to": [3, 4]}, "px", "extra_argument"),
    ({"action": {"type": "click"}, "x": 300, "y": 80}, "px", "extra_argument"),
    ({"name": "click", "arguments": {"x": 300, "y": 80}, "button": "right"}, "px", "extra_argument"),
    ({"name": "click", "arguments": "x=300, y=80"}, "px", "missing_argument extra_argument"),
    ({"name": "click", "arguments": {"action": "scroll", "x": 300, "y": 80}}, "px", "extra_argument"),
    ({"arguments": {"x": 300, "y": 80}}, "px", "no_action"),
    ({"action": "press_enter", "text": "cats"}, "px", "extra_argument"),
    ({"action": "click", "x": 300, "y": 80, "target": [3, 4]}, "px", "extra_argument"),
    (["click", 300, 80, "right"], "px", "bad_argument"),
    (["type", 300, 80, "cats"], "px", "bad_argument"),
    ("click(300, 80, 1, 0.1, 'left', 2, 7)", "px", "extra_argument"),
    ("click(**where)", "px", "not_literal"),
    # positions without an action
    ([{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6, 7, 8], "label": "b"}], "px", "no_action"),
    ("It is at (300, 80) or at (30, 8).", "px", "no_action"),
    ("(280, 70), (320, 90)", "px", "no_action"),
    ("I scroll down at (300, 80).", "px", "no_action"),
    ("Right-click (300, 80).", "px", "no_action"),
    ("scroll(300, 80) to see more", "px", "no_action not_literal"),
    ("```scroll(3, 80)```", "px", "extra_argument"),
    # what breaks off
    ('{"action": "click", "x": 300, "y": 80, "action": "type", "text": "a"}', "px", "not_json"),
    ('{"action": "scroll", "coordinate": [300, 80], "pixels": ', "px", "not_json"),
    ('{"action": "click", "x": 300, "y": 80}\n{"action": "type", "te', "px", "no_action not_json"),
    ("click(300, 80)\ntype(content='and so", "px", "not_literal"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "unit", "errors"), REFUSED, ids=[str(value)[:50] for value, _, _ in REFUSED])
def test_what_could_be_read_wrong_is_refused_by_name(value, unit, errors):
    reading = dialects.read(value, PAGE, unit)
    assert reading.actions == () and reading.error in errors.split() and reading.message


# the table, from both ends

VALUES = {
    **dict.fromkeys(("coordinate", "start", "end"), [300, 80]),
    **dict.fromkeys(("x", "x_start", "x_end"), 300),
    **dict.fromkeys(("y", "y_start", "y_end"), 80),
    "box": [280, 70, 320, 90],
    "corners": 3,
    "path": [[10, 20], [300, 80]],
    "button": "left",
    "clicks": 1,
    "text": "cats",
    "submit": True,
    "keys": "enter",
    "presses": 2,
    "modifiers": ["ctrl"],
    "direction": "down",
    **dict.fromkeys(("pixels", "notches", "steps", "pages"), 2),
    **dict.fromkeys(("wheel_x", "wheel_y"), 30),
    "time": 2,
    "milliseconds": 20,
    "status": "failure",
    "speed": 2,
}
"""A value of each argument."""
WHOLE = {
    **dict.fromkeys(CLICKS, {"coordinate": [300, 80]}),
    "mouse_move": {"coordinate": [300, 80]},
    "left_click_drag": {"coordinate": [300, 80]},
    "type": {"text": "cats"},
    "key": {"keys": ["enter"]},
    "scroll": {"pixels": 30},
    "hscroll": {"pixels": 30},
    "wait": {"time": 2},
    "terminate": {"status": "success"},
    "answer": {"text": "cats"},
}
"""Of each action an object that is read without repairs."""
BESIDE = {
    **{axis: {other: VALUES[other]} for axis, other in (("x", "y"), ("y", "x"))},
    **{f"{a}_{end}": {f"{b}_{end}": 7} for a, b in ("xy", "yx") for end in ("start", "end")},
    "steps": {"direction": "down"},
    "modifiers": {"keys": "a"},
    "presses": {"keys": "a"},
    "submit": {"text": "cats"},
    **dict.fromkeys(("button", "clicks", "speed"), {"coordinate": [300, 80]}),
    "start": {"end": [30, 40]},
}
"""What an argument does not stand without."""


def by_name(argument: str) -> str:
    """Our own name of an argument."""
    return ARGUMENTS[argument][0]


def test_the_tables_agree():
    assert set(TAKES) == set(WHOLE) == set(KINDS) and set(VALUES) == set(ARGUMENTS)
    assert {argument for taken in TAKES.values() for argument in taken} == set(ARGUMENTS)
    assert {kind for kind, _ in ACTIONS.values()} == set(KINDS) and set(CLICKED.values()) == set(CLICKS)
    assert set(DIRECTION_WORDS.values()) == set(DIRECTIONS) and set(BUTTONS.values()) == {"left", "right", "middle"}
    assert all(plain(word) == word for words in (ACTIONS, DIRECTION_WORDS, BUTTONS, SECONDS) for word in words)


def object_with(kind: str, argument: str, name: str) -> dict:
    """An action of which `name` is one of the arguments, with all that it needs beside it."""
    needs = {by_name(other): value for other, value in BESIDE.get(argument, {}).items()}
    if kind != "left_click_drag" and argument == "start":
        needs = {}
    if kind == "hscroll" and argument == "steps":
        needs = {"direction": "left"}
    return {"action": kind, **needs, name: value_of(kind, argument)}


def value_of(kind: str, argument: str) -> object:
    """One that fits the action."""
    if argument == "direction" and kind == "hscroll":
        return "left"
    if kind in CLICKS and argument in ("button", "clicks"):
        button, clicks = next(click for click, clicked in CLICKED.items() if clicked == kind)
        return button if argument == "button" else int(clicks)
    return VALUES[argument]


SYNONYMS = [
    (kind, argument, name)
    for kind, taken in TAKES.items()
    for argument in taken
    for name in ARGUMENTS[argument]
    if argument != "corners" and (kind, argument) not in (("hscroll", "wheel_y"), ("scroll", "wheel_x"))
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_synonym_of_an_argument_is_read_as_the_argument(kind):
    tried = 0
    for _, argument, name in (row for row in SYNONYMS if row[0] == kind):
        own = object_with(kind, argument, by_name(argument))
        for spelling in {name, name.upper(), name.replace("_", ""), name.replace("_", "-")}:
            other = object_with(kind, argument, spelling)
            if len(other) < len(own):  # the name is one that stands beside it
                continue
            needed = {key: value for key, value in WHOLE[kind].items() if not complete(kind, argument)}
            ours, theirs = (dialects.read({**needed, **value}, PAGE, "px") for value in (own, other))
            assert not ours.error and theirs.actions == ours.actions, (own, other, ours, theirs)
            tried += 1
    assert tried


def complete(kind: str, argument: str) -> bool:
    """Whether an argument, and what stands beside it, is all that its action needs."""
    return not (
        (kind == "type" and argument not in ("text", "submit"))
        or (kind in ("scroll", "hscroll") and argument in ("coordinate", "start", "x", "y", "box"))
        or (kind == "left_click_drag" and argument in ("x_start", "y_start"))
        or (kind == "terminate" and argument == "text")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_known_key_outside_of_the_actions_own_row_is_an_error(kind):
    own = {plain(name) for argument in TAKES[kind] for name in ARGUMENTS[argument]}
    own |= {plain(name) for name in (*REMARKS, *OTHER_REMARKS)} | {"action", "name"}
    assert not dialects.read({"action": kind, **WHOLE[kind]}, PAGE, "px").error
    for argument, names in ARGUMENTS.items():
        for name in (name for name in names if plain(name) not in own):
            reading = dialects.read({"action": kind, **WHOLE[kind], name: VALUES[argument]}, PAGE, "px")
            assert reading.error and not reading.actions, (kind, name)
    for word in UNCLEAR.get(kind, ()):
        assert dialects.read({"action": kind, **WHOLE[kind], word: 3}, PAGE, "px").error == "unknown_unit"


@given(kind=st.sampled_from(sorted(WHOLE)), name=st.text(max_size=12), value=st.integers(1, 9) | st.just([3, 4]))
def test_a_key_that_nobody_knows_is_an_error(kind, name, value):
    known = {plain(word) for words in ARGUMENTS.values() for word in words} | {"action", "type", "status"}
    if plain(name) in known | {plain(word) for word in (*REMARKS, *OTHER_REMARKS)} or name in WHOLE[kind]:
        return
    reading = dialects.read({"action": kind, **WHOLE[kind], name: value}, PAGE, "px")
    assert reading.error and not reading.actions, name


@pytest.mark.parametrize("name", [*REMARKS, *OTHER_REMARKS])
def test_remarks_are_dropped_but_never_a_place(name):
    for kind, whole in WHOLE.items():
        if plain(name) in {plain(word) for argument in TAKES[kind] for word in ARGUMENTS[argument]}:
            continue
        if name in REFERENCES and not dialects.read({"action": kind, **whole}, PAGE, "px").written:
            assert dialects.read({"action": kind, **whole, name: 3}, PAGE, "px").error == "extra_argument"
            continue
        value = {"action": kind, **whole}
        reading = dialects.read({**value, name: "a cat"}, PAGE, "px")
        assert reading.actions == dialects.read(value, PAGE, "px").actions
        assert ("dropped_argument" in reading.repairs) == (name in OTHER_REMARKS)
        assert dialects.read({**value, name: {"x": 3, "y": 4}}, PAGE, "px").error == "extra_argument"


# written in any dialect and unit, read again: at the same place

WRITERS = {
    "ours": lambda x, y: {"action": "left_click", "coordinate": [x, y]},
    "seed": lambda x, y: {"action": "click", "x": x, "y": y},
    "second form": lambda x, y: {"type": "click", "x": x, "y": y, "target": "cat"},
    "dict": lambda x, y: {"action": "click", "position": {"x": x, "y": y}},
    "text": lambda x, y: {"action": "click", "coordinate": f"({x}, {y})"},
    "list": lambda x, y: ["click", x, y],
    "call": lambda x, y: {"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [x, y]}},
    "anthropic": lambda x, y: {"name": "computer", "input": {"action": "left_click", "coordinate": [x, y]}},
    "openai": lambda x, y: {"type": "click", "button": "left", "x": x, "y": y, "keys": None},
    "json": lambda x, y: json.dumps({"action": "click", "x": x, "y": y}),
    "literal": lambda x, y: str({"action": "CLICK", "value": None, "position": [x, y]}),
    "pyautogui": lambda x, y: f"pyautogui.click({x}, {y})",
    "pyautogui by name": lambda x, y: f"```python\nimport pyautogui\npyautogui.click(x={x}, y={y})\n```",
    "ui-tars": lambda x, y: f"Thought: t\nAction: click(start_box='({x},{y})')",
    "ui-tars 1.5": lambda x, y: f"Action: click(point='<point>{x} {y}</point>')",
    "os-atlas": lambda x, y: f"actions:\nCLICK <point>[[{x},{y}]]</point>",
    "box": lambda x, y: {"action": "click", "bbox": [x, y, x, y]},
    "bare": lambda x, y: f"It is at ({x}, {y}).",
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("writer", WRITERS)
@given(screen=st.builds(Screen, st.integers(100, 8000), st.integers(100, 8000)), data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_place_comes_back_from_every_dialect_and_unit(writer, unit, screen, data):
    x_px = data.draw(st.floats(2, screen.width_px - 2))
    y_px = data.draw(st.floats(2, screen.height_px - 2))
    digits = {0: 0, 1: 4, 100: 2, 1000: 0}[UNITS[unit]]
    x, y = (round(value, digits) if digits else round(value) for value in screen.to_unit(x_px, y_px, unit))
    if UNITS[unit] != 1 and x <= 1 and y <= 1:  # a share of the screen, or its corner
        return
    reading = dialects.read(WRITERS[writer](x, y), screen, unit)
    assert not reading.error, (reading.error, reading.message)
    (action,) = reading.actions
    assert action.kind == "left_click"
    for back, value, side in zip(action.point_px, (x_px, y_px), (screen.width_px, screen.height_px), strict=True):
        half_a_step = max(side / GRID.cells / 2, 0.5) if digits == 0 and unit == "px" else side / GRID.cells / 2
        assert abs(back - value) <= half_a_step * (1 + 1e-6) or (value / side > 0.999 and back / side >= 0.998)


LENGTHS = {
    "ours": lambda px, side: {"action": "scroll", "pixels": px},
    "openai": lambda px, side: {"type": "scroll", "scroll_x": 0, "scroll_y": -px},
    "playwright": lambda px, side: {"action": "scroll", "deltaY": -px},
    "direction": lambda px, side: {"action": "scroll", "direction": "up" if px > 0 else "down", "pixels": abs(px)},
    "pages": lambda px, side: f"pyautogui.scroll(page={px / side})",
}


@pytest.mark.parametrize("writer", LENGTHS)
@given(px=st.integers(-2000, 2000).filter(bool), side=st.integers(100, 4000))
@settings(max_examples=25, deadline=None)
def test_a_scroll_comes_back_with_its_sign(writer, px, side):
    (action,) = dialects.read(LENGTHS[writer](px, side), Screen(500, side), "px").actions
    assert action.kind == "scroll" and action.scroll_px == pytest.approx(px)


def test_text_that_python_remarks_on_is_read_without_a_word(recwarn):
    assert dialects.read("click(x=1or 2, y=3)", PAGE, "px").error == "not_literal"
    assert not recwarn.list
