"""The computer_use tool: pixels -> grid -> call -> every format -> call -> pixels, and what is refused on the way."""

import itertools
import json
import math
import re
import time
import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from qwenvl_agent.computer import (
    COMPUTER_USE,
    Action,
    ActionError,
    build_tool,
    dialects,
    read_call,
    read_turn,
    synonyms,
    to_call,
    to_turn,
)
from qwenvl_agent.computer.actions import from_arguments, to_arguments
from qwenvl_agent.computer.context import SYSTEM_PROMPT, describe, observation
from qwenvl_agent.computer.keys import ALIASES, NAMED_KEYS, browser_key, key_name
from qwenvl_agent.computer.tool import CLICKS, KINDS, argument_error
from qwenvl_agent.coordinates import GRID, Screen
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.prompt import render_prompt
from qwenvl_agent.schema import Answer, Picture, Request, ToolCall, Turn

SCREEN = Screen(1280, 720)
SCREENS = st.builds(Screen, st.integers(1, 8000), st.integers(1, 8000), st.floats(0.5, 4))
VALUES = {
    "coordinate": lambda screen: {
        "x_px": st.floats(0, screen.width_px, exclude_max=True),
        "y_px": st.floats(0, screen.height_px, exclude_max=True),
    },
    "text": lambda screen: {"text": st.text(max_size=40).map(lambda t: unicodedata.normalize("NFC", t))},
    "keys": lambda screen: {"keys": st.lists(st.sampled_from([*NAMED_KEYS, "a", "7", "/"]), min_size=1, max_size=5)},
    "pixels": lambda screen: {"scroll_px": st.floats(-5000, 5000)},
    "time": lambda screen: {"seconds": st.integers(0, 60) | st.floats(0, 60)},
    "status": lambda screen: {"status": st.sampled_from(["success", "failure"])},
}
"""For each argument of the tool: the action's fields that it carries, on this screen."""


@st.composite
def actions(draw, screen: Screen) -> Action:
    kind = draw(st.sampled_from(list(KINDS)))
    names = list(KINDS[kind].needs) + [name for name in KINDS[kind].may_have if draw(st.booleans())]
    fields = {key: draw(value) for name in names for key, value in VALUES[name](screen).items()}
    return Action(kind, **fields)


def assert_same(action: Action, back: Action, screen: Screen) -> None:
    """Equal, but for at most one grid cell in each position and length."""
    assert (back.kind, back.text, back.keys, back.seconds, back.status) == (
        (action.kind, action.text, action.keys, action.seconds, action.status)
    )
    for name in ("x_px", "y_px", "scroll_px"):
        value, value_back = getattr(action, name), getattr(back, name)
        side = (
            screen.width_px if name == "x_px" or action.kind == "hscroll" and name == "scroll_px" else screen.height_px
        )
        assert (value is None) == (value_back is None)
        assert value is None or abs(value - value_back) <= side / GRID.cells * (1 + 1e-9)


