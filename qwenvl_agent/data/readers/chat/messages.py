"""Messages in one spelling, whatever the trainer that they were written for, and the parts of their content."""

import json

from qwenvl_agent.data.readers.chat.calls import decoded, split_thinking
from qwenvl_agent.data.readers.chat.content import text_only

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}


def normal_messages(record: dict) -> list[dict]:
    """`messages` in one spelling: role (system, user, assistant, tool), content, and the rest as it was."""
    key = "messages" if "messages" in record else "conversations"
    messages = record.get(key)
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{key} is {messages!r}: there is no conversation; give a list of messages")
    return [_normal_message(message, f"{key}[{i}]") for i, message in enumerate(messages)]


def _normal_message(message: object, place: str) -> dict:
    if not isinstance(message, dict):
        raise ValueError(f"{place} is {message!r}: not a message; give an object with role and content")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{place} role is {role!r}: nobody known speaks; use one of {', '.join(ROLES)}")
    if message.get("images"):
        raise ValueError(f"{place} has images of its own: list them in the row's images, with <image> in the content")
    normal = {**message, "place": place, "role": ROLES[role]}
    normal["content"] = message.get("content", message.get("value"))
    if normal["role"] == "tool" and isinstance(normal["content"], dict):
        normal["content"] = json.dumps(normal["content"])
    if role == "function_call":
        thinking, called = (
            split_thinking(normal["content"]) if isinstance(normal["content"], str) else ("", normal["content"])
        )
        normal["tool_calls"] = decoded(called, f"{place} value")
        normal["content"] = thinking
    if normal["content"] is not None and not isinstance(normal["content"], str | list):
        raise ValueError(f"{place} content is {normal['content']!r}: it cannot be read; give text or a list of parts")
    return normal


def split_system(record: dict, messages: list[dict]) -> tuple[str, list[dict]]:
    prompts = [record["system"]] if record.get("system") else []
    if messages[0]["role"] == "system":
        prompts.append(text_only(messages[0]))
        messages = messages[1:]
    if len(prompts) > 1:
        raise ValueError("both 'system' and a system message: which one holds is unknown; keep one")
    for message in messages:
        if message["role"] == "system":
            raise ValueError(f"{message['place']} is a system message after the start: no prompt has a place for it")
    if prompts and not isinstance(prompts[0], str):
        raise ValueError(f"system is {prompts[0]!r}: it cannot be read; give text")
    return (prompts[0] if prompts else ""), messages
