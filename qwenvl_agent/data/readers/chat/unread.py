"""Keys that no reader knows: what they may hold is refused or noted by name, where to drop it would be to learn wrongly."""

import re
from collections.abc import Iterator, Mapping, Set
from functools import lru_cache

from qwenvl_agent.json_input import LeftOutError
from qwenvl_agent.row_markers import as_number

MARKER = re.compile(
    r"loss|weight|mask|(?<!s)train|label|reward|correct|score|reject|learn|supervis|success|desirable|accepted|prefer"
    r"|advantage|rating|quality|vote|feedback|completed"
)
AGAINST = re.compile(
    r"incorrect|wrong|mistake|masked|reject|exclude|ignore|skip|no_?loss|no_?train|not_|redundant|failed"
)
"""Keys whose yes is a no."""
PICTURE = re.compile(r"image|img|picture|photo|screenshot|frame|video|audio|pixel")
TOOLS = re.compile(r"tools|functions")
CALL = re.compile(r"tool|function|call|action")
WORDS = re.compile(r"text|message|answer|response|thought|think|reason|prompt|instruction|refusal")
FILE = re.compile(
    r"(?:data:|https?://|file://).*|.*\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|mp4|webm|mov|wav|mp3)", re.I | re.S
)
MAX_NAME = 40


def unread_marker(values: Mapping, known: Set, place: str) -> Iterator[str]:
    """Notes of unknown keys that may say how much to learn; ValueError for one that says not to."""
    for key in sorted(values.keys() - known):
        value = values[key]
        if key.lower() == "mask" and as_number(value) is not None:
            raise ValueError(
                f"{place} has {key[:MAX_NAME]!r}: {str(value)[:80]}: whether it is to be learned or left out is not said; give "
                "weight 0 or 1"
            )
        if not _is_empty(value) and _kind(key) == "marker":
            if _is_against(key, value):
                raise LeftOutError(
                    f"{place} has {key[:MAX_NAME]!r}: {str(value)[:80]}: it is marked as one not to learn, in a way that is "
                    "not known here; take it out, or give the answer weight 0"
                )
            if not isinstance(value, Mapping):
                yield f"not_read: {_printable(key)}"


def check_unread_message(message: Mapping, known: Set, place: str) -> list[str]:
    """Notes of a message's unknown keys; ValueError for one that may hold words, a picture or a call."""
    for key in message.keys() - known:
        kind = _kind(key)
        if kind in _LOST and not _is_empty(message[key]):
            raise ValueError(
                f"{place} has {key[:MAX_NAME]!r}, which is not read: {_LOST[kind]} would be lost; {_REMEDY[kind]}"
            )
    return list(unread_marker(message, known, place))


def check_unread_picture(record: Mapping, known: Set) -> None:
    """ValueError for a row that shows no picture, and names one under a key that is not read."""
    for key in record.keys() - known:
        if _kind(key) == "picture" and _names_a_file(record[key]):
            raise ValueError(
                f"{key[:MAX_NAME]!r} is {str(record[key])[:80]!r}, which is not read: the picture would not be seen; name it "
                "in images, with <image> where it stands"
            )


_LOST = {"tools": "the tools", "picture": "the picture", "call": "the call", "words": "the words"}
_REMEDY = {
    "picture": "list it in the row's images, with <image> in the content",
    "tools": "list them in the row's tools",
    "call": "write it as tool_calls",
    "words": "write them into content (or reasoning_content)",
}


@lru_cache(maxsize=4096)
def _kind(key: str) -> str:
    name = key.lower()
    patterns = {"marker": MARKER, "against": AGAINST, "picture": PICTURE, "tools": TOOLS, "call": CALL, "words": WORDS}
    kind = next((kind for kind, pattern in patterns.items() if pattern.search(name)), "")
    return "marker" if kind == "against" else kind


def _is_against(key: str, value: object) -> bool:
    """Whether it is a plain no: false, 0 (but for a score), a negative number; one of a list."""
    if isinstance(value, list):
        return any(_is_against(key, item) for item in value[:10_000])
    if isinstance(value, Mapping):
        return False
    number = as_number(value)
    if number is None:
        return isinstance(value, float)
    if AGAINST.search(key.lower()):
        return number > 0
    is_count = not isinstance(value, bool | str) and re.search(
        r"score|reward|rating|vote|advantage|quality", key.lower()
    )
    return number < 0 or (number == 0 and not is_count)


def _is_empty(value: object) -> bool:
    return value is None or value == "" or value == [] or value == {}


def _names_a_file(value: object) -> bool:
    if isinstance(value, list):
        return any(_names_a_file(item) for item in value)
    if isinstance(value, Mapping):
        return any(_names_a_file(item) for item in value.values())
    return isinstance(value, bytes) or (isinstance(value, str) and FILE.fullmatch(value.strip()) is not None)


def _printable(key: str) -> str:
    return "".join(c for c in key[:MAX_NAME] if c.isprintable())
