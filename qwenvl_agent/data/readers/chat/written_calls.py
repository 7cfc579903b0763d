"""Calls that stand as text in an assistant's message, in the spellings of agent frameworks and of other trainers' data.

They are read by the parsers of answers, and only where nothing is lost or guessed by it: what begins as a call of one of
the row's tools and cannot be read so (half a call, words after it, a mend that is not in `SPELLINGS_OF_PARSERS` or
`MENDS`) is refused, because it would be learned as words. What names none of the row's tools and has no arguments is
words, with a note.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qwenvl_agent import json_input
from qwenvl_agent.families import DEFAULT, FAMILIES, CallSyntax
from qwenvl_agent.families.calls import HERMES, name_and_arguments
from qwenvl_agent.formats import formats_of
from qwenvl_agent.formats.calls import ACTION, FENCE, named_call
from qwenvl_agent.near_json import ParseError, Repairs, read_json
from qwenvl_agent.schema import TOOL_NAME, Tool, ToolCall, tool_named

LIKE_A_CALL = "like_a_call_kept_as_text"
ACTION_LEFT_OUT = "action_line_left_out"
SPELLINGS_OF_PARSERS = {
    "code_fence",
    "missing_open_tag",
    "native_call_in_plain",
    "plain_call_in_native",
    "missing_action_marker",
    "missing_thought_marker",
    "marker_in_thought",
    "positional_argument",
    "missing_parentheses",
    "missing_arguments",
    "arguments_as_string",
    "renamed_arguments",
    "nested_call",
    "list_of_calls",
    "action_input",
    "dropped_key",
}
"""Repairs of the parsers (formats/repair.py) that are another spelling of a whole call."""
MENDS = {
    "single_quotes",
    "python_literals",
    "trailing_comma",
    "raw_newline",
    "string_number",
    "list_arguments_wrapped",
    "missing_actions_key",
}
"""Repairs by which a call says what it said; each is counted as `call_mended_NAME`."""
ARGUMENTS_OF = {"action": "action_input", "tool": "tool_input"}
"""Keys of a call's name and arguments in agent frameworks' JSON, besides those of the parsers."""

MAX_STARTS = 16
"""Of JSON in one text: to try a longer one's every line would take time by its square."""

NAME = TOOL_NAME.pattern
FENCED = r"(?:```\w*[ \t]*\n\s*)?"
QWEN_AGENT = re.compile(rf"✿FUNCTION✿:?[ \t]*({NAME})[ \t]*\n\s*✿ARGS✿:?[ \t]*")
QWEN_AGENT_END = re.compile(r"\s*(?:✿RESULT✿:?\s*)?")
REACT = re.compile(rf"(?m)^[ \t]*Action:[ \t]*({NAME})[ \t]*\n[ \t]*Action Input:\s*{FENCED}")
REACT_END = re.compile(r"(?:\s|```)*")
JSON = re.compile(rf"(?m)^[ \t]*(?:Action:\s*)?{FENCED}(?=\{{|\[\s*\{{)")
JSON_END = re.compile(r"(?:[\s,;]|```\w*)*")
LINE = re.compile(rf"(?m)^[ \t]*({NAME})\(")
ELEMENT = re.compile(r"<function=|<invoke name=")
ACTION_CALL = re.compile(rf"(?m)^[ \t]*Action:[ \t]*({NAME})[ \t]*(?:[(\[{{]|$)")
JSON_NAME = re.compile(rf"""["'](?:name|action|tool|function)["']\s*:\s*["']({NAME})["']""")
THOUGHT_LABEL = re.compile(r"(?m)^[ \t]*Thought:[ \t]*")


class Written(NamedTuple):
    """What an assistant's text holds: `calls` with their ids and the thought before them, or words alone (no calls)."""

    thought: str
    calls: list[tuple[ToolCall, str | None]]
    notes: tuple[str, ...]


class Found(NamedTuple):
    head: str
    calls: list[ToolCall]


Read = Callable[[str, Sequence[Tool], Repairs], Found | None]


