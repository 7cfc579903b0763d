"""Tools and calls of a conversation: what an assistant message says and calls, checked against the row's own tools."""

import json
from functools import lru_cache
from typing import Any

from qwenvl_agent.data.readers.chat.content import text_only
from qwenvl_agent.data.readers.chat.places import has_places
from qwenvl_agent.data.readers.chat.written_calls import plain_thought, read_written, refuse_calls
from qwenvl_agent.families import FAMILIES
from qwenvl_agent.families.calls import ARGUMENT_KEYS
from qwenvl_agent.json_input import read_json
from qwenvl_agent.schema import Tool, ToolCall, Turn, tool_named
from qwenvl_agent.tool_schema import argument_error, check_schema

CALL_KEYS = frozenset(("name", *ARGUMENT_KEYS, "type", "function", "id", "call_id", "index", "description", "status"))
"""Of a call: read, or without any bearing on what it does."""


def decoded(value: object, place: str) -> Any:
    """JSON given as a string is decoded; anything else is returned as it is."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError as error:
        raise ValueError(f"{place} is a string but {error}") from None


@lru_cache(maxsize=64)
def build_tools(tools_json: str) -> tuple[Tool, ...]:
    """Tools from OpenAI's or the flat form, as JSON text (so that the many rows with the same tools share them)."""
    entries = json.loads(tools_json)
    if not isinstance(entries, list):
        raise ValueError(f"tools is {entries!r}: no tool can be read; give a list")
    return tuple(_build_tool(entry, f"tools[{i}]") for i, entry in enumerate(entries))


def _build_tool(entry: Any, place: str) -> Tool:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{place} is {entry!r}: a tool without a name cannot be called; give name and parameters")
    tool = Tool.from_json(entry)
    try:
        check_schema(tool.parameters)
    except ValueError as error:
        raise ValueError(f"{place} parameters: {error}") from None
    return tool


def build_turn(message: dict, tools: tuple[Tool, ...]) -> tuple[Turn, list[str | None], tuple[str, ...]]:
    """The turn of an assistant message, the id of each of its calls, and notes of how it was read."""
    place = message["place"]
    # An assistant's words are supervised as they stand: `<image>` in them is text, not a placeholder.
    content = message["content"]
    thinking, text = split_thinking(content if isinstance(content, str) else text_only(message))
    listed = message.get("tool_calls") or message.get("function_call") or []
    calls = [_build_call(call, f"{place} tool_calls[{i}]") for i, call in enumerate(_as_list(listed))]
    notes: tuple[str, ...] = ()
    if calls:
        refuse_calls(text, tools, place)
        words, notes = plain_thought(text, place)
    else:
        words, calls, notes = read_written(text, tools, place)
    calls, num_left_out = _without_fillers(calls, tools)
    notes += ("null_arguments_left_out",) if num_left_out else ()
    for call, _ in calls:
        _check_call(call, tools, place)
    placed = [has_places(call, place) for call, _ in calls]
    notes += ("places_as_they_are_written",) if any(placed) else ()
    reasoning = message.get("reasoning_content") or ""
    if not isinstance(reasoning, str):
        raise ValueError(f"{place} reasoning_content is {str(reasoning)[:80]}: it cannot be read; give text")
    thought = "\n".join(part.strip() for part in (reasoning, thinking, words) if part.strip())
    if calls:
        ids = [call_id for _, call_id in calls]
        return Turn(thought=thought, tool_calls=tuple(call for call, _ in calls)), ids, notes
    if not text.strip():
        raise ValueError(f"{place} says nothing: there is nothing to learn; remove the message or write the answer")
    if reasoning or thinking:
        name = "reasoning_content" if reasoning else "a marked thought"
        raise ValueError(f"{place} has {name} without a call: no format writes it; put it into content")
    return Turn(text=text), [], notes


def split_thinking(text: str) -> tuple[str, str]:
    """What a text thinks before it speaks, between a family's marks, and the rest."""
    for family in FAMILIES.values():
        begin, end = family.template.think_begin, family.template.think_end
        before, mark, rest = text.partition(end)
        if mark and before.lstrip().startswith(begin):
            return before.strip().removeprefix(begin).strip(), rest
    return "", text


def _without_fillers(calls: list, tools: tuple[Tool, ...]) -> tuple[list, int]:
    """The calls without arguments that are null and that their tool has not, and the number of those.

    A table of calls of several tools has a column for each argument of any, and null where a call has none.
    """
    kept, num_left_out = [], 0
    for call, call_id in calls:
        tool = tool_named(tools, call.name) if None in call.arguments.values() else None
        properties = tool.parameters.get("properties") if tool else None
        if isinstance(properties, dict):
            known = {key: value for key, value in call.arguments.items() if value is not None or key in properties}
            num_left_out += len(call.arguments) - len(known)
            call = ToolCall(call.name, known)
        kept.append((call, call_id))
    return kept, num_left_out


def _as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _build_call(value: Any, place: str) -> tuple[ToolCall, str | None]:
    function = (value.get("function") or value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{place} is {str(value)[:80]!r}: a call without a name; give name and arguments")
    arguments = _arguments_of(function, place)
    # Servers write "" for a call without arguments.
    is_empty = arguments is None or (isinstance(arguments, str) and not arguments.strip())
    arguments = {} if is_empty else decoded(arguments, f"{place} arguments")
    return ToolCall(function["name"], arguments), value.get("id")


def _arguments_of(function: dict, place: str) -> Any:
    """What a call gives its function, under any of the names for it; ValueError for what would be lost."""
    given = [key for key in ARGUMENT_KEYS if function.get(key) is not None]
    lost = [key for key in function.keys() - CALL_KEYS if function[key] not in (None, "", [], {})]
    if len(given) > 1 or lost:
        raise ValueError(
            f"{place} has {', '.join(given + lost)}: what {function['name']} is to be given would be lost; give it as arguments"
        )
    return function[given[0]] if given else None


def _check_call(call: ToolCall, tools: tuple[Tool, ...], place: str) -> None:
    """ValueError if the row's own tools do not allow the call; a row without tools describes them in its prompt."""
    if not tools:
        return
    tool = tool_named(tools, call.name)
    if tool is None:
        names = ", ".join(tool.name for tool in tools)
        raise ValueError(f"{place} calls {call.name!r}, which is not one of the row's tools: use one of {names}")
    error = argument_error(tool.parameters, call.arguments)
    if error:
        raise ValueError(
            f"{place} arguments of {call.name} do not fit its schema ({error}): the agent would learn calls "
            "that fail; correct them"
        )
