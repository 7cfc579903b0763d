"""What is brought into a row before its paths are followed: rows in nested files, JSON in texts, parts of texts.

Two transforms do what paths cannot say:

| transform | adds |
|---|---|
| conversation_turns | `turns`: each user message of `conversations` with `asked` (the text after "Instruction:", or all), `before` (the lines after "Previous actions:"), and what is answered to it: `code` (calls) and `said` (words) |
| reference_boxes | `elements`: `instruction` and `bbox` or `point` of each <ref>...</ref><box>[[...]]</box> (or <point>) in `conversations` |
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwenvl_agent.curation.paths import value_at
from qwenvl_agent.data.readers.computer import RecordError
from qwenvl_agent.files import confined_path
from qwenvl_agent.json_input import read_json

INSTRUCTION = re.compile(r"(?i)\binstruction:\s*")
END_OF_TASK = re.compile(r"(?im)^[^\S\n]*(?:\n|previous actions:)")
REFERENCE_END = re.compile(r"</ref>\s*<(box|point)>\[\[([^]<]*)\]\]</(?:box|point)>")
CODE = re.compile(r"\b(?:pyautogui|mobile|browser|computer|time)\.\w+\(|^terminate\(|^answer\(")
MAX_FILE_BYTES = 16 * 2**20
NO_ROWS = "no_rows"


# Rows


def nested_rows(value: object, path: str, source: str) -> Iterator[tuple[str, object]]:
    """(place, row) of every row at a path with `*` in a file's value; a RecordError in a row's place where the path ends."""
    found: list[tuple[tuple[str, ...], object]] = [((), value)]
    for part in path.split("."):
        found = [(keys + more, item) for keys, value in found for more, item in _children(value, part, keys, source)]
    for keys, row in found:
        place = source + "".join(f"[{key}]" for key in keys)
        if isinstance(row, list):
            row = {"list": row}
        yield place, {**row, "keys": list(keys)} if isinstance(row, dict) else row


def _children(value: object, part: str, keys: tuple[str, ...], source: str) -> list[tuple[tuple[str, ...], object]]:
    if isinstance(value, RecordError):
        return [((), value)]
    if part != "*":
        child = value_at({"value": value}, f"value.{part}")
        return [((part,), child)] if child is not None else [((), _no_rows(value, part, keys))]
    if isinstance(value, dict):
        return [((key,), item) for key, item in value.items()]
    if isinstance(value, list):
        return [((str(i),), item) for i, item in enumerate(value)]
    return [((), _no_rows(value, part, keys))]


def _no_rows(value: object, part: str, keys: tuple[str, ...]) -> RecordError:
    place = ".".join(keys) or "the file"
    where = "no rows in it" if part == "*" else f"no {part!r} with rows"
    return RecordError(NO_ROWS, f"{place} is {str(value)[:80]}: it has {where}; use the right layout")


# Texts


def read_files(row: dict, files: dict, folder: Path) -> dict:
    """The row with the contents of files in the place of their names; what is no name is the content itself."""
    for path, kind in files.items():
        name = value_at(row, path)
        if isinstance(name, dict) if kind == "json" else "\n" in str(name):
            continue
        if not isinstance(name, str):
            raise RecordError("bad_record", f"{path} is {str(name)[:80]}: no file is named; name it")
        text = _file_text(name, folder)
        row = _replaced(row, path.split("."), text if kind == "text" else _decoded(text))
    return row


def _file_text(name: str, folder: Path) -> str:
    path = confined_path(folder, name)
    if not path.is_file():
        raise RecordError("no_file", f"{name!r} is not in {folder}: the row is not whole; copy the file there")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise RecordError(
            "no_file", f"{name!r} has more than {MAX_FILE_BYTES} bytes: it is not read; name the right file"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecordError("bad_record", f"{name!r}: byte {error.start} is not UTF-8: save it as UTF-8") from None


def decoded(row: dict, paths: tuple[str, ...]) -> dict:
    """The row with the JSON texts at these paths decoded."""
    for path in paths:
        row = _replaced(row, path.split("."), None)
    return row


def _replaced(value: Any, parts: list[str], content: object) -> Any:
    """`value` with what is at the path replaced by the content; None: by what its JSON text holds."""
    if not parts:
        return _decoded(value) if content is None else content
    if isinstance(value, dict) and parts[0] in value:
        return {**value, parts[0]: _replaced(value[parts[0]], parts[1:], content)}
    if isinstance(value, list) and parts[0] == "*":
        return [_replaced(item, parts[1:], content) for item in value]
    return value


def _decoded(value: object) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError as error:
        raise RecordError("bad_record", f"{value[:80]!r}: {error}") from None


def check_pattern(place: str, pattern: str) -> None:
    """ValueError for what RE2 does not take, and for a pattern without a named group."""
    if "(?P<" not in pattern:
        raise ValueError(f"{place} has no named group: it gives no field; write (?P<name>...)")
    try:
        parts_of("", pattern)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def parts_of(text: str, pattern: str) -> dict[str, str] | None:
    """The named groups of the first match; None if there is none. RE2 takes time linear in the text."""
    from pyarrow import ArrowInvalid, compute, scalar

    try:
        return compute.extract_regex(scalar(text), pattern).as_py()
    except ArrowInvalid as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(f"pattern {pattern[:80]!r} is none of RE2 ({reason}): correct it") from None


def with_parts(row: dict, text: str, pattern: str) -> dict:
    """The row with the parts of the text at a path."""
    value = value_at(row, text)
    if not isinstance(value, str):
        raise RecordError("bad_record", f"{text} is {str(value)[:80]}: not a text; use the right layout")
    parts = parts_of(value, pattern)
    if parts is None:
        raise RecordError(
            "bad_record", f"{text} is {value[:80]!r}: it has another form than its layout says; correct it"
        )
    return row | parts


# Transforms


def listed(row: dict, path: str, index: int = 0) -> list:
    """The list of objects at a path."""
    value = value_at(row, path, index)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RecordError("bad_record", f"{path} is {str(value)[:80]}: not a list of objects; use the right layout")
    return value


def _messages(row: dict) -> Iterator[tuple[object, str, object]]:
    """(speaker, text, recipient) of each message."""
    for i, message in enumerate(listed(row, "conversations")):
        text = message.get("value")
        if not isinstance(text, str):
            raise RecordError("bad_record", f"conversations[{i}].value is {str(text)[:80]}: not a text; write one")
        yield message.get("from"), text, message.get("recipient")


def _conversation_turns(row: dict) -> dict:
    turns: list[dict] = []
    for i, (speaker, value, recipient) in enumerate(_messages(row)):
        text = value.replace("<image>", "").strip()
        if speaker == "human":
            turns.append({**_task_of(text), "said": "", "code": ""})
        elif speaker == "gpt" and turns:
            key = "code" if recipient == "os" or CODE.search(text) else "said"
            turns[-1][key] = f"{turns[-1][key]}\n{text}".strip()
        elif speaker != "system":
            fault = "answers no question" if speaker == "gpt" else "is of nobody that is known"
            raise RecordError("bad_record", f"conversations[{i}] from {str(speaker)[:40]!r} {fault}: correct it")
    return {**row, "turns": turns}


def _task_of(text: str) -> dict:
    """`asked` and `before` of a user's message."""
    asked, task = "", INSTRUCTION.search(text)
    if task:
        end = END_OF_TASK.search(text, task.end() + 1)
        asked = text[task.end() : end.start() if end else len(text)].strip()
    before = re.search(r"(?is)\bprevious actions:\s*(.*)\Z", text)
    lines = [line.strip() for line in before.group(1).splitlines()] if before else []
    return {"asked": asked or text, "before": [line for line in lines if line and line != "None"]}


def _reference_boxes(row: dict) -> dict:
    elements = []
    for _, text, _ in _messages(row):
        at = 0
        for end in REFERENCE_END.finditer(text):
            start = text.find("<ref>", at, end.start())
            if start >= 0:
                name, key = text[start + len("<ref>") : end.start()].strip(), end.group(1)
                elements.append({"instruction": name, "bbox" if key == "box" else "point": end.group(2)})
                at = end.end()
    return {**row, "elements": elements}


TRANSFORMS = {"conversation_turns": _conversation_turns, "reference_boxes": _reference_boxes}