def read_written(text: str, tools: Sequence[Tool], place: str) -> Written:
    """The calls of a text; ValueError for one that cannot be read. Without tools nothing but tagged blocks is a call."""
    tagged = _read_blocks(text, tools, place)
    if tagged:
        refuse_calls(tagged.thought, tools, place)
        return _without_labels(tagged, place)
    failures: list[str] = []
    for name in READS if tools else ():
        found = _attempt(name, text, tools, place, failures)
        if found:
            return found
    if failures and _begins_call(text, tools):
        raise ValueError(_not_read(failures[0], place))
    if tools and ELEMENT.search(text):
        raise ValueError(
            f"{place} has a call as an element ({_begin(text, ELEMENT)}), which no model family here writes: it would be "
            "learned as words; write it as tool_calls"
        )
    _refuse_among_words(text, tools, place)
    is_like_one = failures or "✿" in text or _names(JSON_NAME, text, tools) or _names_in_words(text, tools)
    return Written("", [], (LIKE_A_CALL,) if tools and is_like_one else ())


def _attempt(name: str, text: str, tools: Sequence[Tool], place: str, failures: list[str]) -> Written | None:
    """The calls in one spelling; None for words, with what failed added to `failures` if they are like a call."""
    repairs = Repairs()
    try:
        found = READS[name](text, tools, repairs)
    except ParseError as error:
        failures.append(f"{SHOWN[name]} {error.name}")
        return None
    if not found:
        return None
    is_named_alone = not {"missing_parentheses", "missing_arguments"}.isdisjoint(repairs)
    if is_named_alone and not any(tool_named(tools, call.name) or call.arguments for call in found.calls):
        failures.append(f"{SHOWN[name]} names no tool of the row")
        return None
    if all(tool_named(tools, call.name) for call in found.calls):  # an unknown one is refused by name
        _refuse_losses(repairs, text, place)
    mended = tuple(f"call_mended_{repair}" for repair in repairs if repair in MENDS)
    written = Written(found.head, [(call, None) for call in found.calls], (f"calls_read_from_{name}", *mended))
    return _without_labels(written, place)


def _not_read(failure: str, place: str) -> str:
    return (
        f"{place} has a call as text that cannot be read ({failure}): it would be learned as words; correct it, or write it "
        "as tool_calls"
    )


def _begins_call(text: str, tools: Sequence[Tool]) -> bool:
    """Whether what cannot be read is meant as a call of one of the row's tools."""
    has_marks = "✿FUNCTION✿" in text or REACT.search(text)
    return bool(has_marks) or any(_names(pattern, text, tools) for pattern in (ACTION_CALL, LINE, JSON_NAME))


def _refuse_among_words(text: str, tools: Sequence[Tool], place: str) -> None:
    """ValueError for a whole call as JSON within a line, which the parser of answers would take for one."""
    if not tools or "{" not in text:
        return
    for call in formats_of(DEFAULT)["native"].parse(text, tools).turn.tool_calls:
        if call.arguments and tool_named(tools, call.name):
            raise ValueError(
                f"{place} has a call of {call.name!r} among its words: it would be learned as words, in none of the formats; "
                "write it on a line of its own, or as tool_calls"
            )


def _names_in_words(text: str, tools: Sequence[Tool]) -> bool:
    return any(re.search(rf"(?<![A-Za-z0-9_-]){re.escape(tool.name)}\(", text) for tool in tools)


def _names(pattern: re.Pattern, text: str, tools: Sequence[Tool]) -> bool:
    return any(tool_named(tools, match.group(1)) for match in pattern.finditer(text))


def _refuse_losses(repairs: Sequence[str], text: str, place: str) -> None:
    """ValueError for a call that the parser read by leaving something out or filling something in."""
    if "text_after_call" in repairs or "text_between_calls" in repairs:
        what = (
            "what a tool answered would be learned; split the message"
            if "Observation:" in text
            else ("no format writes it there; move it to the front")
        )
        raise ValueError(f"{place} has text after a call: {what}")
    guessed = [repair for repair in repairs if repair not in SPELLINGS_OF_PARSERS | MENDS]
    if guessed:
        raise ValueError(
            f"{place} has a call as text that is not whole ({', '.join(guessed)}): what was meant would be a guess; correct "
            "it, or write it as tool_calls"
        )


def _without_labels(written: Written, place: str) -> Written:
    thought, notes = plain_thought(written.thought, place)
    return Written(thought, written.calls, (*written.notes, *notes))


def plain_thought(head: str, place: str) -> tuple[str, tuple[str, ...]]:
    """The words before calls without the label `Thought:` and the sentence behind `Action:`, and a note of the latter."""
    action = ACTION.search(head)
    if not action:
        return THOUGHT_LABEL.sub("", head).strip(), ()
    sentence = head[action.end() :].strip()
    if "\n" in sentence:
        raise ValueError(
            f"{place} has lines between Action: and its calls: no format writes them there; move them to the front"
        )
    return THOUGHT_LABEL.sub("", head[: action.start()]).strip(), (ACTION_LEFT_OUT,) if sentence else ()


