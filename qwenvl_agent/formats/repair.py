"""Mending of what models get wrong, each mend under a name of its own; nothing is mended where the text is right.

| repair | what was mended |
|---|---|
| code_fence | ``` lines around calls, removed |
| text_before_call, text_between_calls, text_after_call | words where only calls belong, dropped |
| missing_open_tag, missing_close_tag | a call without <tool_call>, without </tool_call> |
| native_call_in_plain, plain_call_in_native | calls in the other syntax |
| missing_thought_marker, missing_action_marker | a thought without "Thought:", a call without "Action:" |
| marker_in_thought | "Thought:" or "Action:" at the start of a thought's line, removed |
| missing_parentheses, positional_argument | plain: `name` for `name()`, `name(value)` for `name(argument=value)` |
| missing_brace, extra_brace | a closing }, ] or ) too few or too many |
| single_quotes, python_literals, trailing_comma, raw_newline | near-JSON |
| arguments_as_string | arguments given as a string that holds JSON |
| missing_arguments | a call without the key "arguments": none |
| list_arguments_wrapped | a list for a tool whose one required argument is a list |
| missing_actions_key | one item's keys for a tool whose one required argument is a list of such items |
| string_number | "2" or 2.0 where the tool's schema says integer |
"""

import json
import re
from collections.abc import Mapping

from qwenvl_agent.schema import Tool

MAX_DEPTH = 64
WHITESPACE = re.compile(r"[ \t\r\n]*")
NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
LITERAL = re.compile(r"[A-Za-z]+")
LITERALS = {"true": True, "false": False, "null": None}
PYTHON_LITERALS = {"True": True, "False": False, "None": None}
SINGLE_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)


class ParseError(Exception):
    """Why an answer cannot be read; `name` is one of the errors of `formats`."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


class Repairs(list):
    """Names of repairs in the order of their first use."""

    def add(self, name: str) -> None:
        if name not in self:
            self.append(name)


def _refuse_constant(name: str) -> None:
    raise ParseError("bad_arguments")


def _object(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ParseError("json_error")  # a key is there twice: which holds is unknown
    return value


STRICT = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object)


def skip_space(text: str, at: int) -> int:
    return WHITESPACE.match(text, at).end()


def read_json(text: str, at: int, repairs: Repairs) -> tuple[object, int]:
    """The JSON value at `at` and where it ends; near-JSON is mended, ParseError otherwise."""
    at = skip_space(text, at)
    try:
        return STRICT.raw_decode(text, at)
    except (ValueError, RecursionError):
        tried = Repairs()
        value, end = _read_value(text, at, tried, 0)
        for name in tried:
            repairs.add(name)
        return value, end


def _read_value(text: str, at: int, repairs: Repairs, depth: int) -> tuple[object, int]:
    if at >= len(text):
        raise ParseError("unclosed_call")
    if depth > MAX_DEPTH:
        raise ParseError("json_error")
    first = text[at]
    if first == "{":
        return _read_object(text, at + 1, repairs, depth)
    if first == "[":
        return _read_array(text, at + 1, repairs, depth)
    if first in "\"'":
        return _read_string(text, at, repairs)
    if number := NUMBER.match(text, at):
        return STRICT.decode(_short(number.group())), number.end()
    word = LITERAL.match(text, at)
    if word and word.group() in LITERALS:
        return LITERALS[word.group()], word.end()
    if word and word.group() in PYTHON_LITERALS:
        repairs.add("python_literals")
        return PYTHON_LITERALS[word.group()], word.end()
    raise ParseError("json_error")


def _short(number: str) -> str:
    # Python refuses to read integers of more than 4300 digits.
    if len(number) > 1000:
        raise ParseError("bad_arguments")
    return number


def _read_string(text: str, at: int, repairs: Repairs) -> tuple[str, int]:
    if text[at] == "'":
        match = SINGLE_QUOTED.match(text, at)
        if not match:
            raise ParseError("unclosed_call")
        repairs.add("single_quotes")
        inside = match.group(1).replace("\\'", "'")
        inside = re.sub(r'(\\.)|"', lambda m: m.group(1) or '\\"', inside, flags=re.DOTALL)
        return _unescape(inside), match.end()
    try:
        value, end = json.decoder.scanstring(text, at + 1, False)
    except json.JSONDecodeError as error:
        raise ParseError("unclosed_call" if error.msg.startswith("Unterminated") else "json_error") from None
    if re.search(r"[\x00-\x1f]", text[at:end]):
        repairs.add("raw_newline")
    return value, end


def _unescape(inside: str) -> str:
    try:
        return json.decoder.scanstring(inside + '"', 0, False)[0]
    except json.JSONDecodeError:
        raise ParseError("json_error") from None


def _read_object(text: str, at: int, repairs: Repairs, depth: int) -> tuple[dict, int]:
    values: dict = {}
    while True:
        at, closed = _next_item(text, at, "}", bool(values), repairs)
        if closed:
            return values, at
        if text[at] not in "\"'":
            raise ParseError("json_error")
        key, at = _read_string(text, at, repairs)
        at = skip_space(text, at)
        if text[at : at + 1] != ":":
            raise ParseError("json_error" if at < len(text) else "unclosed_call")
        if key in values:
            raise ParseError("json_error")
        values[key], at = _read_value(text, skip_space(text, at + 1), repairs, depth + 1)


def _read_array(text: str, at: int, repairs: Repairs, depth: int) -> tuple[list, int]:
    values: list = []
    while True:
        at, closed = _next_item(text, at, "]", bool(values), repairs)
        if closed:
            return values, at
        value, at = _read_value(text, at, repairs, depth + 1)
        values.append(value)


def _next_item(text: str, at: int, closer: str, has_items: bool, repairs: Repairs) -> tuple[int, bool]:
    """Past the comma to the next item, or past the closer (True). Another bracket's closer, or the end, closes too."""
    at = skip_space(text, at)
    comma = has_items and text[at : at + 1] == ","
    if comma:
        at = skip_space(text, at + 1)
    here = text[at : at + 1]
    if here and here not in "}])":
        if has_items and not comma:
            raise ParseError("json_error")
        return at, False
    if comma:
        repairs.add("trailing_comma")
    if here == closer:
        return at + 1, True
    repairs.add("missing_brace")
    return at, True


def fit_arguments(arguments: object, tool: Tool | None, repairs: Repairs) -> dict:
    """The arguments as an object, mended by the tool's schema where that says how; ParseError if they are none."""
    if isinstance(arguments, str):
        repairs.add("arguments_as_string")
        arguments, end = read_json(arguments, 0, repairs)
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


def _fit_numbers(value: object, schema: object, repairs: Repairs) -> object:
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
