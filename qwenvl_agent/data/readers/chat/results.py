"""What tools answered, placed with the calls that they answer."""

import re
from collections.abc import Sequence
from typing import Any

from qwenvl_agent.data.readers.chat.content import parts
from qwenvl_agent.families import FAMILIES
from qwenvl_agent.json_input import read_json
from qwenvl_agent.schema import ToolCall, ToolResult

OBSERVATION = re.compile(r"\s*Observation:[ \t]*\n?")


def observed(messages: Sequence[dict], calls: Sequence[ToolCall]) -> list[dict]:
    """The messages after a turn, each result as one of role tool.

    A user's `Observation: ...` is what a tool answered, as in ReAct's transcripts; and one message may hold several
    results between a family's marks.
    """
    split = [one for message in messages for one in _split_results(message)]
    if not calls or any(message["role"] == "tool" for message in messages):
        return split
    return [_as_result(message, calls) for message in split]


def _split_results(message: dict) -> list[dict]:
    """Those of a tool's message that stand between a family's marks, one message each."""
    content = message["content"]
    if message["role"] != "tool" or not isinstance(content, str):
        return [message]
    for family in FAMILIES.values():
        before, *blocks = content.split(family.template.result_begin)
        pairs = [block.partition(family.template.result_end) for block in blocks]
        if blocks and not before.strip() and all(mark and not after.strip() for _, mark, after in pairs):
            return [{**message, "content": text.strip()} for text, _, _ in pairs]
    return [message]


def _as_result(message: dict, calls: Sequence[ToolCall]) -> dict:
    content: Any = message["content"]
    first = content[0] if isinstance(content, list) and content else content
    text = first.get("text") if isinstance(first, dict) and first.get("type") == "text" else first
    if message["role"] != "user" or not isinstance(text, str):
        return message
    mark = OBSERVATION.match(text)
    if not mark:
        return message
    if len(calls) > 1:
        raise ValueError(
            f"{message['place']} is one Observation: for {len(calls)} calls: what answers which is unknown; write a message "
            "of role tool for each"
        )
    rest = text[mark.end() :]
    as_before = rest if isinstance(content, str) else [{**first, "text": rest}, *content[1:]]
    return {**message, "role": "tool", "content": as_before}


def build_results(
    messages: Sequence[dict], calls: Sequence[ToolCall], ids: Sequence[str | None]
) -> tuple[ToolResult, ...]:
    """One result a call, in the order of the calls: placed by tool_call_id, or else in the order given."""
    results: dict[int, ToolResult] = {}
    for message in messages:
        call_id = message.get("tool_call_id")
        index = ids.index(call_id) if call_id is not None and call_id in ids else len(results)
        has_stray_id = call_id is not None and call_id not in ids and any(ids)
        if has_stray_id or index >= len(calls) or index in results:
            raise ValueError(f"{message['place']} is a tool result without a call: it cannot be placed; add the call")
        name = message.get("name") or calls[index].name
        if name != calls[index].name:
            raise ValueError(f"{message['place']} is a result of {name!r}, but the call was {calls[index].name!r}")
        results[index] = ToolResult(name, _result_content(message))
    if sorted(results) != list(range(len(results))):
        raise ValueError(f"{messages[0]['place']}: an earlier call has no result though a later one has; add it")
    return tuple(results[index] for index in range(len(results)))


def _result_content(message: dict) -> dict:
    """A JSON object as it is, anything else as {"result": value}."""
    text = "".join(value for kind, value in parts(message) if kind == "text").strip()
    try:
        value = read_json(text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"result": value}