def refuse_calls(head: str, tools: Sequence[Tool], place: str) -> None:
    """ValueError for calls in words beside those that are given in another way."""
    tagged = _read_blocks(head, tools, place)
    found = [tagged] if tagged else [_attempt(name, head, tools, place, []) for name in READS if tools]
    if any(written and any(call.arguments for call, _ in written.calls) for written in found):
        raise ValueError(f"{place} has calls in its text besides its calls: they would double; keep one")


# calls between tags


def _read_blocks(text: str, tools: Sequence[Tool], place: str) -> Written | None:
    """The calls between a family's tags, whichever family's; None without any. An opening tag without its closing one is
    text, which the schema refuses."""
    for syntax in _syntaxes():
        (head, *after), blocks = _split_blocks(text, syntax)
        if not blocks:
            continue
        if any(piece.strip() for piece in after):
            raise ValueError(f"{place} has text after a call: no format writes it there; move it to the front")
        repairs = Repairs()
        calls = [
            call for block in blocks for call in _read_block(block, syntax, tools, repairs, f"{place} {syntax.open}")
        ]
        _refuse_losses(repairs, "", place)
        mended = tuple(f"call_mended_{repair}" for repair in repairs if repair in MENDS)
        return Written(head.strip(), calls, ("calls_read_from_tags", *mended))
    return None


def _syntaxes() -> list[CallSyntax]:
    """Of all families, and the one that chat files have whatever model they are for."""
    return [HERMES, *(family.calls for family in FAMILIES.values() if family.calls is not HERMES)]


def _split_blocks(text: str, syntax: CallSyntax) -> tuple[list[str], list[str]]:
    """What stands around the blocks of calls, and what in them; an open one is text."""
    around, inside, at = [], [], 0
    while (start := text.find(syntax.open, at)) >= 0 and (end := text.find(syntax.close, start)) >= 0:
        around.append(text[at:start])
        inside.append(text[start + len(syntax.open) : end].strip())
        at = end + len(syntax.close)
    return [*around, text[at:]], inside


def _read_block(
    block: str, syntax: CallSyntax, tools: Sequence[Tool], repairs: Repairs, place: str
) -> list[tuple[ToolCall, str | None]]:
    """One block's calls, by the first family with these tags that can read them."""

    def parameters_of(name: str) -> Mapping:
        tool = tool_named(tools, name)
        return tool.parameters if tool else {}

    as_json = _whole_object(block)
    if as_json:
        try:
            name, arguments = _name_and_arguments(as_json, repairs)
        except ParseError as error:
            raise ValueError(_unreadable(place, error.name)) from None
        # Servers write "" for a call without arguments.
        arguments = {} if arguments is None or arguments == "" else arguments
        return [(_named(name, arguments, tools, repairs, place), _id_of(as_json))]
    errors: list[str] = []
    for one in _syntaxes():
        if (one.open, one.close) != (syntax.open, syntax.close):
            continue
        tried = Repairs()
        try:
            pairs = list(one.read(block, True, parameters_of, tried))
        except ParseError as error:
            errors.append(error.name)
            continue
        for repair in tried:
            if repair != "missing_close_tag":  # several whole calls between two tags
                repairs.add(repair)
        return [(_named(name, arguments, tools, repairs, place), None) for name, arguments in pairs]
    raise ValueError(_unreadable(place, ", ".join(dict.fromkeys(errors))))


def _whole_object(block: str) -> dict | None:
    """The JSON object that a block is, None for anything else."""
    try:
        value = json_input.read_json(block)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _id_of(value: dict) -> str | None:
    """Of a call that is written with an id, by which results name it."""
    found = value.get("id")
    return found if isinstance(found, str) else None


def _named(name: object, arguments: object, tools: Sequence[Tool], repairs: Repairs, place: str) -> ToolCall:
    try:
        return named_call(name, arguments, tools, repairs)
    except ParseError as error:
        raise ValueError(_unreadable(place, error.name)) from None


def _unreadable(place: str, why: str) -> str:
    return (
        f"{place} holds no call that can be read ({why}): it would be learned as words; write "
        '{"name": ..., "arguments": {...}} between the tags, or tool_calls'
    )


# calls by marks


