"""JSON that others wrote: what it holds, or a ValueError that says what is wrong with it. Torch-free.

Stricter than Python's reader, which takes a key that is there twice (the last one wins, unseen).
"""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reject:
    """A line that gave no row: `file:line`, and value, consequence, remedy."""

    source: str
    message: str
    is_left_out: bool = False
    """The record says itself that it is not to be learned: no fault of it."""


class LeftOutError(ValueError):
    """Why a record gives no row that says itself that it is not to be learned: `Reject.is_left_out`."""


def reject_of(source: str, error: Exception) -> Reject:
    """The reject of a record, whatever went wrong with it."""
    return Reject(source, fault_of_line(error), isinstance(error, LeftOutError))


MAX_RECORD_BYTES = 2**28
"""Of a line, or of an item of a list: pictures are embedded in some. A file without line ends is not read into memory whole."""


def too_long() -> ValueError:
    return ValueError(
        f"a record of more than {MAX_RECORD_BYTES} bytes: it is not read, as no row is that long; correct the file, or write "
        "one object a line, its pictures as files"
    )


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
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise json_fault(error) from None


def json_fault(error: Exception, before: int = 0) -> ValueError:
    """What a decoder's error says, with value, consequence and remedy. `before`: characters of the line in front of the
    text that was decoded."""
    if isinstance(error, json.JSONDecodeError):
        column = error.colno + (before if error.lineno == 1 else 0)
        return ValueError(f"not JSON ({error.msg}, column {column}): the line is skipped; correct it")
    if isinstance(error, RecursionError):
        return ValueError("JSON nested too deep: the line is skipped; flatten it")
    if "integer string" in str(error):
        return ValueError("a number has thousands of digits: nothing could compute with it; correct it")
    return ValueError(str(error))


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
