"""The two ways to write calls, `name(argument=json)` and the family's own blocks; and the frame of all parsers."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenvl_agent.families import CallSyntax, Family
from qwenvl_agent.families.calls import name_and_arguments
from qwenvl_agent.families.family import GrammarRules
from qwenvl_agent.formats.repair import fit_arguments, only_required
from qwenvl_agent.near_json import ParseError, Repairs, json_text, read_json, skip_space
from qwenvl_agent.schema import (
    CONTROL_SPELLING,
    LONE_SURROGATE,
    MARKER_LINE,
    TOOL_NAME,
    Answer,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    tool_named,
)

ACTION = re.compile(r"(?m)^[ \t]*Action:[ \t]*")
THOUGHT = re.compile(r"[ \t]*Thought:")
FENCE = re.compile(r"(?m)^[ \t]*```\w*[ \t]*\n?|```[ \t]*$")
MARKERS = re.compile(r"(?m)^(?:[^\S\n]*(?:Thought|Action):)+")
LINE_CALL = re.compile(rf"(?m)^[ \t]*({TOOL_NAME.pattern})\(")
NEXT_CALL = re.compile(rf"[,;]?\s*({TOOL_NAME.pattern})\(")
ACTION_INPUT = re.compile(r"\s*\n[ \t]*Action Input:[ \t]*\n?")
REACT_CALL = re.compile(rf"(?m)^[ \t]*Action:[ \t]*{TOOL_NAME.pattern}[ \t]*\n[ \t]*Action Input:")
KEY = re.compile(rf"({TOOL_NAME.pattern})[ \t]*=")

# A reader gives (thought, calls), or None where the text is free text. It mends what it can, under names.
Reader = Callable[[str, Sequence[Tool], Repairs, CallSyntax], tuple[str, list[ToolCall]] | None]


@dataclass(frozen=True)
class PlainCalls:
    """`name(argument=json, ...)`, in every family."""

    def write(self, name: str, arguments: Mapping) -> str:
        return f"{name}({', '.join(f'{key}={json_text(value)}' for key, value in arguments.items())})"

    def expression(self, name: str, parameters: dict, rules: GrammarRules) -> str:
        return rules.json_call(name, parameters, self.write)


PLAIN_CALLS = PlainCalls()


def write_plain(call: ToolCall) -> str:
    return PLAIN_CALLS.write(call.name, call.arguments)


def write_blocks(calls: Iterable[ToolCall], syntax: CallSyntax) -> str:
    return syntax.between.join(syntax.write(call.name, call.arguments) for call in calls)


def tool_calls_json(calls: Iterable[ToolCall]) -> list[dict]:
    """Calls as chat templates take them."""
    return [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in calls]


def tool_messages(results: Sequence[ToolResult]) -> list[dict]:
    """Results as messages of role `tool`, in the order of the calls."""
    return [{"role": "tool", "name": result.name, "content": json_text(result.content)} for result in results]


def parse_answer(
    text: str, tools: Sequence[Tool], read: Reader, family: Family, writes: "CallSyntax | PlainCalls | None" = None
) -> Answer:
    """`read` inside the frame that all formats share: the end token, emptiness, control tokens, code fences.

    `writes` is how the format writes calls, None: as the family does. What it cannot write is an error: a later prompt
    could not show it.
    """
    read = _only_writable(read, writes or family.calls)
    answer = _attempt(text, tools, read, family)
    is_strict = answer.turn.tool_calls and not answer.repairs
    unfenced = text if is_strict else FENCE.sub("", text)
    if unfenced == text:
        return answer
    mended = _attempt(unfenced, tools, read, family)
    return Answer(mended.turn, text, repairs=("code_fence", *mended.repairs)) if mended.turn.tool_calls else answer


def _only_writable(read: Reader, writes: "CallSyntax | PlainCalls") -> Reader:
    def read_writable(
        text: str, tools: Sequence[Tool], repairs: Repairs, syntax: CallSyntax
    ) -> tuple[str, list[ToolCall]] | None:
        found = read(text, tools, repairs, syntax)
        for call in found[1] if found else ():
            try:
                writes.write(call.name, call.arguments)
            except ValueError:
                raise ParseError("bad_arguments") from None
        return found

    return read_writable


def _attempt(text: str, tools: Sequence[Tool], read: Reader, family: Family) -> Answer:
    body = text.strip().removesuffix(family.template.turn_end).strip()
    repairs = Repairs()
    try:
        turn = _read_turn(body, tools, read, repairs, family.calls)
    except ParseError as error:
        return Answer(Turn(), text, error=error.name)
    return Answer(turn, text, repairs=tuple(repairs))


def _read_turn(body: str, tools: Sequence[Tool], read: Reader, repairs: Repairs, syntax: CallSyntax) -> Turn:
    if not body:
        raise ParseError("empty")
    if LONE_SURROGATE.search(body) or CONTROL_SPELLING.search(without_tags(body, syntax)):
        raise ParseError("control_token")
    found = read(body, tools, repairs, syntax)
    if found is None:
        if has_tag(body, syntax):
            raise ParseError("no_call")
        return Turn(text=body)
    thought, calls = found
    thought = without_markers(thought, repairs)
    if has_tag(thought, syntax):
        raise ParseError("control_token")
    return Turn(thought, tuple(calls))


def without_markers(thought: str, repairs: Repairs) -> str:
    """The thought without "Thought:" and "Action:" where its lines begin."""
    if MARKER_LINE.search(thought):
        repairs.add("marker_in_thought")
        while MARKER_LINE.search(thought):
            thought = MARKERS.sub("", thought).strip()
    return thought


def has_tag(text: str, syntax: CallSyntax) -> bool:
    return syntax.open in text or syntax.close in text


def without_tags(text: str, syntax: CallSyntax) -> str:
    return text.replace(syntax.open, " ").replace(syntax.close, " ")


def read_blocks(text: str, tools: Sequence[Tool], repairs: Repairs, syntax: CallSyntax) -> tuple[str, list[ToolCall]]:
    """The text before the first opening tag, and the calls of all blocks."""
    head, *blocks = text.split(syntax.open)
    calls: list[ToolCall] = []
    for i, block in enumerate(blocks):
        body, tag, rest = block.partition(syntax.close)
        if not tag:
            repairs.add("missing_close_tag")
        calls += _read_block(body, bool(tag), tools, repairs, syntax)
        if not rest.strip():
            continue
        repairs.add("text_after_call" if i == len(blocks) - 1 else "text_between_calls")
        untagged = read_bare(rest, tools, repairs, syntax)
        calls += untagged[1] if untagged else []
    return head.strip(), calls


def _read_block(
    body: str, is_closed: bool, tools: Sequence[Tool], repairs: Repairs, syntax: CallSyntax
) -> Iterator[ToolCall]:
    def parameters_of(name: str) -> Mapping:
        tool = tool_named(tools, name)
        return tool.parameters if tool else {}

    for name, arguments in syntax.read(body, is_closed, parameters_of, repairs):
        yield named_call(name, arguments, tools, repairs)


def named_call(name: object, arguments: object, tools: Sequence[Tool], repairs: Repairs) -> ToolCall:
    """`make_call`; ParseError for a name that no tool can have."""
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise ParseError("bad_name")
    return make_call(name, arguments, tools, repairs)


def make_call(name: str, arguments: object, tools: Sequence[Tool], repairs: Repairs) -> ToolCall:
    """A call with its arguments fitted to the tool's schema; ParseError if no call can carry them."""
    arguments = fit_arguments(arguments, tool_named(tools, name), repairs)
    try:
        json_text(arguments).encode()  # refuses lone surrogates, which no tokenizer takes
        return ToolCall(name, arguments)
    except (ValueError, RecursionError):
        raise ParseError("bad_arguments") from None


