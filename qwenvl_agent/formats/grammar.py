"""What a format's answers look like, as a grammar for constrained decoding (`eval.constrained`).

A grammar is cut out of what the format's own renderer writes of a turn of placeholders, so renderer and grammar cannot
part: it allows exactly the renderer's spelling, JSON's spaces included, with any thought and at least one call of the
tools. Its language is llguidance's variant of Lark, https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md

Arguments come in any order, the named ones only, each at most once, the required ones all; their values fit the tool's
JSON schema. What a parser would refuse or mend is left out of texts: control tokens, spelled or escaped, and markers at
the start of a line. Numbers stay in the range of a float. A keyword of a schema that is not held here is an error.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from qwenvl_agent.families import Family, control_words
from qwenvl_agent.schema import TOOL_NAME, Tool, ToolCall, Turn, check_written_json

THOUGHT, NAME, KEY = "x_thought", "x_name", "x_key"
EMPTY = '""'
MAX_ARGUMENTS = 60
MAX_DEPTH = 32
"""Of a value whose schema says nothing."""
FAR = 10**15
"""The bound of a number for which the schema gives only the other one."""

# The tokens' spellings; K also as the Kelvin sign, which NFC makes a K.
CONTROL = rf"<(\|([A-Za-z0-9_\x{{212A}}]|\\u212[aA])+\||/?({'|'.join(control_words())}))>".replace("/", r"\/")
HEX = "[0-9a-fA-F]"
# No escape of printable ASCII, which could hide a control token, and none of half a character.
ESCAPE = (
    rf'["\\bfnrt]|u(00[01]{HEX}|007[fF]|00[89a-fA-F]{HEX}|0[1-9a-fA-F]{HEX}{{2}}|[1-9a-cA-C]{HEX}{{3}}|[dD][0-7]{HEX}{{2}}'
    rf"|[eEfF]{HEX}{{3}}|[dD][89abAB]{HEX}{{2}}\\u[dD][c-fC-F]{HEX}{{2}})"
)
# EVERYTHING is spelled so that what follows a hit is seen to be nothing at once; with .* the regex engine tries all the
# lengths that a string may have.
OPTIONS = '%llguidance {"no_forcing": true}\n'
"""Forced text would have to be written in tokens that end where it ends: a longer token, which a model learned, is lost."""
TERMINALS = rf"""
NOTHING: /a/ & /b/
EVERYTHING: ~NOTHING
CONTROL: /(?s:.*){CONTROL}/ EVERYTHING
MARKED: /((?s:.*)\n)?[ \t]*(Thought|Action):/ EVERYTHING
CHAR: /[^"\\\x00-\x1f]|\\({ESCAPE})/
STRING: "\"" CHAR* "\"" & ~CONTROL
INTEGER: /-?(0|[1-9][0-9]{{0,299}})/
NUMBER: /-?(0|[1-9][0-9]{{0,299}})(\.[0-9]{{1,299}})?|-?[0-9](\.[0-9]{{1,299}})?[eE](\+?([0-9]{{1,2}}|[12][0-9]{{2}}|30[0-7])|-[0-9]{{1,3}})/
BODY: /[^\s\x1c-\x1f](?s:.*)/ & ~CONTROL & ~MARKED
separator::_: "" %if is_zeros(_)
    | ", " %if not(is_zeros(_))
json: value::0
value::_: STRING | NUMBER | "true" | "false" | "null" | "[]" | "{{}}"
    | "[" value::incr(_) (", " value::incr(_))* "]" %if lt(_, {MAX_DEPTH})
    | "{{" STRING ": " value::incr(_) (", " STRING ": " value::incr(_))* "}}" %if lt(_, {MAX_DEPTH})
"""
ANNOTATIONS = {"title", "description", "default", "examples", "format", "deprecated", "$comment", "$schema"}
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
}


class Rules:
    """The rules of one grammar, by name: `families.family.GrammarRules`, for the syntax of a family's calls."""

    def __init__(self, tags: Sequence[str] = ()):
        """`tags` are tokens of their own: a grammar names them in place of their letters."""
        self.tags = tags
        self.bodies: dict[str, str] = {}

    def new_name(self, stem: str) -> str:
        return f"{stem}_{len(self.bodies)}"

    def add(self, stem: str, body: str) -> str:
        """The name of a new rule of this body."""
        name = self.new_name(stem)
        self.bodies[name] = body
        return name

    def literal(self, text: str) -> str:
        """Text as it stands; a tag is its token."""
        return sequence(*(part if part in self.tags else literal(part) for part in self.cut(text)))

    def cut(self, text: str) -> list[str]:
        """Text and tags in turn, text first."""
        return re.split(f"({'|'.join(map(re.escape, self.tags))})", text) if self.tags else [text]

    def value(self, schema: object, where: str) -> str:
        return value_expression(schema, where, self)

    def members(self, parameters: dict, pair: Callable[[str, object], str], where: str) -> str:
        keys, num_required = argument_keys(parameters, where)
        return members_expression(keys, num_required, lambda key: pair(key, parameters["properties"][key]), "", self)

    def text_before(self, end: str, stop: str, schema: object, where: str) -> str:
        check_keywords(schema if isinstance(schema, dict) else {}, "string", where, ("anyOf",))
        least, most = (
            (schema.get(key, "") for key in ("minLength", "maxLength")) if isinstance(schema, dict) else ("", "")
        )
        text = rf"(?s:.){{{least or 0},{most}}}" if least != "" or most != "" else "(?s:.)*"
        last = json.dumps(end)[1:-1].replace("/", r"\/")
        # A match that anything but the end's last newline follows: nothing can, so that the text is seen to end there.
        return self.add("TEXT", rf"/{text}{last}/ & ~(/(?s:.*){stop}([^\n]|\n(?s:.))/ EVERYTHING) & ~CONTROL")

    def json_call(self, name: str, parameters: dict, write: Callable[[str, Mapping], str]) -> str:
        return call_expression(name, parameters, write, self)

    def text(self) -> str:
        return "".join(f"{name}: {body}\n" for name, body in self.bodies.items())


class Calls(Protocol):
    """The part of a `families.CallSyntax` that a grammar is made with."""

    def write(self, name: str, arguments: Mapping) -> str: ...

    def expression(self, name: str, parameters: dict, rules: Rules) -> str: ...


def turn_grammar(render: Callable[[Turn], list], calls: Calls, tools: Sequence[Tool], family: Family) -> str:
    """The grammar of all turns with calls of `tools` that `render` writes, each call as `calls` writes it.

    ValueError names the tool whose schema has what no grammar here can hold.
    """
    assert tools, "without tools an answer is free text"
    placeholder = ToolCall(NAME, {KEY: 0})
    one = calls.write(NAME, {KEY: 0})

    def before_calls(thought: str, num_calls: int) -> tuple[str, str]:
        """What stands before the first call, and between the first two."""
        text = "".join(span.text for span in render(Turn(thought, (placeholder,) * num_calls)))
        *parts, end = text.split(one)
        assert end == "", f"{text!r} ends with more than its calls, so its grammar would end too early"
        return parts[0], parts[1] if num_calls > 1 else ""

    head_of_two, between = before_calls("", 2)
    between_names = head_of_two.partition(NAME)[2].partition(NAME)[0]
    rules = Rules(family.tag_tokens())
    name = rules.add("name", " | ".join(literal(tool.name) for tool in tools))
    names = rules.add("names", f"{name} ({rules.literal(between_names)} {name})*" if between_names else name)
    heads = {before_calls(thought, 1)[0] for thought in (THOUGHT, "")}  # one where thoughts are not written
    head = rules.add("head", " | ".join(sorted(head_expression(text, names, rules) for text in heads)))
    call = rules.add("call", " | ".join(calls.expression(tool.name, tool.parameters, rules) for tool in tools))
    return f"{OPTIONS}start: {head} {call} ({rules.literal(between)} {call})*\n{rules.text()}{TERMINALS}"


def head_expression(text: str, names: str, rules: Rules) -> str:
    """Of what stands before the calls: a thought of any words, the names of tools of the world."""
    before, thought, rest = text.partition(THOUGHT)
    if not thought:
        return names_expression(text, names, rules)
    # The text after a thought belongs to the thought's own terminal, which otherwise would not know where to end. A tag
    # ends it by itself, and can be in no terminal.
    after, name, rest = rest.partition(NAME)
    after, *tagged = rules.cut(after)
    terminal = rules.add("THOUGHT", sequence(rules.literal(before), "BODY", rules.literal(after)))
    return sequence(terminal, rules.literal("".join(tagged)), names_expression(name + rest, names, rules))


def names_expression(text: str, names: str, rules: Rules) -> str:
    before, name, after = text.partition(NAME)
    return sequence(rules.literal(before), names, rules.literal(after)) if name else rules.literal(before)


def call_expression(name: str, parameters: dict, write: Callable[[str, Mapping], str], rules: Rules) -> str:
    text = write(name, {KEY: 0})
    without = write(name, {})
    start = next(i for i, (a, b) in enumerate(zip(text, without, strict=False)) if a != b)
    before, after = without[:start], without[start:]
    pair = text.removeprefix(before).removesuffix(after)
    assert pair.endswith("0") and KEY in pair, f"{text!r} is no call with one argument"
    arguments = pairs_expression(parameters, pair.removesuffix("0"), f"tool {name}", rules)
    return sequence(rules.literal(before), arguments, rules.literal(after))


def pairs_expression(schema: dict, pair: str, where: str, rules: Rules) -> str:
    """Of an object's members in any order, without braces; `pair` is how the start of one is written, KEY its key."""
    keys, num_required = argument_keys(schema, where)
    for key in keys if pair else ():
        if KEY + "=" in pair and not TOOL_NAME.fullmatch(key):
            raise ValueError(f"{where} has the argument {key!r}, which no call can carry; rename it")

    def member(key: str) -> str:
        return (
            f"{literal(pair.replace(KEY, key))} {value_expression(schema['properties'][key], f'{where}, {key}', rules)}"
        )

    return members_expression(keys, num_required, member, "separator::_ ", rules)


def argument_keys(schema: dict, where: str) -> tuple[list[str], int]:
    """The names of an object's members, the required ones first, and how many those are."""
    check_keywords(schema, "object", where)
    properties = schema.get("properties", {})
    required = [key for key in properties if key in schema.get("required", ())]
    lost = [key for key in schema.get("required", ()) if key not in properties]
    if lost:
        raise ValueError(f"{where} requires {lost[0]!r} and does not describe it: nothing fits; add it to properties")
    if len(properties) > MAX_ARGUMENTS:
        raise ValueError(f"{where} has {len(properties)} arguments, the grammar counts {MAX_ARGUMENTS}: split the tool")
    return required + [key for key in properties if key not in required], len(required)


def members_expression(
    keys: Sequence[str], num_required: int, member: Callable[[str], str], separator: str, rules: Rules
) -> str:
    """Of members in any order, each at most once, the first `num_required` all."""
    if not keys:
        return EMPTY
    name = rules.new_name("members")
    rules.bodies[f"{name}::_"] = ""  # before those of its values, so that names stay unique
    alternatives = ['""' + (f" %if is_ones([0:{num_required}])" if num_required else "")]
    for i, key in enumerate(keys):
        alternatives.append(f"{separator}{member(key)} {name}::set_bit({i}) %if bit_clear({i})")
    rules.bodies[f"{name}::_"] = "\n    | ".join(alternatives)
    return f"{name}::0"


def value_expression(schema: object, where: str, rules: Rules) -> str:
    """Of the JSON values that fit a schema."""
    if schema is True:
        return "json"
    if not isinstance(schema, dict):
        raise ValueError(f"{where}: {schema!r} is no schema that a value could fit; write an object")
    options = [schema["const"]] if "const" in schema else schema.get("enum")
    if options is not None:
        check_keywords(schema, None, where, ("const", "enum", "type"))
        return alternatives_of(literal(json.dumps(check_written_json(v, where), ensure_ascii=False)) for v in options)
    if "anyOf" in schema:
        check_keywords(schema, None, where, ("anyOf",))
        return alternatives_of(value_expression(one, where, rules) for one in schema["anyOf"])
    kind = schema.get("type")
    if kind is None:
        check_keywords(schema, None, where)
        return "json"
    if isinstance(kind, list):
        shared = {key: value for key, value in schema.items() if key != "type"}
        return alternatives_of(value_expression({"type": one} | only_of(shared, one), where, rules) for one in kind)
    check_keywords(schema, kind, where)
    return VALUES[kind](schema, where, rules)


def only_of(schema: dict, kind: str) -> dict:
    """Without the keywords that say something about other types only."""
    others = set().union(*KEYWORDS.values()) - KEYWORDS.get(kind, set())
    return {key: value for key, value in schema.items() if key not in others}


def object_expression(schema: dict, where: str, rules: Rules) -> str:
    if schema.get("properties") or schema.get("additionalProperties") is False:
        return f'"{{" {pairs_expression(schema, literal_key(KEY), where, rules)} "}}"'
    values = schema.get("additionalProperties", True)
    member = f'STRING ": " {value_expression(values, where, rules)}'
    return f'"{{" ({member} (", " {member})*)? "}}"'


def literal_key(key: str) -> str:
    return f"{json.dumps(key, ensure_ascii=False)}: "


def array_expression(schema: dict, where: str, rules: Rules) -> str:
    item = value_expression(schema.get("items", True), f"{where}, an item", rules)
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if most == 0:
        return '"[]"'
    more = f'(", " {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
    return f'"[" {item} {more} "]"' if least else f'"[" ({item} {more})? "]"'


def string_expression(schema: dict, where: str, rules: Rules) -> str:
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    if not least and most == "":
        return "STRING"
    return rules.add("STRING", f'"\\"" CHAR{{{least},{most}}} "\\"" & ~CONTROL')


def number_expression(schema: dict, where: str, rules: Rules) -> str:
    kind = schema["type"]
    bounds = {key: schema[key] for key in KEYWORDS[kind] if key in schema}
    if not bounds:
        return "INTEGER" if kind == "integer" else "NUMBER"
    if not {"minimum", "exclusiveMinimum"} & set(bounds):
        bounds["minimum"] = -FAR
    if not {"maximum", "exclusiveMaximum"} & set(bounds):
        bounds["maximum"] = FAR
    return rules.add(kind, f"%json {json.dumps({'type': kind} | bounds)}")


VALUES = {
    "object": object_expression,
    "array": array_expression,
    "string": string_expression,
    "integer": number_expression,
    "number": number_expression,
    "boolean": lambda schema, where, rules: '("true" | "false")',
    "null": lambda schema, where, rules: '"null"',
}


def check_keywords(schema: dict, kind: object, where: str, others: Sequence[str] = ()) -> None:
    """ValueError for what would be promised and not held."""
    if kind is not None and kind not in KEYWORDS:
        raise ValueError(f"{where} has the type {kind!r}, which JSON schema has not; use one of {', '.join(KEYWORDS)}")
    known = {"type", *others, *ANNOTATIONS, *(KEYWORDS[kind] if kind else ())}
    for key in schema:
        if key not in known:
            raise ValueError(
                f"{where} has the keyword {key!r}, which a grammar here cannot hold answers to: set "
                "eval.constrained=false, or describe the tool without it"
            )


def alternatives_of(expressions: Iterable[str]) -> str:
    return f"({' | '.join(expressions)})"


def sequence(*expressions: str) -> str:
    return " ".join(one for one in expressions if one != EMPTY) or EMPTY


def literal(text: str) -> str:
    """Text as it stands, none of it a tag."""
    return json.dumps(text, ensure_ascii=False)
