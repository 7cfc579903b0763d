"""The safari tools as the agent sees them, and the check of a call against them."""

import json
from functools import cache, lru_cache

from jsonschema import Draft202012Validator

from qwenvl_agent.schema import Tool, ToolCall, tool_named
from qwenvl_agent.worlds.safari.world import DIRECTIONS

MAX_ACTIONS = 4
MAX_STEPS = 3
"""Of one action of a move."""
MAX_NOTEPAD_CHARS = 2000
MAX_TARGET_CHARS = 200
MAX_REASON_CHARS = 240
MAX_KNOWN_ARGUMENTS = 2**14
"""Calls in a dataset repeat: there are some 20,000 different moves."""

DIRECTION = {"type": "string", "enum": ["UP", "DOWN", "LEFT", "RIGHT"]}
assert set(DIRECTION["enum"]) == set(DIRECTIONS)


def _tool(name: str, description: str, required: list[str], **properties: dict) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return Tool(name, description, parameters)


MOVE = _tool(
    "move",
    f"Walk: 1 to {MAX_ACTIONS} actions in order, stopping at the first block.",
    ["actions"],
    actions={
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_ACTIONS,
        "items": {
            "type": "object",
            "properties": {
                "direction": DIRECTION,
                "steps": {"type": "integer", "minimum": 1, "maximum": MAX_STEPS},
            },
            "required": ["direction", "steps"],
            "additionalProperties": False,
        },
    },
)
CATCH = _tool("catch", "Catch the animal on the tile beside you.", ["direction"], direction=DIRECTION)
UPDATE_NOTEPAD = _tool(
    "update_notepad",
    "Replace the whole notepad.",
    ["content"],
    content={"type": "string", "maxLength": MAX_NOTEPAD_CHARS},
)
DECLARE_FOUND = _tool(
    "declare_found",
    "Say that a target was found, in the mission's words.",
    ["target"],
    target={"type": "string", "minLength": 1, "maxLength": MAX_TARGET_CHARS},
)
DECLARE_DONE = _tool(
    "declare_done",
    "End the mission when every target was found.",
    [],
    reason={"type": "string", "maxLength": MAX_REASON_CHARS},
)

TOOLS = {
    "reach": (MOVE, UPDATE_NOTEPAD, DECLARE_FOUND, DECLARE_DONE),
    "catch": (MOVE, CATCH, UPDATE_NOTEPAD, DECLARE_FOUND, DECLARE_DONE),
}
"""By rule set."""


@cache
def _validator(name: str) -> Draft202012Validator:
    tool = tool_named(TOOLS["catch"], name)
    assert tool is not None, name
    return Draft202012Validator(tool.parameters)


def argument_error(call: ToolCall) -> str:
    """Why the arguments of a known tool do not fit its schema; empty if they do."""
    # As text: 1, 1.0 and true are equal as keys, and not alike to a schema.
    return _argument_error(call.name, json.dumps(call.arguments))


@lru_cache(maxsize=MAX_KNOWN_ARGUMENTS)
def _argument_error(name: str, arguments: str) -> str:
    error = next(iter(_validator(name).iter_errors(json.loads(arguments))), None)
    if error is None:
        return ""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    return f"{name}{place}: {error.message[:200]}"
