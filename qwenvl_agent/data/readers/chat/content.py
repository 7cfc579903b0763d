"""The parts of a message's content: text, and pictures by placeholder or by part."""

import re
from collections.abc import Iterator
from typing import Any

PLACEHOLDER = re.compile(r" ?<image>")
IMAGE_PART_KEYS = ("image", "image_url", "path", "url")


def parts(message: dict) -> Iterator[tuple[str, Any]]:
    """("text", str) and ("image", own path or None), in the order of the message."""
    content = message["content"] or ""
    if isinstance(content, str):
        first, *rest = PLACEHOLDER.split(content)
        yield "text", first
        for text in rest:
            yield "image", None
            yield "text", text
        return
    for i, part in enumerate(content):
        place = f"{message['place']} content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            yield "text", part["text"]
        elif kind in ("image", "image_url"):
            yield "image", next((part[key] for key in IMAGE_PART_KEYS if part.get(key)), None)
        else:
            raise ValueError(f"{place} is {str(part)[:80]!r}: only text and image parts can be shown; remove it")


def text_only(message: dict) -> str:
    """A message's text; ValueError if it holds a picture."""
    text = ""
    for kind, value in parts(message):
        if kind == "image":
            raise ValueError(f"{message['place']} ({message['role']}) holds a picture: only users show pictures")
        text += value
    return text