@pytest.mark.parametrize("name", FORMATS)
@given(screen=SCREENS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_actions_come_back_through_every_format(name, screen, data):
    given_actions = data.draw(st.lists(actions(screen), min_size=1, max_size=3))
    thought = data.draw(st.sampled_from(["", "点击小猫图片。", "I click it."]))
    try:
        turn = to_turn(given_actions, screen, thought)
    except ValueError as error:  # a text that no format may teach
        assume("control token" not in str(error) and "half a character" not in str(error))
        raise
    text = "".join(span.text for span in FORMATS[name].render(turn))
    answer = FORMATS[name].parse(text, (COMPUTER_USE,))
    assert answer == Answer(FORMATS[name].project(turn), text)
    for action, back in zip(given_actions, read_turn(answer.turn, screen), strict=True):
        assert_same(action, back, screen)


@given(screen=SCREENS, data=st.data())
def test_every_call_fits_the_tools_schema(screen, data):
    try:
        call = to_call(data.draw(actions(screen)), screen)
    except ValueError:
        assume(False)
    assert Draft202012Validator(COMPUTER_USE.parameters).is_valid(call.arguments)


@given(screen=SCREENS, data=st.data())
def test_a_call_that_was_read_is_written_the_same(screen, data):
    """What the model wrote is what its history shows."""
    try:
        call = to_call(data.draw(actions(screen)), screen)
    except ValueError:
        assume(False)
    assert to_call(read_call(call, screen), screen) == call


def test_exact_calls_in_pixels_and_back():
    turn = to_turn(
        [
            Action.click(300, 80),
            Action("scroll", scroll_px=-360, x_px=640, y_px=360),
            Action("hscroll", scroll_px=128),
            Action("key", keys=("Control", "A")),
        ],
        SCREEN,
        "I click the search box.",
    )
    assert [call.arguments for call in turn.tool_calls] == [
        {"action": "left_click", "coordinate": [234, 111]},
        {"action": "scroll", "coordinate": [500, 500], "pixels": -500},
        {"action": "hscroll", "pixels": 100},
        {"action": "key", "keys": ["ctrl", "a"]},
    ]
    click, scroll, hscroll, key = read_turn(turn, SCREEN)
    assert click.point_px == pytest.approx((299.52, 79.92)) and SCREEN.to_pixel(*click.point_px) == (300, 80)
    assert scroll.wheel_px == (0, 360) and hscroll.wheel_px == (128, 0)
    assert key.keys == ("ctrl", "a") and read_turn(Turn(text="Done."), SCREEN) == ()


@pytest.mark.parametrize(
    ("arguments", "name", "message"),
    [
        ({"action": "tap", "coordinate": [1, 2]}, "unknown_action", "action is 'tap', which does not exist"),
        ({"coordinate": [1, 2]}, "unknown_action", "action is 'None'"),
        ({"action": ["key"]}, "unknown_action", "does not exist"),
        ({"action": "left_click"}, "missing_argument", "left_click lacks coordinate"),
        ({"action": "left_click", "coordinate": [1, 2], "text": "a"}, "extra_argument", "takes no 'text'"),
        ({"action": "left_click", "coordinate": [1, 1001]}, "bad_argument", "1001 is greater than the maximum"),
        ({"action": "left_click", "coordinate": [-1, 5]}, "bad_argument", r"coordinate\[0\]: -1 is less than"),
        ({"action": "left_click", "coordinate": [1]}, "bad_argument", "is too short"),
        ({"action": "left_click", "coordinate": [1.5, 2]}, "bad_argument", "1.5 is not of type 'integer'"),
        ({"action": "left_click", "coordinate": "1, 2"}, "bad_argument", "is not of type 'array'"),
        ({"action": "key", "keys": ["hyper"]}, "unknown_key", "key 'hyper' does not exist"),
        ({"action": "key", "keys": []}, "bad_argument", "should be non-empty"),
        ({"action": "wait", "time": -1}, "bad_argument", "less than the minimum"),
        ({"action": "terminate", "status": "done"}, "bad_argument", "'done' is not one of"),
        ({"action": "type", "text": "a" * 3000}, "bad_argument", "is too long"),
    ],
)
def test_calls_that_are_none_are_named(arguments, name, message):
    with pytest.raises(ActionError, match=message) as caught:
        read_call(ToolCall("computer_use", arguments), SCREEN)
    assert caught.value.name == name
    assert len(str(caught.value)) < 500


def test_another_tool_is_not_the_computer():
    with pytest.raises(ActionError, match="tool 'move' does not exist here") as caught:
        read_call(ToolCall("move", {"action": "wait", "time": 1}), SCREEN)
    assert caught.value.name == "unknown_tool"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"kind": "click"}, "unknown_action"),
        ({"kind": "left_click", "x_px": 3}, "missing_argument"),
        ({"kind": "scroll", "scroll_px": 3, "y_px": 3}, "missing_argument"),
        ({"kind": "left_click", "x_px": math.nan, "y_px": 3}, "bad_argument"),
        ({"kind": "scroll", "scroll_px": math.inf}, "bad_argument"),
        ({"kind": "wait", "seconds": 61}, "bad_argument"),
        ({"kind": "wait", "seconds": 1, "status": "success"}, "extra_argument"),
        ({"kind": "terminate", "status": "ok"}, "bad_argument"),
        ({"kind": "key", "keys": ()}, "unknown_key"),
        ({"kind": "type", "text": "a" * 3000}, "bad_argument"),
    ],
)
def test_impossible_actions_are_refused(fields, name):
    with pytest.raises(ActionError) as caught:
        Action(**fields)
    assert caught.value.name == name


