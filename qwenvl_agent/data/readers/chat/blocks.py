"""Blocks of content that are no words and no pictures: calls, results and reasoning (Anthropic's, LLaMA-Factory's)."""

import json
from typing import Any

from qwenvl_agent.data.readers.chat.calls import decoded

CALLS = {"tool_use": "input", "tool_call": "value", "function_call": "arguments"}
"""Type of block -> where its arguments are, or the whole call."""
REASONING = {"thinking": "thinking", "reasoning": "value"}
RESULTS = ("tool_result",)
BLOCK_TYPES = frozenset((*CALLS, *REASONING, *RESULTS))


def split_blocks(message: dict) -> list[dict]:
    """The message with its blocks as calls and reasoning, after a message for each result in it."""
    content = message["content"]
    if not isinstance(content, list) or not any(_type(part) in BLOCK_TYPES for part in content):
        return [message]
    if message["role"] == "assistant":
        return [_with_calls(message, content)]
    return _after_results(message, content)


def _type(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else None


def _with_calls(message: dict, content: list) -> dict:
    words, calls, thoughts = [], [], []
    for i, part in enumerate(content):
        place = f"{message['place']} content[{i}]"
        kind = _type(part)
        if kind in CALLS:
            calls.append(_call(part, kind, place))
        elif kind in REASONING:
            thoughts.append(_string(part.get(REASONING[kind], part.get("text")), place))
        elif kind in RESULTS:
            raise ValueError(
                f"{place} is a {kind} in an assistant's message: no tool speaks there; give it to the user's next"
            )
        elif calls:
            raise ValueError(f"{place} stands after a call: no format writes it there; move it to the front")
        else:
            words.append(part)
    if calls and message.get("tool_calls"):
        raise ValueError(f"{message['place']} has tool_calls and blocks of calls: the calls would double; keep one")
    if thoughts and message.get("reasoning_content"):
        raise ValueError(
            f"{message['place']} has reasoning_content and blocks of it: which was thought is unknown; keep one"
        )
    message = {**message, "content": words or None}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return message


def _call(part: dict, kind: str, place: str) -> Any:
    if kind == "tool_call" and part.get("value") is not None:
        return decoded(part["value"], f"{place} value")
    return {"id": part.get("id"), "name": part.get("name"), "arguments": part.get(CALLS[kind])}


def _after_results(message: dict, content: list) -> list[dict]:
    results: list[dict] = []
    rest: list = []
    for i, part in enumerate(content):
        place = f"{message['place']} content[{i}]"
        kind = _type(part)
        if kind in RESULTS:
            if rest:
                raise ValueError(f"{place} is a {kind} after other parts: results come first; move it to the front")
            results.append(_result(part, place))
        elif kind in BLOCK_TYPES:
            raise ValueError(
                f"{place} is a {kind} in a message of a {message['role']}: only an assistant calls; correct it"
            )
        else:
            rest.append(part)
    return [*results, {**message, "content": rest}] if rest else results


def _result(part: dict, place: str) -> dict:
    answered = part.get("content")
    if isinstance(answered, dict):
        answered = json.dumps(answered)
    if answered is not None and not isinstance(answered, str | list):
        raise ValueError(f"{place} content is {str(answered)[:80]!r}: it cannot be read; give text or a list of parts")
    return {"place": place, "role": "tool", "content": answered, "tool_call_id": part.get("tool_use_id")}


def _string(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place} is {str(value)[:80]!r}: it cannot be read; give text")
    return value
