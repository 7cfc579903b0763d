"""A .json file's list, an item at a time: of the file's text only a window is in memory, as wide as its largest item."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from qwenvl_agent.containers.note import Note, ignore
from qwenvl_agent.json_input import DECODER, LENIENT, MAX_RECORD_BYTES, json_fault, too_long

CHUNK = 2**20
MARGIN = 32
"""Characters before the window's end in which a value that seems to end, or to be broken, may go on behind it."""
BETWEEN = re.compile(r"[ \t\r\n\[\],]*")
"""White space, and the brackets and commas of the outer list."""


def read_list(path: Path, note: Note = ignore) -> Iterator[tuple[str, object]]:
    """Place and value of each item of the file's list (or of the one object in it, or of one after another); a ValueError
    as the value of an item that is refused. Brackets that do not close, and bytes that are no text, end the file there.

    The place is `file:line`, with `[index]` behind it if another item began on that line.
    """
    with open(path, "rb") as file:
        window, last_line, index = _Window(file), 0, 0
        while window.skip():
            place = f"{path}:{window.line}" + (f"[{index}]" if window.line == last_line else "")
            last_line, index = window.line, index + 1
            yield place, window.take()
            note(window.num_bytes)
        if window.fault:
            yield f"{path}:{window.line}", ValueError(window.fault)


class _Window:
    """The part of a file's text that is looked at; `at` is the place in it."""

    def __init__(self, file: BinaryIO):
        self.file, self.decoder = file, codecs.getincrementaldecoder("utf-8")()
        self.text, self.at, self.line = "", 0, 1
        self.num_bytes, self.is_at_end, self.fault = 0, False, ""
        self.column = 0
        """Characters of the line that were in front of the window."""

    def skip(self) -> bool:
        """Go to the next item; False if there is none."""
        while True:
            match = BETWEEN.match(self.text, self.at)
            assert match is not None
            self._advance(match.end())
            if self.at < len(self.text) or not self._grow():
                return self.at < len(self.text)

    def take(self) -> object:
        """The item here, or the ValueError that says what is wrong with it; the place is behind it."""
        while True:
            try:
                value, end = self._decode()
            except (json.JSONDecodeError, RecursionError) as error:
                if not (self._may_be_cut(error) and self._grow()):
                    return self._give_up(error)
            else:
                if end < len(self.text) - MARGIN or not self._grow():
                    self._advance(end)
                    return value

    def _decode(self) -> tuple[object, int]:
        try:
            return DECODER.raw_decode(self.text, self.at)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            # It is none that is taken, but its brackets close.
            return json_fault(error), LENIENT.raw_decode(self.text, self.at)[1]

    def _may_be_cut(self, error: Exception) -> bool:
        """Whether what is broken may be whole with the text behind the window."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.pos >= len(self.text) - MARGIN or error.msg.startswith("Unterminated string")

    def _give_up(self, error: Exception) -> ValueError:
        fault, self.fault = self.fault or str(json_fault(error, before=self.column)), ""
        self._advance(len(self.text))
        self.is_at_end = True
        return ValueError(f"{fault}; the rest of the file is not read")

    def _advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def _grow(self) -> bool:
        """Read on, and let go of what is in front of the place; False at the file's end."""
        if not self.is_at_end and len(self.text) - self.at > MAX_RECORD_BYTES:
            self.is_at_end, self.fault = True, str(too_long())
        if self.is_at_end:
            return False
        content = self.file.read(max(CHUNK, len(self.text) - self.at))
        text = self._text_of(content)
        if not content:
            self.is_at_end = True
            return False
        head, self.text = self.text[: self.at], self.text[self.at :] + text
        self.column = self.at - head.rindex("\n") - 1 if "\n" in head else self.column + self.at
        self.at = 0
        return True

    def _text_of(self, content: bytes) -> str:
        num_before = self.num_bytes - len(self.decoder.getstate()[0])
        self.num_bytes += len(content)
        try:
            text = self.decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            self.fault = (
                f"byte {num_before + error.start} is not UTF-8: from there on nothing is read; save it as UTF-8"
            )
            self.is_at_end = True
            text = error.object[: error.start].decode()
        return text.removeprefix("\ufeff") if num_before == 0 else text
