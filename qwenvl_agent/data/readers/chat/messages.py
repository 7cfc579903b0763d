"""Messages in one spelling, whatever the trainer that they were written for: role, content, calls, reasoning."""

import json
from typing import Any

from qwenvl_agent.data.readers.chat.blocks import split_blocks
from qwenvl_agent.data.readers.chat.calls import decoded, split_thinking
from qwenvl_agent.data.readers.chat.content import text_only
from qwenvl_agent.data.readers.chat.forms import ANSWERERS, Placed
from qwenvl_agent.data.readers.chat.markers import MARKERS, weight_of
from qwenvl_agent.data.readers.chat.unread import check_unread_message

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(ANSWERERS, "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "tool_response", "function_response", "ipython"), "tool"),
}
CALL_ROLES = ("function_call", "tool_call")
"""Of a message that is nothing but calls."""
ITEM_ROLES = {"function_call": "function_call", "function_call_output": "tool"}
"""OpenAI's Responses write these as items with a type and no role."""
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
_REASONING = frozenset(REASONING_KEYS)
KNOWN_KEYS = MARKERS | {
    *(
        "role",
        "from",
        "content",
        "value",
        "tool_calls",
        "function_call",
        "tool_call_id",
        "call_id",
        "name",
        "id",
        "type",
    ),
    *("images", "image", "timestamp", "created_at", "model", "status", "arguments", "output", "turn", "source"),
    *(
        "prompt_tokens",
        "completion_tokens",
        "input_tokens",
        "output_tokens",
        "num_tokens",
        "stop_reason",
        "finish_reason",
    ),
    *REASONING_KEYS,
}
"""Read, or without any bearing on what is learned."""


def normal_messages(placed: list[Placed]) -> tuple[list[dict], list[str]]:
    """Messages in one spelling (role is system, user, assistant or tool; content; the rest as it was), and notes."""
    messages: list[dict] = []
    notes: list[str] = []
    for item in placed:
        message = _normal_message(item.message, item.place)
        if not KNOWN_KEYS.issuperset(item.message):
            notes += check_unread_message(item.message, KNOWN_KEYS, item.place)
        if message["role"] == "assistant":
            if item.is_prompt:
                message["loss"] = 0
        elif not MARKERS.isdisjoint(message) and weight_of(message) and _is_marked_to_learn(message):
            notes.append("only_answers_are_learned")
        for part in split_blocks(message):
            _append(messages, part)
    return messages, notes


def _is_marked_to_learn(message: dict) -> bool:
    return any(message.get(key) is True for key in ("train", "training", "trainable", "loss"))


def _append(messages: list[dict], message: dict) -> None:
    """A message of calls joins the assistant message before it, which it goes on."""
    if not (message.pop("goes_on", False) and messages and messages[-1]["role"] == "assistant"):
        messages.append(message)
        return
    before = messages[-1]
    if weight_of(before) != weight_of(message):
        raise ValueError(
            f"{before['place']} and {message['place']} are one turn, and weighted differently: a turn is learned as a whole "
            "or not at all; give both the same"
        )
    calls = [*_listed_calls(before), *_listed_calls(message)]
    messages[-1] = {**before, "place": f"{before['place']} and {message['place']}", "tool_calls": calls}
    _add_reasoning(messages[-1], message.get("reasoning_content") or "")


def _listed_calls(message: dict) -> list:
    calls = message.get("tool_calls") or message.get("function_call") or []
    return calls if isinstance(calls, list) else [calls]