def test_the_tool_has_qwens_actions_and_arguments():
    """Names and order as in Qwen's cookbook: what the model was trained with costs nothing to follow."""
    properties = COMPUTER_USE.parameters["properties"]
    assert properties["action"]["enum"] == [
        *("key", "type", "mouse_move", "left_click", "left_click_drag", "right_click", "middle_click", "double_click"),
        *("triple_click", "scroll", "hscroll", "wait", "terminate", "answer"),
    ]
    assert list(properties) == ["action", "keys", "text", "coordinate", "pixels", "time", "status"]
    assert COMPUTER_USE.parameters["required"] == ["action"]
    assert GRID.prompt_line in COMPUTER_USE.description
    Draft202012Validator.check_schema(COMPUTER_USE.parameters)


def test_a_small_tool_offers_only_what_it_is_asked_for():
    tool = build_tool(("left_click", "key"))
    assert tool.parameters["properties"]["action"]["enum"] == ["key", "left_click"]
    assert list(tool.parameters["properties"]) == ["action", "keys", "coordinate"]
    assert "Required by left_click." in tool.parameters["properties"]["coordinate"]["description"]
    assert "Required" not in json.dumps(build_tool(["left_click"]).parameters)
    with pytest.raises(ValueError, match=r"action \['tap'\] does not exist"):
        build_tool(["tap"])


def test_every_kind_has_its_fields():
    for kind in KINDS:
        assert argument_error({"action": kind})[0] == "missing_argument"
    assert set(CLICKS) <= set(KINDS)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Return", "enter"),
        ("Page_Down", "pagedown"),
        ("ArrowUp", "up"),
        ("Cmd", "meta"),
        ("Escape", "esc"),
        (" ", "space"),
        ("\n", "enter"),
        ("A", "a"),
        ("ñ", "ñ"),
        ("+", "+"),
        ("-", "-"),
        ("F12", "f12"),
        ("", ""),
        ("\x07", ""),
        ("ab", ""),
        ("minus", "-"),
    ],
)
def test_key_names(text, name):
    assert key_name(text) == name


def test_every_alias_is_a_key():
    assert {key_name(alias) for alias in ALIASES} == set(NAMED_KEYS)
    assert [browser_key(key) for key in ("ctrl", "a", "/")] == ["Control", "a", "/"]


def test_the_prompt_holds_screen_task_and_steps():
    past = [describe(Action.click(640, 360), SCREEN), "type\nthe name"]
    seen = observation(Picture(1280, 720, path="a.png"), "下载小猫图片", past)
    assert seen.text == (
        'Task: 下载小猫图片\nSteps so far:\n1. {"action": "left_click", "coordinate": [500, 500]}\n2. type the name'
    )
    text = render_prompt(Request(SYSTEM_PROMPT, (COMPUTER_USE,), (), seen), FORMATS["native"]).text
    assert json.dumps(GRID.prompt_line)[1:-1] in text and text.count("<|image_pad|>") == 1


PAGE = Screen(1000, 500)
"""One pixel is one cell across, two cells down."""


def click_at(x_px: float, y_px: float, kind: str = "left_click") -> list[Action]:
    return [Action.click(x_px, y_px, kind)]


