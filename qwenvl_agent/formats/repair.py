"""Mending of what models get wrong, each mend under a name of its own; nothing is mended where the text is right.

| repair | what was mended |
|---|---|
| code_fence | ``` lines around calls, removed |
| text_before_call, text_between_calls, text_after_call | words where only calls belong, dropped |
| missing_open_tag, missing_close_tag | a call without <tool_call>, without </tool_call> |
| native_call_in_plain, plain_call_in_native | calls in the other syntax |
| missing_thought_marker, missing_action_marker | a thought without "Thought:", a call without "Action:" |
| missing_think_end, repeated_think_tag | think: a thought that goes over into a call; <think> again, which the prompt has |
| dropped_thought | think: what was thought before free text, which has no thought in the schema |
| empty_thought | "Thought:" with nothing behind it |
| other_action_line | hybrid: something else than the calls' names behind "Action:" |
| marker_in_thought | "Thought:" or "Action:" at the start of a thought's line, removed |
| missing_parentheses, positional_argument | plain: `name` for `name()`, `name(value)` for `name(argument=value)` |
| missing_brace, extra_brace | a closing }, ] or ) too few or too many |
| single_quotes, python_literals, trailing_comma, raw_newline | near-JSON |
| arguments_as_string | arguments given as a string that holds JSON |
| missing_arguments | a call without the key "arguments", and with no other: none |
| renamed_arguments | "parameters", "args", "params", "input" or "kwargs" for "arguments" |
| nested_call, list_of_calls | {"function": {...}}; [{...}, {...}]: each is a call |
| dropped_key, dropped_remark | beside name and arguments: an id or a type; a thought or a description |
| action_input | ReAct: the arguments on the line after the name, behind "Action Input:" |
| list_arguments_wrapped | a list for a tool whose one required argument is a list |
| missing_actions_key | one item's keys for a tool whose one required argument is a list of such items |
| string_number | "2" or 2.0 where the tool's schema says integer |
| json_call_in_elements, json_literals | calls as elements: a call as JSON; `true`, `false`, `null` for `True`, `False`, `None` |
| inline_value | calls as elements: an argument that has no lines of its own |
| missing_function_end, missing_parameter_end | calls as elements: </function>, </parameter> |
| text_between_elements | calls as elements: words where only arguments belong, dropped |
"""

import re
from collections.abc import Mapping
from typing import Any

from qwenvl_agent.near_json import ParseError, Repairs, read_json
from qwenvl_agent.schema import Tool


def fit_arguments(arguments: object, tool: Tool | None, repairs: Repairs) -> dict:
    """The arguments as an object, mended by the tool's schema where that says how; ParseError if they are none."""
    if isinstance(arguments, str):
        repairs.add("arguments_as_string")
        text = arguments
        arguments, end = read_json(text, 0, repairs)
        if text[end:].strip():
            raise ParseError("bad_arguments")
    schema = tool.parameters if tool else {}
    listed = _only_required_list(schema)
    if isinstance(arguments, list) and listed:
        repairs.add("list_arguments_wrapped")
        arguments = {listed: arguments}
    if not isinstance(arguments, dict):
        raise ParseError("bad_arguments")
    if listed and _is_one_item(arguments, listed, schema):
        repairs.add("missing_actions_key")
        arguments = {listed: [arguments]}
    return _fit_numbers(arguments, schema, repairs)


def only_required(schema: Mapping) -> str:
    """The name of the one required argument, "" if there are none or several."""
    required = schema.get("required", ())
    return required[0] if len(required) == 1 else ""


def _only_required_list(schema: Mapping) -> str:
    name = only_required(schema)
    return name if _property(schema, name).get("type") == "array" else ""


def _property(schema: Mapping, name: str) -> Mapping:
    found = schema.get("properties", {}).get(name, {})
    return found if isinstance(found, Mapping) else {}


def _is_one_item(arguments: dict, listed: str, schema: Mapping) -> bool:
    item = _property(schema, listed).get("items", {})
    if not isinstance(item, Mapping):  # true or false: any items, or none
        return False
    if not arguments or any(key in schema.get("properties", {}) for key in arguments):
        return False
    return set(arguments) <= set(item.get("properties", ())) and set(item.get("required", ())) <= set(arguments)


def _fit_numbers(value: Any, schema: object, repairs: Repairs) -> Any:
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, dict):
        return {key: _fit_numbers(item, _property(schema, key), repairs) for key, item in value.items()}
    if isinstance(value, list):
        return [_fit_numbers(item, schema.get("items"), repairs) for item in value]
    if schema.get("type") != "integer":
        return value
    is_digits = isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value)
    is_whole = isinstance(value, float) and value.is_integer()
    if not is_digits and not is_whole:
        return value
    repairs.add("string_number")
    return int(value)
