"""Calls as elements, one for each argument, whose types the tool's schema says. Of Qwen3.5:

    <tool_call>
    <function=move>
    <parameter=actions>
    [{"direction": "RIGHT", "steps": 2}]
    </parameter>
    <parameter=note>
    two to the right
    </parameter>
    </function>
    </tool_call>

Text stands as it is, lists and objects as JSON, true, false and null as Python writes them. So `2` is a number or a text
as the schema of the argument says; where it leaves that open, what reads as another JSON value is that, and all else is
text. There is no escape: a text that holds one of these tags cannot be written, and is refused.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qwenvl_agent.families.calls import HERMES
from qwenvl_agent.families.family import GrammarRules
from qwenvl_agent.near_json import ParseError, Repairs, json_pieces, json_text, read_json, skip_space

MAX_NAME = 200
MARK = re.compile(
    rf"<(/?)(parameter|function)(=[^>\n]{{0,{MAX_NAME}}})?>|<(?:parameter|function)=[^>\n]{{0,{MAX_NAME}}}\Z"
)
"""A tag of a function or a parameter, whole or broken off at the end."""
WRITTEN = {True: "True", False: "False", None: "None"}
READ = {text: value for value, text in WRITTEN.items()}
JSON_LITERALS = {"true": True, "false": False, "null": None}
KINDS = ("string", "integer", "number", "boolean", "null", "array", "object")


@dataclass(frozen=True)
class ElementCalls:
    open: str = "<tool_call>"
    close: str = "</tool_call>"
    gap: str = "\n\n"
    between: str = "\n"
    bare: re.Pattern = re.compile(r"<function=(?P<name>[^>\n]{1,100})>")

    def write(self, name: str, arguments: Mapping) -> str:
        """ValueError for a text that holds a tag of this syntax, and for a name that is too long for one."""
        for word in (name, *arguments):
            if len(word) > MAX_NAME:
                raise ValueError(
                    f"the name {word[:40]!r}... has more than {MAX_NAME} characters: no tag holds it; shorten it"
                )
        return f"{self.open}\n<function={name}>\n{self.pieces(arguments)[0]}</function>\n{self.close}"

    def pieces(self, arguments: Mapping) -> tuple[str, Iterable[tuple[bool, str]]]:
        pairs = "".join(f"<parameter={key}>\n{written(value)}\n</parameter>\n" for key, value in arguments.items())
        parts: list[tuple[bool, str]] = []
        for key, value in arguments.items():
            is_leaf = not isinstance(value, (list, tuple, Mapping))
            parts += [(False, f"<parameter={key}>\n"), *([(True, written(value))] if is_leaf else json_pieces(value))]
        return pairs, parts

    def write_served(self, name: str, arguments: str) -> str:
        try:
            given = json.loads(arguments)
            return self.write(name, given if isinstance(given, dict) else {"": None})
        except (ValueError, RecursionError):
            return HERMES.write_served(name, arguments)

    def read(
        self, body: str, is_closed: bool, parameters_of: Callable[[str], Mapping], repairs: Repairs
    ) -> Iterator[tuple[object, object]]:
        at = skip_space(body, 0)
        if body[at : at + 1] in ("{", "["):
            repairs.add("json_call_in_elements")
            yield from HERMES.read(body, is_closed, parameters_of, repairs)
            return
        mark = MARK.search(body, at)
        if not mark:
            raise ParseError("json_error" if is_closed and body.strip() else "unclosed_call")
        if mark.start() > at:
            repairs.add("text_before_call")
        while mark:
            name, elements, mark = read_function(body, mark, is_closed, repairs)
            properties = parameters_of(name).get("properties", {})
            yield name, {key: typed(text, schema_of(properties, key), repairs) for key, text in elements.items()}
            if mark:
                repairs.add("missing_close_tag")

    def expression(self, name: str, parameters: dict, rules: GrammarRules) -> str:
        def pair(key: str, schema: object) -> str:
            start = rules.literal(f"<parameter={key}>\n")
            return f"{start} {value_expression(schema, f'tool {name}, {key}', rules)}"

        members = rules.members(parameters, pair, f"tool {name}")
        start, end = f"{self.open}\n<function={name}>\n", f"</function>\n{self.close}"
        return f"{rules.literal(start)} {members} {rules.literal(end)}"


def written(value: object) -> str:
    """As the chat template writes an argument."""
    if value is None or isinstance(value, bool):
        return WRITTEN[value]
    text = json_text(value) if isinstance(value, (list, tuple, Mapping)) else str(value)
    found = MARK.search(text) if "<" in text else None
    if found:
        raise ValueError(
            f"an argument holds {found.group()!r}, which would end it or begin another: this model's syntax of calls "
            "has no escape; reword the text, or leave the row out"
        )
    return text


def read_function(
    body: str, mark: re.Match, is_closed: bool, repairs: Repairs
) -> tuple[str, dict[str, str], re.Match | None]:
    """(name, text of each argument) of the function that begins at `mark`, and where another one begins."""
    name = opened(mark, "function", is_closed)
    elements: dict[str, str] = {}
    next_mark = MARK.search(body, mark.end())
    check_gap(body, mark, next_mark, repairs)
    while next_mark and next_mark[2] == "parameter":
        if next_mark[1]:
            raise ParseError("json_error")  # an end without a beginning
        key, text, after = read_parameter(body, next_mark, is_closed, repairs)
        if key in elements:
            raise ParseError("json_error")  # which holds is unknown
        elements[key] = text
        next_mark = after
    if next_mark and next_mark[2] == "function" and next_mark[1]:
        following = MARK.search(body, next_mark.end())
        if body[next_mark.end() : following.start() if following else len(body)].strip():
            repairs.add("text_after_call")
        return name, elements, following
    if next_mark and next_mark[2] is None:
        raise ParseError("unclosed_call")
    repairs.add("missing_function_end")
    if not next_mark and not is_closed and not elements:
        raise ParseError("unclosed_call")
    return name, elements, next_mark


def read_parameter(body: str, mark: re.Match, is_closed: bool, repairs: Repairs) -> tuple[str, str, re.Match | None]:
    """(key, text) of the element that begins at `mark`, and the mark after it."""
    key = opened(mark, "parameter", is_closed)
    end = MARK.search(body, mark.end())
    if end is None and not is_closed or end is not None and end[2] is None:
        raise ParseError("unclosed_call")
    text = body[mark.end() : end.start() if end else len(body)]
    if not (text.startswith("\n") and text.endswith("\n") and len(text) > 1):
        repairs.add("inline_value")
    text = text.removeprefix("\n").removesuffix("\n")
    if end and end[1] and end[2] == "parameter":
        after = MARK.search(body, end.end())
        check_gap(body, end, after, repairs)
        return key, text, after
    repairs.add("missing_parameter_end")
    return key, text, end


def opened(mark: re.Match, kind: str, is_closed: bool) -> str:
    """The name in an opening tag; ParseError for any other."""
    if mark[2] is None:
        raise ParseError("bad_name" if is_closed else "unclosed_call")
    if mark[2] != kind or mark[1] or not mark[3]:
        raise ParseError("json_error")
    return mark[3][1:]


def check_gap(body: str, mark: re.Match, after: re.Match | None, repairs: Repairs) -> None:
    if body[mark.end() : after.start() if after else len(body)].strip():
        repairs.add("text_between_elements")


# values by their types


def schema_of(properties: object, key: str) -> object:
    return properties.get(key) if isinstance(properties, Mapping) else None


def kinds_of(schema: object) -> set[str]:
    """The types that a schema allows; all of them where it does not say."""
    if not isinstance(schema, Mapping):
        return set(KINDS)
    options = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(options, list):
        return {kind_of(option) for option in options}
    if isinstance(schema.get("anyOf"), list):
        return set().union(*map(kinds_of, schema["anyOf"]))
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    return set(kind) if isinstance(kind, list) and all(isinstance(one, str) for one in kind) else set(KINDS)


def kind_of(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (list, tuple)):
        return "array"
    return "object" if isinstance(value, Mapping) else "integer" if isinstance(value, int) else "number"


def typed(text: str, schema: object, repairs: Repairs) -> object:
    """The value that a text is of, by its schema. A text that no other type fits stays a text, for the schema to refuse."""
    kinds = kinds_of(schema)
    if kinds == {"string"}:
        return text
    for literals, repair in ((READ, ""), (JSON_LITERALS, "json_literals")):
        if text in literals and kind_of(literals[text]) in kinds and (not repair or "string" not in kinds):
            if repair:
                repairs.add(repair)
            return literals[text]
    tried = Repairs()
    try:
        value, end = read_json(f"{text}\n", 0, tried)
    except ParseError as error:
        if "string" in kinds or not kinds & {"array", "object"}:
            return text
        raise ParseError("json_error" if error.name == "unclosed_call" else error.name) from None
    is_exact = not tried and not text[end:].strip() and text == text.strip() and written_alike(value, text)
    if "string" in kinds:
        fits = is_exact and (kind_of(value) in kinds or (kind_of(value) == "integer" and "number" in kinds))
        return value if fits and not isinstance(value, str) else text
    if text[end:].strip() or isinstance(value, str):
        return text if not kinds & {"array", "object"} else fail()
    for name in tried:
        repairs.add(name)
    return value


def fail() -> object:
    raise ParseError("json_error")


def written_alike(value: object, text: str) -> bool:
    """Whether a value would be written so: `1.50` or `[1,2]` where a text may stand too is one."""
    return not isinstance(value, str) and written(value) == text


def value_expression(schema: object, where: str, rules: GrammarRules) -> str:
    """Of an argument's text and its end, for constrained decoding."""
    end = "\n</parameter>\n"
    kinds = kinds_of(schema)
    options = schema.get("enum") if isinstance(schema, Mapping) and "const" not in schema else None
    if isinstance(options, list):
        return f"({' | '.join(rules.literal(written(option)) for option in options)}) {rules.literal(end)}"
    if "string" in kinds:
        return rules.text_before(end, MARK_IN_TEXT, schema, where)
    parts = [rules.literal(text) for text, value in READ.items() if kind_of(value) in kinds]
    others = kinds - {"boolean", "null"}
    if others:
        parts.append(rules.value(schema if not kinds & {"boolean", "null"} else without_literals(schema), where))
    return f"({' | '.join(parts)}) {rules.literal(end)}"


MARK_IN_TEXT = r"<\/?(parameter|function)(=[^>\n]{0,200})?>"


def without_literals(schema: object) -> object:
    assert isinstance(schema, Mapping)
    kind = schema.get("type")
    if not isinstance(kind, list):
        return schema
    return {**schema, "type": [one for one in kind if one not in ("boolean", "null")]}