DRAG = [Action("mouse_move", x_px=10, y_px=10), Action("left_click_drag", x_px=30, y_px=20)]
ENTER = Action("key", keys=("enter",))
DIALECTS = [
    # the seed's two forms, lists and boxes
    ({"action": "click", "x": 300, "y": 80}, click_at(300, 40), "renamed_action xy_keys"),
    (
        {"type": "click", "x": 300, "y": 400, "target": "cat"},
        click_at(300, 200),
        "renamed_action_key renamed_action xy_keys",
    ),
    ({"next_action": {"action": "left_click", "coordinate": [3, 4]}}, click_at(3, 2), "nested_action"),
    ([300, 80], click_at(300, 40), "missing_action"),
    ([[300, 80]], click_at(300, 40), "missing_action nested_list"),
    (["click", 300, 80], click_at(300, 40), "list_action renamed_action"),
    (["left_click", [300, 80]], click_at(300, 40), "list_action"),
    (["type", "cats"], [Action("type", text="cats")], "list_action"),
    (
        [{"action": "left_click", "coordinate": [3, 4]}, {"action": "type", "text": "cats"}],
        [*click_at(3, 2), Action("type", text="cats")],
        "several_actions",
    ),
    ([280, 70, 320, 90], click_at(300, 40), "missing_action box_centre"),
    ({"bbox_2d": [280, 70, 320, 90], "label": "cat"}, click_at(300, 40), "missing_action box_centre"),
    ({"action": "left_click", "box": {"x": 280, "y": 70, "width": 40, "height": 20}}, click_at(300, 40), "box_centre"),
    ({"action": "left_click", "coordinate": [[280, 70], [320, 90]]}, click_at(300, 40), "box_centre"),
    # the tool's own form, near misses
    ({"action": "left_click", "coordinate": ["3", 4.0]}, click_at(3, 2), "string_number"),
    ({"action": "left_click", "coordinate": "(3, 4)"}, click_at(3, 2), "coordinate_text"),
    ({"action": "left_click", "coordinate": [3.5, 4]}, click_at(3.5, 2), "float_coordinate"),
    ({"action": "left_click", "coordinate": {"x": 3, "y": 4}}, click_at(3, 2), "xy_keys"),
    (
        {"action": "left_click", "coordinate": [3, 4], "button": "right"},
        click_at(3, 2, "right_click"),
        "renamed_action",
    ),
    ({"action": "Double-Click", "coordinate": [3, 4]}, click_at(3, 2, "double_click"), "renamed_action"),
    ({"action": "left_click", "coordinate": [3, 4], "speed": 2}, click_at(3, 2), "dropped_argument"),
    (
        {"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [3, 4]}},
        click_at(3, 2),
        "call_as_value",
    ),
    ({"name": "left_click", "arguments": {"coordinate": [3, 4]}}, click_at(3, 2), "name_as_action"),
    ({"action": "key", "keys": "ctrl+a"}, [Action("key", keys=("ctrl", "a"))], "key_combination"),
    ({"action": "key", "keys": ["ctrl+a"]}, [Action("key", keys=("ctrl", "a"))], "key_combination"),
    ({"action": "key", "keys": ["+"]}, [Action("key", keys=("+",))], ""),
    ({"action": "type", "text": 7}, [Action("type", text="7")], "number_as_text"),
    (
        {"action": "type", "text": "cats", "coordinate": [3, 4], "enter": True},
        [*click_at(3, 2), Action("type", text="cats"), ENTER],
        "click_and_type typed_enter",
    ),
    ({"action": "scroll", "direction": "down", "pixels": 300}, [Action("scroll", scroll_px=-150)], "scroll_direction"),
    ({"action": "scroll", "direction": "left"}, [Action("hscroll", scroll_px=-500)], "scroll_direction default_scroll"),
    (
        {"action": "scroll_up", "scroll_pixels": 20},
        [Action("scroll", scroll_px=10)],
        "renamed_action renamed_argument scroll_direction",
    ),
    ({"action": "left_click_drag", "start_coordinate": [10, 20], "coordinate": [30, 40]}, DRAG, "drag_start"),
    ({"action": "swipe", "coordinate": [10, 20], "coordinate2": [30, 40]}, DRAG, "renamed_action drag_start"),
    ({"action": "left_click_drag", "x1": 10, "y1": 20, "x2": 30, "y2": 40}, DRAG, "drag_start"),
    ({"action": "terminate"}, [Action("terminate", status="success")], "default_status"),
    ({"action": "terminate", "status": "infeasible"}, [Action("terminate", status="failure")], "renamed_status"),
    ({"action": "wait"}, [Action("wait", seconds=1)], "default_time"),
    # pyautogui and its like
    ("pyautogui.click(300, y=80)", click_at(300, 40), "python_call renamed_action xy_keys"),
    ("pyautogui.click(x=3, y=4, clicks=2)", click_at(3, 2, "double_click"), "python_call renamed_action xy_keys"),
    ("pyautogui.click(3, 4, button='right')", click_at(3, 2, "right_click"), "python_call renamed_action xy_keys"),
    ("pyautogui.tripleClick(3, 4)", click_at(3, 2, "triple_click"), "python_call renamed_action xy_keys"),
    (
        "```python\nimport pyautogui\npyautogui.moveTo(10, 20)\npyautogui.dragTo(30, 40, duration=1, button='left')\n```",
        DRAG,
        "python_call renamed_action xy_keys",
    ),
    ("pyautogui.hotkey('ctrl', 'c')", [Action("key", keys=("ctrl", "c"))], "python_call"),
    ("pyautogui.hotkey(['ctrl', 'c'])", [Action("key", keys=("ctrl", "c"))], "python_call"),
    ("pyautogui.press('enter', presses=2)", [ENTER, ENTER], "python_call renamed_action key_combination"),
    ("pyautogui.write(message='it\\'s', interval=0.1)", [Action("type", text="it's")], "python_call renamed_action"),
    ("pyautogui.scroll(-5)", [Action("scroll", scroll_px=-500)], "python_call wheel_notches"),
    ("pyautogui.scroll(clicks=-5)", [Action("scroll", scroll_px=-500)], "python_call wheel_notches"),
    ("pyautogui.scroll(page=-0.5)", [Action("scroll", scroll_px=-250)], "python_call renamed_argument scroll_pages"),
    ({"action": "scroll", "delta_y": 300}, [Action("scroll", scroll_px=-150)], "wheel_delta"),
    ({"action": "wait", "time": "2 s"}, [Action("wait", seconds=2)], "time_unit"),
    ("time.sleep(3)", [Action("wait", seconds=3)], "python_call renamed_action"),
    ("computer.terminate(status='success')", [Action("terminate", status="success")], "python_call"),
    (
        "Thought: I see it.\nAction: click(start_box='<|box_start|>(300,80)<|box_end|>')",
        click_at(300, 40),
        "python_call renamed_action renamed_argument coordinate_text",
    ),
    (
        "click(point='<point>300 80</point>')",
        click_at(300, 40),
        "python_call renamed_action renamed_argument coordinate_text",
    ),
    # other texts
    ('I click.\n{"action": "left_click", "coordinate": [3, 4]}', click_at(3, 2), "json_text"),
    (
        "{'action': 'CLICK', 'value': None, 'position': [3, 4]}",
        click_at(3, 2),
        "python_literal renamed_action renamed_argument",
    ),
    ("actions:\nCLICK <point>[[300, 80]]</point>", click_at(300, 40), "upper_case_call renamed_action coordinate_text"),
    ("COMPLETE", [Action("terminate", status="success")], "upper_case_call renamed_action default_status"),
    ("The kitten is at (300, 80).", click_at(300, 40), "bare_coordinates missing_action"),
    ("<box>[[280, 70, 320, 90]]</box>", click_at(300, 40), "bare_coordinates missing_action box_centre"),
    ("[300, 80]", click_at(300, 40), "json_text missing_action"),
]


@pytest.mark.parametrize(("value", "expected", "repairs"), DIALECTS, ids=[str(value)[:40] for value, _, _ in DIALECTS])
def test_dialects_are_read_and_every_repair_is_named(value, expected, repairs):
    reading = dialects.read(value, PAGE)
    assert (list(reading.actions), reading.error) == (expected, "")
    assert list(reading.repairs) == repairs.split()


def test_every_repair_is_documented_and_tested():
    named = set(re.findall(r"[a-z_]{5,}", " ".join(re.findall(r"(?m)^\| ([a-z_, ]+) \|", dialects.__doc__))))
    tested = {name for _, _, repairs in DIALECTS for name in repairs.split()} | {"clamped"}
    assert tested == named - {"repair"}


def nested(form: str, depth: int = 20_000) -> object:
    """What a hostile answer may hold."""
    value: object = {}
    for _ in range(depth):
        value = [value] if form == "lists" else {"name": "computer_use", "arguments": value}
    return value


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"action": "fly", "x": 1, "y": 2}, "unknown_action"),
        ({"action": "left_click"}, "missing_argument"),
        ({"action": "left_click", "coordinate": [1]}, "bad_argument"),
        ({"action": "left_click", "coordinate": [1, 2, 3]}, "bad_argument"),
        ({"action": "left_click", "coordinate": [math.nan, 1]}, "bad_argument"),
        ({"action": "left_click", "coordinate": [10**400, 1]}, "bad_argument"),
        ({"action": "left_click", "coordinate": ["left", 1]}, "bad_argument"),
        ({"action": "left_click", "coordinate": [-1, 5]}, "outside_screen"),
        ({"action": "left_click", "coordinate": [1001, 5]}, "outside_screen"),
        ({"action": "key", "keys": "hyper"}, "unknown_key"),
        ({"action": "terminate", "status": "maybe"}, "bad_argument"),
        ({"action": {"action": {"action": {"action": {"action": {"action": {}}}}}}}, "no_action"),
        ([{"action": "wait", "time": 1}] * 51, "too_many_actions"),
        ({"action": "press", "keys": ["tab"], "presses": 1e9}, "bad_argument"),
        ({"action": "click", "coordinate": [3, 4], "clicks": 9}, "unknown_action"),
        ({"action": "click", "coordinate": [3, 4], "button": "right", "clicks": 2}, "unknown_action"),
        (nested("name_and_arguments"), "no_action"),
        (nested("lists"), "no_action"),
        ({"action": "left_click", "coordinate": nested("lists")}, "no_action"),
        ({"target": "cat"}, "no_action"),
        ({}, "no_action"),
        ([], "no_action"),
        (None, "no_action"),
        ("", "no_action"),
        ("I cannot see a cat.", "no_action"),
        ("pyautogui.click(x, y)", "not_literal"),
        ("x = 3\npyautogui.click(x, 4)", "not_literal"),
        ("for i in range(3):\n    pyautogui.click(1, 2)", "not_literal"),
        ("pyautogui.moveRel(3, 4)", "unknown_action"),
    ],
)
def test_what_is_no_action_is_named(value, error):
    reading = dialects.read(value, PAGE)
    assert (reading.error, reading.actions) == (error, ()) and reading.message