def read_plain(text: str, tools: Sequence[Tool], repairs: Repairs) -> tuple[str, list[ToolCall]] | None:
    """The text before the first `Action:`, and the calls; None without any."""
    first = ACTION.search(text)
    if not first:
        first = _find_line_call(text, tools)
        if not first:
            return None
        repairs.add("missing_action_marker")
        return text[: first.start()].strip(), _read_actions(text, first.start(1), tools, repairs)
    return text[: first.start()].strip(), _read_actions(text, first.end(), tools, repairs)


def _find_line_call(text: str, tools: Sequence[Tool]) -> re.Match | None:
    return next((match for match in LINE_CALL.finditer(text) if tool_named(tools, match.group(1))), None)


def _read_actions(text: str, at: int, tools: Sequence[Tool], repairs: Repairs) -> list[ToolCall]:
    calls: list[ToolCall] = []
    while True:
        call, at = _read_plain_call(text, at, tools, repairs)
        calls.append(call)
        at = skip_space(text, at)
        if at == len(text):
            return calls
        line_start = text.rfind("\n", 0, at) + 1
        marker = ACTION.match(text, line_start) if not text[line_start:at].strip() else None
        unmarked = NEXT_CALL.match(text, at)
        if marker:
            at = marker.end()
        elif unmarked and tool_named(tools, unmarked.group(1)):
            repairs.add("missing_action_marker")
            at = unmarked.start(1)
        else:
            marker = ACTION.search(text, at)
            repairs.add("text_between_calls" if marker else "text_after_call")
            if not marker:
                return calls
            at = marker.end()


def _read_plain_call(text: str, at: int, tools: Sequence[Tool], repairs: Repairs) -> tuple[ToolCall, int]:
    if text[at : at + 1] == "{":
        repairs.add("native_call_in_plain")
        value, at = read_json(text, at, repairs)
        return named_call(*name_and_arguments(value, repairs), tools, repairs), at
    name = TOOL_NAME.match(text, at)
    if not name:
        raise ParseError("bad_name" if skip_space(text, at) < len(text) else "no_call")
    at = name.end()
    if text[at : at + 1] == "(":
        arguments, at = _read_arguments(text, at + 1, tool_named(tools, name.group()), repairs)
        return make_call(name.group(), arguments, tools, repairs), at
    line_end = text.find("\n", at) % (len(text) + 1)
    if text[at:line_end].strip():
        raise ParseError("json_error")
    given = ACTION_INPUT.match(text, at)
    if given:
        repairs.add("action_input")
        return _read_action_input(name.group(), text, given.end(), tools, repairs)
    tool = tool_named(tools, name.group())
    if tool and tool.parameters.get("required") and _has_words_below(text, at):
        raise ParseError("bad_arguments")  # they may be these words
    repairs.add("missing_parentheses")
    return make_call(name.group(), {}, tools, repairs), at


