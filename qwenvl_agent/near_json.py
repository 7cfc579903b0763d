"""JSON as models write it: near-JSON is read, each mend under a name; and values are written as chat templates write them."""

import json
import re
import unicodedata
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed leaves it out
from typing import Any

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
    space = WHITESPACE.match(text, at)
    assert space is not None, "it matches nothing, too"
    return space.end()


def read_json(text: str, at: int, repairs: Repairs) -> tuple[Any, int]:
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
        if number.end() == len(text):
            raise ParseError("unclosed_call")  # it may go on
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
        value, end = scanstring(text, at + 1, False)
    except json.JSONDecodeError as error:
        raise ParseError("unclosed_call" if error.msg.startswith("Unterminated") else "json_error") from None
    if re.search(r"[\x00-\x1f]", text[at:end]):
        repairs.add("raw_newline")
    return value, end


def _unescape(inside: str) -> str:
    try:
        return scanstring(inside + '"', 0, False)[0]
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
    if comma and not here:
        raise ParseError("unclosed_call")  # an item was to follow
    if comma:
        repairs.add("trailing_comma")
    if here == closer:
        return at + 1, True
    repairs.add("missing_brace")
    return at, True


def json_text(value: object) -> str:
    """JSON as chat templates write it, except where that would not survive the tokenizer.

    A combining mark right after an escape (`\\n` + U+0303) would be composed by NFC into another letter (`\\ñ`), which
    is no JSON: such a value is written in ASCII.
    """
    text = json.dumps(value, ensure_ascii=False)
    return text if unicodedata.is_normalized("NFC", text) else json.dumps(value)


def json_pieces(value: object) -> Iterator[tuple[bool, str]]:
    """(is a value, text) of every key and leaf, in the order in which JSON writes them, without closing quotes.

    A value keeps its opening quote, because tokenizers join that with the first letters.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            yield False, json_text(key)[1:-1]
            yield from json_pieces(item)
    elif isinstance(value, list):
        for item in value:
            yield from json_pieces(item)
    else:
        yield True, json_text(value).removesuffix('"') if isinstance(value, str) else json_text(value)