def test_code_is_never_run(tmp_path):
    witness = tmp_path / "ran"
    for code in (
        f"__import__('pathlib').Path({str(witness)!r}).touch()",
        f"pyautogui.click(open({str(witness)!r}, 'w'), 3)",
        f"pyautogui.write(str(open({str(witness)!r}, 'w')))",
    ):
        assert dialects.read(code, PAGE).error in ("not_literal", "unknown_action")
    assert not witness.exists()


def test_units_are_the_callers_to_say():
    value = {"action": "left_click", "coordinate": [1, 1.5]}
    places = [dialects.read(value, PAGE, unit).actions[0].point_px for unit in ("px", "percent", "norm")]
    assert places == [(1, 1.5), (10, 7.5), (1, 0.75)]
    scroll = dialects.read({"action": "scroll", "pixels": -100}, PAGE, "px").actions[0]
    assert scroll.wheel_px == (0, 100)


@pytest.mark.parametrize("unit", ["thousand", "norm"])
def test_the_grid_has_two_names(unit):
    value = {"action": "left_click", "coordinate": [1000, 500.5]}
    reading = dialects.read(value, PAGE, unit)
    assert reading.actions[0].point_px == pytest.approx((999, 250.25)) and reading.repairs == ("float_coordinate",)


@pytest.mark.parametrize(
    ("value", "middle_xyxy", "middle_xywh"),
    [
        ({"action": "click", "bbox": [100, 40, 300, 120]}, (200, 80), (250, 100)),
        ({"action": "click", "bbox": [300, 120, 100, 40]}, None, (350, 140)),
        ("click(start_box='[100, 40, 300, 120]')", (200, 80), (250, 100)),
        ({"action": "click", "bbox": {"x": 100, "y": 40, "width": 300, "height": 120}}, (250, 100), (250, 100)),
        ({"action": "click", "x1": 100, "y1": 40, "x2": 300, "y2": 120}, (200, 80), (200, 80)),
        ({"action": "click", "coordinate": [[100, 40], [300, 120]]}, (200, 80), (200, 80)),
        ({"action": "click", "coordinate": [[300, 120], [100, 40]]}, None, None),
    ],
)
def test_the_order_of_a_box_without_names_is_the_callers_to_say(value, middle_xyxy, middle_xywh):
    for order, middle in (("xyxy", middle_xyxy), ("xywh", middle_xywh)):
        reading = dialects.read(value, PAGE, "px", box_order=order)
        if middle is None:
            assert reading.error == "empty_box" and "turned inside out" in reading.message
        else:
            assert reading.actions == (Action.click(*middle),)