def _read_qwen_agent(text: str, tools: Sequence[Tool], repairs: Repairs) -> Found | None:
    """`✿FUNCTION✿: name`, a line `✿ARGS✿: {...}`, and what stops generation there."""
    if "✿FUNCTION✿" not in text:
        return None
    return _read_named(text, QWEN_AGENT, QWEN_AGENT_END, tools, repairs)


def _read_react(text: str, tools: Sequence[Tool], repairs: Repairs) -> Found | None:
    """`Action: name`, a line `Action Input: {...}`."""
    return _read_named(text, REACT, REACT_END, tools, repairs) if REACT.search(text) else None


def _read_named(text: str, mark: re.Pattern, end: re.Pattern, tools: Sequence[Tool], repairs: Repairs) -> Found:
    """A name, then its arguments as JSON, as often as `mark` follows."""
    first = match = mark.search(text)
    if not first:
        raise ParseError("unclosed_call")
    calls = []
    while match:
        arguments, at = read_json(text, match.end(), repairs)
        calls.append(named_call(match.group(1), arguments, tools, repairs))
        at = _past(end, text, at)
        match = mark.match(text, at)
    if at < len(text):
        repairs.add("text_after_call")
    return Found(text[: first.start()].strip(), calls)


def _past(pattern: re.Pattern, text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None, "it matches nothing, too"
    return found.end()


def _read_actions(text: str, tools: Sequence[Tool], repairs: Repairs) -> Found | None:
    """`Action: name(argument=json, ...)`, or `Action: name({...})`."""
    return _read_plain(text, tools, repairs) if ACTION.search(text) else None


def _read_lines(text: str, tools: Sequence[Tool], repairs: Repairs) -> Found | None:
    """`name(argument=json, ...)` at the start of a line, without a mark."""
    return _read_plain(text, tools, repairs) if _names(LINE, text, tools) else None


def _read_plain(text: str, tools: Sequence[Tool], repairs: Repairs) -> Found | None:
    fmt = formats_of(DEFAULT)["plain"]
    answer = fmt.parse(text, tools)
    if answer.error:
        # `Action:` may stand on a line of its own, before a fence.
        answer = fmt.parse(re.sub(r"Action:\s+", "Action: ", FENCE.sub("", text)), tools)
    if answer.error:
        raise ParseError(answer.error)
    for repair in answer.repairs:
        repairs.add(repair)
    return Found(answer.turn.thought, list(answer.turn.tool_calls)) if answer.turn.tool_calls else None


def _read_json(text: str, tools: Sequence[Tool], repairs: Repairs) -> Found | None:
    """A JSON object or a list of them from the start of a line on, in a fence or not."""
    failure = None
    for mark in itertools.islice(JSON.finditer(text), MAX_STARTS):
        tried = Repairs()
        try:
            calls = list(_json_calls(text, mark.end(), tools, tried))
        except ParseError as error:
            failure = failure or error
            if error.name == "unclosed_call":  # read to its end
                break
            continue
        for repair in tried:
            repairs.add(repair)
        return Found(text[: mark.start()].strip(), calls)
    if failure and failure.name != "bad_name":  # JSON without a name is an answer
        raise failure
    return None


def _json_calls(text: str, at: int, tools: Sequence[Tool], repairs: Repairs) -> Iterator[ToolCall]:
    while at < len(text):
        if text[at] not in "[{":
            repairs.add("text_after_call")
            return
        value, at = read_json(text, at, repairs)
        for item in value if isinstance(value, list) else [value]:
            yield named_call(*_name_and_arguments(item, repairs), tools, repairs)
        at = _past(JSON_END, text, at)


def _name_and_arguments(item: Any, repairs: Repairs) -> tuple[object, object]:
    for name, arguments in ARGUMENTS_OF.items():
        if isinstance(item, dict) and item.keys() == {name, arguments}:
            return item[name], item[arguments]
    return name_and_arguments(item, repairs)


def _begin(text: str, pattern: re.Pattern) -> str:
    found = pattern.search(text)
    assert found is not None, text
    return text[found.start() : found.start() + 40].split("\n")[0]


READS: dict[str, Read] = {
    "qwen_agent_marks": _read_qwen_agent,
    "react": _read_react,
    "action_lines": _read_actions,
    "json": _read_json,
    "lines": _read_lines,
}
"""By what a note calls them, in the order in which they are tried."""
SHOWN = {
    "qwen_agent_marks": "✿FUNCTION✿, ✿ARGS✿:",
    "react": "Action:, Action Input:",
    "action_lines": "Action: name(...):",
    "json": "JSON:",
    "lines": "name(...):",
}