def _normal_message(message: Any, place: str) -> dict:
    if not isinstance(message, dict):
        raise ValueError(f"{place} is {message!r}: not a message; give an object with role and content")
    role = _role(message, place)
    for key in ("images", "image"):
        if message.get(key):
            raise ValueError(
                f"{place} has {key} of its own: list them in the row's images, with <image> in the content"
            )
    normal = {**message, "place": place, "role": ROLES[role], "content": _content(message, place)}
    if normal["role"] == "tool":
        normal["tool_call_id"] = message.get("tool_call_id", message.get("call_id"))
        if isinstance(normal["content"], dict):
            normal["content"] = json.dumps(normal["content"])
    if normal["role"] == "assistant":
        _read_reasoning(normal, place)
    if role in CALL_ROLES:
        if message.get("tool_calls"):
            raise ValueError(f"{place} has tool_calls beside the calls of its role: the calls would double; keep one")
        content = normal["content"]
        thinking, called = split_thinking(content) if isinstance(content, str) else ("", content)
        _add_reasoning(normal, thinking)
        normal["tool_calls"] = _calls_of(message, called, place)
        normal["content"] = None
        normal["goes_on"] = True
    if normal["content"] is not None and not isinstance(normal["content"], str | list):
        raise ValueError(f"{place} content is {normal['content']!r}: it cannot be read; give text or a list of parts")
    if normal["content"] is None and normal["role"] in ("system", "user"):
        raise ValueError(f"{place} has no content: what was said is unknown; give content, or take the message out")
    return normal


def _role(message: dict, place: str) -> str:
    role = message.get("role", message.get("from"))
    if role is None:
        role = ITEM_ROLES.get(str(message.get("type")))
    known = role.lower() if isinstance(role, str) else ""
    if known not in ROLES:
        raise ValueError(f"{place} role is {role!r}: nobody known speaks; use one of {', '.join(ROLES)}")
    if message.get("from") not in (None, role):
        raise ValueError(f"{place} has role {role!r} and from {message['from']!r}: who speaks is unknown; keep one")
    return known


def _content(message: dict, place: str) -> Any:
    key = "output" if message.get("type") == "function_call_output" else "value"
    content, value = message.get("content"), message.get(key)
    if content is not None and value is not None and content != value:
        raise ValueError(f"{place} has content and {key}, which differ: which was said is unknown; keep one")
    return value if content is None else content


def _calls_of(message: dict, content: Any, place: str) -> Any:
    if content is None and message.get("name") is not None:
        return [{"id": message.get("call_id"), "name": message["name"], "arguments": message.get("arguments")}]
    calls = decoded(content, f"{place} {'value' if 'value' in message else 'content'}")
    if not calls:
        raise ValueError(f"{place} is {str(content)[:80]!r}: a call without a name; give name and arguments")
    return calls


def _read_reasoning(message: dict, place: str) -> None:
    """What an assistant thinks, under any of its names, as `reasoning_content`."""
    given = [] if _REASONING.isdisjoint(message) else [message.pop(key) for key in REASONING_KEYS if message.get(key)]
    if any(other != given[0] for other in given[1:]):
        raise ValueError(
            f"{place} has {' and '.join(REASONING_KEYS)} that differ: which was thought is unknown; keep one"
        )
    if given:
        message["reasoning_content"] = given[0]


def _add_reasoning(message: dict, thought: str) -> None:
    before = message.get("reasoning_content")
    if thought and before and before != thought:
        raise ValueError(
            f"{message['place']} has a reasoning field and a marked thought: which was thought is unknown; keep one"
        )
    if thought:
        message["reasoning_content"] = thought


def split_system(system: Any, messages: list[dict]) -> tuple[str, list[dict]]:
    """The system prompt of the row or of its first message, and the messages after it."""
    prompts = [system] if system else []
    if messages[0]["role"] == "system":
        prompts.append(text_only(messages[0]))
        messages = messages[1:]
    if len(prompts) > 1:
        raise ValueError("both 'system' and a system message: which one holds is unknown; keep one")
    for message in messages:
        if message["role"] == "system":
            raise ValueError(
                f"{message['place']} is a system message after the start: no prompt has a place for it; write its words into "
                "the first system message, or into what the user says next"
            )
    if prompts and isinstance(prompts[0], list):
        prompts[0] = text_only({"place": "system", "role": "system", "content": prompts[0]})
    if prompts and not isinstance(prompts[0], str):
        raise ValueError(f"system is {prompts[0]!r}: it cannot be read; give text")
    return (prompts[0] if prompts else ""), messages
