"""The computer_use tool as the agent sees it, after the schema that Qwen3-VL was trained with.

Names, arguments and signs are Qwen's own (`computer_use` in its cookbook); all lengths are on the model's grid, so that
`pixels` of a scroll are thousandths of the screen as coordinates are. One table says which action takes what.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jsonschema import Draft202012Validator

from qwenvl_agent.coordinates import GRID
from qwenvl_agent.schema import Tool

NAME = "computer_use"
GRID_TOOLS = (NAME, "mobile_use")
"""Qwen's tools whose places are on the model's grid."""
PLACE_KEYS = ("start_coordinate", "coordinate", "coordinate2")
"""Of a call of theirs."""
STATUSES = ("success", "failure")
MAX_TEXT_CHARS = 2000
MAX_KEYS = 5
MAX_WAIT_SECONDS = 60


@dataclass(frozen=True)
class Kind:
    """What an action does, the arguments that it must have, and those that it may have."""

    meaning: str
    needs: tuple[str, ...] = ()
    may_have: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "key": Kind("Press the keys in order, release them in reverse order.", ("keys",)),
    "type": Kind("Type text on the keyboard.", ("text",)),
    "mouse_move": Kind("Move the pointer to the coordinate.", ("coordinate",)),
    "left_click": Kind("Click the left button at the coordinate.", ("coordinate",)),
    "left_click_drag": Kind(
        "Press the left button where the pointer is, drag to the coordinate, release.", ("coordinate",)
    ),
    "right_click": Kind("Click the right button at the coordinate.", ("coordinate",)),
    "middle_click": Kind("Click the middle button at the coordinate.", ("coordinate",)),
    "double_click": Kind("Double-click the left button at the coordinate.", ("coordinate",)),
    "triple_click": Kind("Triple-click the left button at the coordinate.", ("coordinate",)),
    "scroll": Kind("Turn the wheel, where the pointer is or at the coordinate.", ("pixels",), ("coordinate",)),
    "hscroll": Kind("Scroll sideways, where the pointer is or at the coordinate.", ("pixels",), ("coordinate",)),
    "wait": Kind("Wait for the page to change.", ("time",)),
    "terminate": Kind("End the task and say whether it is done.", ("status",)),
    "answer": Kind("Answer a question.", ("text",)),
}
CLICKS = ("left_click", "right_click", "middle_click", "double_click", "triple_click")

ARGUMENTS: dict[str, dict] = {
    "keys": {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
        "maxItems": MAX_KEYS,
        "description": 'Such as ["ctrl", "a"].',
    },
    "text": {"type": "string", "maxLength": MAX_TEXT_CHARS},
    "coordinate": {**GRID.schema, "description": "[x, y]: from the left edge, from the top edge."},
    "pixels": {"type": "integer", "description": "How far; above 0: scroll up, hscroll right; below 0: down, left."},
    "time": {"type": "number", "minimum": 0, "maximum": MAX_WAIT_SECONDS, "description": "Seconds."},
    "status": {"type": "string", "enum": list(STATUSES)},
}
"""JSON schema of each argument but `action`, in the order in which calls are written."""


def build_tool(kinds: Sequence[str] = tuple(KINDS)) -> Tool:
    """computer_use with these actions only, and only the arguments that they take: a small tool makes a short prompt."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"action {unknown or '(none)'} does not exist: no tool offers it; use {', '.join(KINDS)}")
    kinds = [kind for kind in KINDS if kind in kinds]
    properties = {"action": {"type": "string", "enum": kinds, "description": "\n".join(_line(kind) for kind in kinds)}}
    for name, schema in ARGUMENTS.items():
        users = [kind for kind in kinds if name in KINDS[kind].needs]
        if users:
            needed = f"Required by {', '.join(users)}." if len(kinds) > 1 else ""
            description = " ".join(filter(None, (schema.get("description"), needed)))
            properties[name] = {**schema, "description": description} if description else schema
    parameters = {"type": "object", "properties": properties, "required": ["action"], "additionalProperties": False}
    return Tool(NAME, f"Use the mouse and the keyboard.\n* {GRID.prompt_line}", parameters)


def _line(kind: str) -> str:
    return f"* `{kind}`: {KINDS[kind].meaning}"


COMPUTER_USE = build_tool()


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(COMPUTER_USE.parameters)


def argument_error(arguments: dict) -> tuple[str, str]:
    """(name, message) of why these are no arguments of computer_use; ("", "") if they are.

    unknown_action, missing_argument, extra_argument (one that the action does not take), bad_argument.
    """
    kind = arguments.get("action")
    if not isinstance(kind, str) or kind not in KINDS:
        return "unknown_action", f"action is {str(kind)[:60]!r}, which does not exist: use one of {', '.join(KINDS)}"
    missing = [name for name in KINDS[kind].needs if name not in arguments]
    if missing:
        return "missing_argument", f"{kind} lacks {missing[0]}: nothing is done; give it"
    extra = [name for name in arguments if name not in ("action", *KINDS[kind].needs, *KINDS[kind].may_have)]
    if extra:
        return "extra_argument", f"{kind} takes no {extra[0][:60]!r}: nothing is done; leave it out"
    error = next(iter(_validator().iter_errors(arguments)), None)
    if error is None:
        return "", ""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    # The value stands first in the message, what is wrong with it last.
    text = error.message if len(error.message) <= 200 else f"{error.message[:80]}...{error.message[-80:]}"
    return "bad_argument", f"{NAME}{place}: {text}"
