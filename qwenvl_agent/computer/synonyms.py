"""What people and other models call the tool's actions, arguments and values: the one table that `dialects` reads with.

All words are compared by `plain`: without case, spaces, underscores and hyphens. A key that stands in no row of its
action and is no remark makes a reading an error, whatever it holds: a word is taught here before it is read.
"""

import re
from functools import lru_cache

from qwenvl_agent.computer.tool import CLICKS, GRID_TOOLS, KINDS


@lru_cache(maxsize=4096)  # the same few dozen keys in every record
def plain(word: str) -> str:
    return word if word.isalnum() and word.islower() else re.sub(r"[\s_-]", "", word).lower()


def _row(words: str, kind: str, **implied: object) -> dict[str, tuple[str, dict]]:
    return {plain(word): (kind, implied) for word in words.split()}


ACTIONS: dict[str, tuple[str, dict]] = {
    **{plain(kind): (kind, {}) for kind in KINDS},
    **_row("click tap left_single click_element mouse_click single_click left_tap click_at", "left_click"),
    **_row("dbl_click left_double double_tap", "double_click"),
    **_row("right_single context_click context_menu right_tap", "right_click"),
    **_row("hover move move_to move_mouse mouse_hover move_cursor hover_at", "mouse_move"),
    **_row("drag drag_to drag_and_drop swipe left_drag mouse_drag", "left_click_drag"),
    **_row("input write typewrite type_text input_text enter_text fill select select_option typing", "type"),
    **_row("press hotkey keypress press_key keyboard key_press key_combination", "key"),
    **_row("press_enter enter keyboard_enter", "key", keys=["enter"]),
    **_row("vscroll mouse_wheel wheel mouse_scroll", "scroll"),
    **_row("scroll_horizontal horizontal_scroll", "hscroll"),
    **{plain(f"scroll_{way}"): ("scroll", {"direction": way}) for way in ("up", "down", "left", "right")},
    **_row("sleep", "wait"),
    **_row("finish finished done stop complete completed exit end", "terminate"),
    **_row("fail impossible infeasible", "terminate", status="failure"),
    **_row("respond say", "answer"),
}
"""Name -> the tool's action, and the arguments that the name itself gives. A list is chosen from by clicking it and
typing the option."""
TOOLS = (*GRID_TOOLS, "computer")
"""Tools whose call holds an action of ours: Qwen's two, Anthropic's."""
ACTION_KEYS = ("action", "action_type", "type", "operation", "op", "name", "function")
NESTING_KEYS = ("next_action", "action", "function", "actions")
"""Of objects or lists that hold the action, or several."""
CALL_KEYS = ("arguments", "args", "parameters", "params", "input", "kwargs", "action_inputs", "action_input")
"""Of the object that holds the arguments beside the action's name."""

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "coordinate": (
        *("coordinate", "coordinates", "position", "point", "point_2d", "location", "pos", "xy", "center", "centre"),
    ),
    "x": ("x",),
    "y": ("y",),
    "box": ("box", "bbox", "bbox_2d", "bounding_box", "rect"),
    "corners": ("x1", "y1", "x2", "y2"),
    "start": (
        *("start_coordinate", "start_box", "start_point", "from", "start", "from_coord", "start_position", "start_pos"),
        *("from_point", "from_position"),
    ),
    "end": (
        *("coordinate2", "end_coordinate", "end_box", "end_point", "to", "end", "to_coord", "end_position", "end_pos"),
        *("destination", "dest", "to_point", "to_position", "target_coordinate", "point2", "coordinate_2"),
    ),
    "path": ("path", "points", "trajectory", "waypoints"),
    "x_start": ("start_x", "from_x", "x_start", "x_from", "x0"),
    "y_start": ("start_y", "from_y", "y_start", "y_from", "y0"),
    "x_end": ("end_x", "to_x", "x_end", "x_to", "x2", "destination_x"),
    "y_end": ("end_y", "to_y", "y_end", "y_to", "y2", "destination_y"),
    "button": ("button", "mouse_button"),
    "clicks": ("clicks", "num_clicks", "click_count", "count"),
    "text": ("text", "content", "value", "input", "message", "answer", "string", "response", "input_text"),
    "submit": ("enter", "submit", "press_enter"),
    "keys": (
        "keys",
        "key",
        "hotkey",
        "key_comb",
        "value",
        "text",
        "combo",
        "shortcut",
        "combination",
        "key_combination",
    ),
    "presses": ("presses", "repeat", "times", "count"),
    "modifiers": ("modifiers", "modifier", "hold_keys", "with_keys"),
    "direction": ("direction", "scroll_direction", "dir", "value", "text"),
    "pixels": ("pixels", "scroll_pixels"),
    "notches": ("notches", "clicks", "wheel_clicks"),
    "steps": ("scroll_amount", "step_count", "scroll_steps"),
    "pages": ("pages", "page", "num_pages"),
    "wheel_x": ("delta_x", "scroll_x"),
    "wheel_y": ("delta_y", "scroll_y"),
    "time": ("time", "seconds", "duration", "value", "secs", "delay"),
    "milliseconds": ("ms", "milliseconds", "millis", "duration_ms", "time_ms"),
    "status": ("status", "result", "goal_status", "success", "succeeded", "is_success", "is_successful"),
    "speed": ("duration", "time", "steps"),
}
"""For each argument its names, our own first. One word may name different arguments of different actions.

| argument | what it is |
|---|---|
| pixels | a length in the declared unit; above 0: up, or right |
| notches | of the wheel, whole ones, above 0: up, or right (pyautogui, also as `clicks`) |
| steps | of the wheel, without a sign: needs a direction (Anthropic's scroll_amount, CogAgent's step_count) |
| pages | of the screen, above 0: up, or right (Aguvis' `page`) |
| wheel_x, wheel_y | a browser's wheel event, in the declared unit: above 0 right and DOWN (OpenAI, Playwright) |
| speed | of a movement: how long it takes is no part of an action here |
"""
PLACE = ("coordinate", "start", "x", "y", "box", "corners")
AMOUNTS = ("pixels", "notches", "steps", "pages", "wheel_x", "wheel_y")
TAKES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(CLICKS, (*PLACE, "button", "clicks")),
    "mouse_move": (*PLACE, "speed"),
    "left_click_drag": (
        *(*PLACE, "end", "path", "x_start", "y_start", "x_end", "y_end"),
        *("button", "speed"),
    ),
    "type": (*PLACE, "text", "submit"),
    "key": ("keys", "presses", "modifiers"),
    **dict.fromkeys(("scroll", "hscroll"), (*PLACE, "direction", *AMOUNTS)),
    "wait": ("time", "milliseconds"),
    "terminate": ("status", "text"),
    "answer": ("text",),
}
"""The arguments of each action; all others are errors."""
_AMOUNT = "of notches, pixels or pages is not said; write notches or pixels"
_SIGN = "whether above 0 is up or down is not said; write pixels (above 0: up) or delta_y (above 0: down)"
_CORNER = "whether x and y are a corner or the middle is not said; write box as [x1, y1, x2, y2]"
_SCROLLS = {**dict.fromkeys(("amount", "distance", "scrolldistance", "dx"), _AMOUNT), "dy": _SIGN, "delta": _SIGN}
UNCLEAR: dict[str, dict[str, str]] = {
    **dict.fromkeys((*CLICKS, "mouse_move", "left_click_drag", "type"), dict.fromkeys(("width", "height"), _CORNER)),
    **dict.fromkeys(("scroll", "hscroll"), _SCROLLS),
    "wait": {"timeout": "of seconds or milliseconds is not said; write time or ms"},
}
"""Arguments, plain, that others use in more than one unit or sign, and the way out. They are errors like unknown ones."""
THOUGHTS = ("reasoning", "thought", "thoughts", "rationale")
REMARKS = ("target", "element", "description", "confidence", "label", "id", "step")
"""What annotators write beside an action, as text or a number; it is no argument of it."""
OTHER_REMARKS = (
    *("name", "comment", "note", "notes", "remark", "summary", "explanation", "reason", "intent", "goal", "index"),
    *("element_info", "element_type", "element_description", "element_id", "element_name", "role", "tag", "selector"),
    *("xpath", "css", "url", "title", "app", "window", "timestamp", "screenshot", "initial_screenshot", "image"),
    *("instruction", "task", "memory", "observation", "reflection", "conclusion", "expected", "score", "source"),
    *("call_id", "interval", "delay", "speed", "pause", "tween", "log_screenshot", "_pause", "episode_id"),
)
"""The same, but seldom: dropped under the name dropped_argument. How fast is no part of an action."""
REFERENCES = ("index", "element_id", "selector", "xpath", "css")
"""Those of them that say where: errors beside an action that has no place of its own."""
NOTHING = ("none", "null", "n/a", "no input text", "no input text [default]")
"""Texts that say, as "" does, that there is no such argument."""
CALL_TYPES = ("function", "tool_use", "tool_call", "function_call", "computer_call", "action", "completed")
"""What stands as `type` or `status` of an object that holds an action: what it is, not what it does."""

STATUSES = {
    **dict.fromkeys(("success", "successful", "done", "complete", "completed", "ok", "finished", "true"), "success"),
    **dict.fromkeys(("failure", "fail", "failed", "infeasible", "impossible", "error", "false"), "failure"),
}
DIRECTIONS = {"up": ("scroll", 1), "down": ("scroll", -1), "left": ("hscroll", -1), "right": ("hscroll", 1)}
DIRECTION_WORDS = {
    **{way: way for way in DIRECTIONS},
    **{f"scroll{way}": way for way in DIRECTIONS},
    **{f"{way}ward": way for way in DIRECTIONS},
    **{f"{way}wards": way for way in DIRECTIONS},
}
BUTTONS = {
    **dict.fromkeys(("left", "primary"), "left"),
    **dict.fromkeys(("right", "secondary"), "right"),
    **dict.fromkeys(("middle", "wheel"), "middle"),
}
"""By name alone: of numbers, 2 is pyautogui's middle and a browser's right button."""
CLICKED = {
    ("left", "1"): "left_click",
    ("left", "2"): "double_click",
    ("left", "3"): "triple_click",
    ("right", "1"): "right_click",
    ("middle", "1"): "middle_click",
}
SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
}
"""Units of a time that is written as text."""