def test_positions_are_told_as_they_are_written():
    value = [
        {"action": "click", "bbox": [700, 300, 900, 400]},
        {"action": "click", "x": 0.5, "y": 3},
        {"action": "click", "x1": 2, "y1": 2, "x2": 4, "y2": 4},
        {"action": "click", "x": 5000, "y": 3},
    ]
    reading = dialects.read(value, PAGE, "px")
    assert reading.error == "outside_screen"
    assert reading.written == ((700, 300, 900, 400), (0.5, 3), (3, 3), (5000, 3))


def test_a_models_position_is_moved_onto_the_screen():
    reading = dialects.read({"action": "left_click", "coordinate": [1200, -3]}, PAGE, clamp=True)
    assert reading.actions[0].point_px == (999, 0) and reading.repairs == ("clamped",)


@given(screen=SCREENS, data=st.data())
def test_the_tools_own_form_needs_no_repair(screen, data):
    arguments = to_arguments(data.draw(actions(screen)), screen)
    assert dialects.read(arguments, screen, clamp=True) == dialects.Reading((from_arguments(arguments, screen),))


@given(screen=SCREENS, data=st.data())
def test_the_seeds_form_comes_back_to_the_pixel(screen, data):
    action = data.draw(actions(screen))
    written = json.loads(json.dumps(dialects.to_seed(action, screen, "因为")))
    reading = dialects.read(written, screen, "px")
    assert reading.thought == "因为" and not reading.error
    (back,) = reading.actions
    assert (back.kind, back.text, back.keys, back.seconds, back.status) == (
        (action.kind, action.text, action.keys, action.seconds, action.status)
    )
    for name in ("x_px", "y_px", "scroll_px"):
        assert getattr(action, name) is None or abs(getattr(action, name) - getattr(back, name)) <= 1


