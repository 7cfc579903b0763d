"""JSON that others wrote: what it holds, or a ValueError that says what is wrong with it. Torch-free.

Stricter than Python's reader, which takes a key that is there twice (the last one wins, unseen).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reject:
    """A line that gave no row: `file:line`, and value, consequence, remedy."""

    source: str
    message: str
    is_left_out: bool = False
    """The record says itself that it is not to be learned: no fault of it."""


def _object(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key[:80]!r} is there twice in one object: which holds is unknown; keep one")
            seen.add(key)
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object)
LENIENT = json.JSONDecoder(parse_int=len)


def read_json(text: str) -> Any:
    """The value that is all of the text; ValueError says value, consequence and remedy."""
    return _named_errors(DECODER.decode, text)


def _named_errors(decode, *arguments):
    try:
        return decode(*arguments)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno}): the line is skipped; correct it") from None
    except RecursionError:
        raise ValueError("JSON nested too deep: the line is skipped; flatten it") from None
    except ValueError as error:
        if "integer string" not in str(error):
            raise
        raise ValueError("a number has thousands of digits: nothing could compute with it; correct it") from None


def read_list(path: Path) -> Iterator[tuple[str, object]]:
    """`file:line` and value of each item of a .json file's list (or of the one object in it); a ValueError as the
    value of an item that is refused. Brackets that do not close end the file there. Its text is held in memory."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        yield f"{path}:1", ValueError(f"byte {error.start} is not UTF-8: nothing is read; save it as UTF-8")
        return
    at, line = 0, 1
    while (start := _skip(text, at)) < len(text):
        line += text.count("\n", at, start)
        place = f"{path}:{line}"
        try:
            value, at = _named_errors(DECODER.raw_decode, text, start)
        except ValueError as error:
            end = _end_of_json(text, start)
            value = error if end else ValueError(f"{error}; the rest of the file is not read")
            at = end or len(text)
        line += text.count("\n", start, at)
        yield place, value


def _skip(text: str, at: int) -> int:
    """Past white space, and past the brackets and commas of the outer list."""
    while at < len(text) and text[at] in " \t\r\n[],":
        at += 1
    return at


def _end_of_json(text: str, at: int) -> int | None:
    """Where the value at a place ends, though it may be none that is taken; None if its brackets do not close."""
    try:
        return LENIENT.raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        return None


def read_line(line: bytes) -> Any:
    """The value on one line of a file, a byte order mark before it left out."""
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} is not UTF-8: the line cannot be read; convert the file to UTF-8"
        ) from None
    return read_json(text)


def fault_of_line(error: Exception) -> str:
    """What the reject of a line says. An error that nobody foresaw is named, so that its line is counted and found.

    Not the line's fault, and raised again: what the machine lacks (memory, a disk that can be read).
    """
    if isinstance(error, OSError | MemoryError):
        raise error
    # What a message quotes may hold half a character, which no file takes, or a terminal's control characters.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _describe(error))


def _describe(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{error.object[error.start]!r} is half a character: no file and no tokenizer can hold it; correct the text"
        )
    if isinstance(error, RecursionError):
        return "nested too deep: the line is skipped; flatten it"
    if isinstance(error, ValueError):
        return str(error)
    return (
        f"{type(error).__name__} ({str(error)[:200]}): nothing here reads a line like this one; compare it with the "
        "form that docs/DATA.md describes"
    )