def _has_words_below(text: str, at: int) -> bool:
    """Whether the next line that holds anything is no action."""
    at = skip_space(text, at)
    return at < len(text) and not ACTION.match(text, text.rfind("\n", 0, at) + 1)


def _read_action_input(name: str, text: str, at: int, tools: Sequence[Tool], repairs: Repairs) -> tuple[ToolCall, int]:
    """ReAct's arguments, on the line after the name: JSON, or the one required argument as a JSON value."""
    value, at = read_json(text, at, repairs)
    if text[at : at + 1] not in ("", "\n") and text[at:].split("\n", 1)[0].strip():
        raise ParseError("json_error")
    if not isinstance(value, dict | list):
        value = _name_positional(value, tool_named(tools, name), repairs)
    return make_call(name, value, tools, repairs), at


def _read_arguments(text: str, at: int, tool: Tool | None, repairs: Repairs) -> tuple[object, int]:
    """What stands between the parentheses, and the place after them."""
    arguments: dict = {}
    while True:
        at = skip_space(text, at)
        if arguments and text[at : at + 1] == ",":
            at = skip_space(text, at + 1)
            if text[at : at + 1] == ")":
                repairs.add("trailing_comma")
        elif arguments and text[at : at + 1] not in (")", "}", "]", ""):
            raise ParseError("json_error")
        if at == len(text):
            if not arguments or text[-1].isdigit() or text.rstrip()[-1] == ",":  # more was to follow
                raise ParseError("unclosed_call")
            repairs.add("missing_brace")
            return arguments, at
        if text[at] in "}]" and arguments:
            repairs.add("extra_brace")
            at += 1
            continue
        if text[at] == ")":
            return arguments, at + 1
        key = KEY.match(text, at)
        if not key:
            value, at = read_json(text, at, repairs)
            if arguments:
                raise ParseError("json_error")
            arguments = _name_positional(value, tool, repairs)
            at = skip_space(text, at)
            if text[at : at + 1] != ")":
                raise ParseError("json_error" if at < len(text) else "unclosed_call")
            return arguments, at + 1
        if key.group(1) in arguments:
            raise ParseError("json_error")
        arguments[key.group(1)], at = read_json(text, key.end(), repairs)


def _name_positional(value: object, tool: Tool | None, repairs: Repairs) -> Any:
    if isinstance(value, list):
        return value
    repairs.add("positional_argument")
    if isinstance(value, dict):
        return value
    name = only_required(tool.parameters) if tool else ""
    if not name:
        raise ParseError("bad_arguments")
    return {name: value}


def split_thought(head: str, repairs: Repairs) -> str:
    """The thought after its marker."""
    marker = THOUGHT.match(head)
    if marker:
        if marker.end() == len(head):
            repairs.add("empty_thought")
        return head[marker.end() :].strip()
    if head:
        repairs.add("missing_thought_marker")
    return head


def read_unmarked(
    text: str, tools: Sequence[Tool], repairs: Repairs, syntax: CallSyntax
) -> tuple[str, list[ToolCall]] | None:
    """Calls of a text without an opening tag: bare ones, or the plain syntax; None if there are none."""
    found = read_bare(text, tools, repairs, syntax)
    if found:
        return found
    action = re.search(rf"{ACTION.pattern}{TOOL_NAME.pattern}\(", text) or REACT_CALL.search(text)
    if not action and not _find_line_call(text, tools):
        return None
    repairs.add("plain_call_in_native")
    return read_plain(text, tools, repairs)


def read_bare(
    text: str, tools: Sequence[Tool], repairs: Repairs, syntax: CallSyntax
) -> tuple[str, list[ToolCall]] | None:
    """Calls in the family's syntax without its opening tag; None if there are none."""
    bare = _find_bare(text, tools, syntax)
    if not bare:
        return None
    repairs.add("missing_open_tag")
    body, tag, rest = text[bare.start() :].partition(syntax.close)
    if rest.strip():
        repairs.add("text_after_call")
    return text[: bare.start()].strip(), list(_read_block(body, bool(tag), tools, repairs, syntax))


def _find_bare(text: str, tools: Sequence[Tool], syntax: CallSyntax) -> re.Match | None:
    """The first call without a tag. JSON in prose is one if it has arguments or names a tool; so is one that breaks off."""
    return next((match for match in syntax.bare.finditer(text) if _is_call(match.groupdict(), tools)), None)


def _is_call(found: Mapping[str, str | None], tools: Sequence[Tool]) -> bool:
    name = found.get("name")
    return name is None or found.get("has_arguments") is not None or tool_named(tools, name) is not None
