"""The parts of a message's content: text, and pictures by placeholder or by part."""

import re
from collections.abc import Iterator
from typing import Any

from qwenvl_agent.data.readers.chat.markers import MARKERS
from qwenvl_agent.data.readers.chat.unread import unread_marker
from qwenvl_agent.row_markers import as_number

PLACEHOLDER = re.compile(r" ?(?:<image>|<\|vision_start\|><\|image_pad\|><\|vision_end\|>)")
NAMED_PICTURE = re.compile(r"(?:Picture \d{1,4}: ?)?<img>([^<>]*)</img>\n?")
"""Qwen-VL's way to show a file, which SeeClick's data has too."""
IMAGE_PART_KEYS = ("image", "image_url", "path", "url", "value", "base64", "source", "image_path")
TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image", "image_url", "input_image")
PART_KEYS = frozenset(("type", "text", "value", "index", "detail", "id", "annotations", *IMAGE_PART_KEYS))


def parts(message: dict) -> Iterator[tuple[str, Any]]:
    """("text", str) and ("image", own path or None), in the order of the message."""
    content = message["content"] or ""
    if isinstance(content, str):
        yield from _shown(content, message)
        return
    for i, part in enumerate(content):
        yield from _read_part(part, f"{message['place']} content[{i}]", message)


def _shown(content: str, message: dict) -> Iterator[tuple[str, Any]]:
    first, *rest = PLACEHOLDER.split(content) if "<" in content else [content]
    yield from _named(first, message)
    for text in rest:
        yield "image", None
        yield from _named(text, message)


def _named(text: str, message: dict) -> Iterator[tuple[str, Any]]:
    """The text of a user or a tool with the pictures that it names as <img>file</img>."""
    if "<img>" not in text or message["role"] not in ("user", "tool"):
        yield "text", text
        return
    pieces = NAMED_PICTURE.split(text)
    yield "text", pieces[0]
    for path, after in zip(pieces[1::2], pieces[2::2], strict=True):
        yield "image", path.strip()
        yield "text", after


def _read_part(part: Any, place: str, message: dict) -> Iterator[tuple[str, Any]]:
    if not isinstance(part, dict):
        raise ValueError(f"{place} is {str(part)[:80]!r}: only text and image parts can be shown; remove it")
    kind = part.get("type")
    if kind is None:
        # Qwen-Agent's parts have no type: {"text": ...} and {"image": ...}.
        kind = next((key for key in ("text", "image", "image_url") if part.get(key) is not None), None)
    text = part.get("value") if part.get("text") is None else part["text"]
    image = next((part[key] for key in IMAGE_PART_KEYS if part.get(key)), None)
    if kind in TEXT_TYPES and isinstance(text, str) and (image is None or image == part.get("value")):
        _check_part(part, place)
        yield from _named(text, message)
    elif kind in IMAGE_TYPES and not part.get("text"):
        _check_part(part, place)
        yield "image", _picture_of(image)
    else:
        raise ValueError(f"{place} is {str(part)[:80]!r}: only text and image parts can be shown; remove it")


def _picture_of(image: Any) -> Any:
    """A path, URI or bytes; of Anthropic's source a data URI."""
    if isinstance(image, dict) and image.get("type") == "base64" and isinstance(image.get("data"), str):
        return f"data:{image.get('media_type') or ''};base64,{image['data']}"
    return image


def _check_part(part: dict, place: str) -> None:
    """ValueError for a part that is marked by itself: a message is learned as a whole."""
    if part.keys() <= PART_KEYS:
        return
    for key in part.keys() & MARKERS:
        if part[key] is not None and as_number(part[key]) != 1:
            raise ValueError(
                f"{place} {key} is {str(part[key])[:80]}: a turn is learned as a whole or not at all, and this part would "
                "be; give the message weight 0, or take the part out"
            )
    for _ in unread_marker(part, MARKERS | PART_KEYS, place):
        pass


def text_only(message: dict) -> str:
    """A message's text; ValueError if it holds a picture."""
    text = ""
    for kind, value in parts(message):
        if kind == "image":
            raise ValueError(f"{message['place']} ({message['role']}) holds a picture: only users show pictures")
        text += value
    return text