def test_seed_form_exactly():
    assert dialects.to_seed(Action.click(299.6, 80), PAGE, "点击搜索框") == {
        "action": "click",
        "x": 300,
        "y": 80,
        "reasoning": "点击搜索框",
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(
    sorted({*synonyms.ACTIONS, *KINDS, *itertools.chain(*synonyms.ARGUMENTS.values()), *synonyms.CALL_KEYS})
    + [
        *synonyms.ACTION_KEYS,
        *synonyms.NESTING_KEYS,
        *synonyms.REMARKS,
        "amount",
        "width",
        "down",
        "left",
        "2s",
        "ctrl+a",
    ]
)
LIKELY = st.dictionaries(WORDS, JSON | WORDS | st.lists(st.integers(-5, 1100), max_size=5), max_size=6)
PIECES = st.sampled_from(
    [
        "pyautogui.",
        "click",
        "(",
        ")",
        "'",
        '"',
        "300",
        ",",
        " ",
        "\n",
        "Action:",
        "[",
        "]",
        "{",
        "}",
        "<point>",
        "CLICK",
        "\\",
    ]
)


@given(JSON | LIKELY | st.lists(WORDS | JSON, max_size=4))
@settings(max_examples=150, deadline=None)
def test_reading_never_raises_on_values(value):
    for unit in ("px", "norm"):
        reading = dialects.read(value, PAGE, unit, clamp=unit == "norm")
        assert bool(reading.actions) != bool(reading.error)
        assert all(PAGE.contains(*action.point_px) for action in reading.actions if action.point_px)


@given(st.text() | st.lists(PIECES | WORDS).map("".join))
@settings(max_examples=150, deadline=None)
def test_reading_never_raises_on_texts(text):
    reading = dialects.read(text, PAGE)
    assert bool(reading.actions) != bool(reading.error)


@pytest.mark.parametrize(
    "piece", ["(", "[", "{", "click(", "'", "[300, ", "<point>", "a ", "CLICK ", "Thought: ", '{"a":']
)
def test_an_endless_text_is_read_in_no_time(piece):
    start = time.process_time()
    for length in (1000, 19_000, 1_000_000):
        dialects.read(piece * (length // len(piece)), PAGE)
    assert time.process_time() - start < 2


def test_a_models_turn_is_read_and_mended():
    thought = "The box is at the top."
    strict = to_turn([Action.click(300, 80)], PAGE, thought)
    assert dialects.read_turn(strict, PAGE) == dialects.Reading(read_turn(strict, PAGE), thought)
    other = Turn(thought, (ToolCall("computer_use", {"action": "click", "x": 300, "y": 160}),))
    reading = dialects.read_turn(other, PAGE)
    assert to_turn(reading.actions, PAGE, reading.thought) == strict and reading.repairs == (
        "renamed_action",
        "xy_keys",
    )
    assert dialects.read_turn(Turn(tool_calls=(ToolCall("click", {"x": 300, "y": 160}),)), PAGE).repairs == (
        *("name_as_action", "renamed_action", "xy_keys"),
    )
    assert dialects.read_turn(Turn(text="click(300, 160)"), PAGE).actions == read_turn(strict, PAGE)
    broken = Turn(tool_calls=(strict.tool_calls[0], ToolCall("computer_use", {"action": "fly"})))
    assert dialects.read_turn(broken, PAGE).error == "unknown_action"
