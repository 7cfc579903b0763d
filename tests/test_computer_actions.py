"""The computer_use tool: pixels -> grid -> call -> every format -> call -> pixels, and what is refused on the way."""

import json
import math
import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from qwenvl_agent.coordinates import GRID, Screen
from qwenvl_agent.envs.computer import (
    COMPUTER_USE,
    Action,
    ActionError,
    build_tool,
    read_call,
    read_turn,
    to_call,
    to_turn,
)
from qwenvl_agent.envs.computer.context import SYSTEM_PROMPT, describe, observation
from qwenvl_agent.envs.computer.keys import ALIASES, NAMED_KEYS, browser_key, key_name
from qwenvl_agent.envs.computer.tool import CLICKS, KINDS, argument_error
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
@settings(max_examples=120, deadline=None)
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
