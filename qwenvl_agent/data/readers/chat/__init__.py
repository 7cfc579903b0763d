"""Reader of chat-style JSONL, the common form of other trainers: one conversation a line, one step an assistant turn.

Both spellings are read, `messages` (role, content) and ShareGPT's `conversations` (from, value). A conversation is
taken whole or rejected whole: a step whose history has a hole would be learned from a prompt that never was.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from qwenvl_agent.data.readers.chat.calls import build_tools, decoded
from qwenvl_agent.data.readers.chat.markers import REJECTED_KEYS, check_markers
from qwenvl_agent.data.readers.chat.messages import normal_messages, split_system
from qwenvl_agent.data.readers.chat.pictures import Pictures
from qwenvl_agent.data.readers.chat.steps import build_steps
from qwenvl_agent.data.source import Reject, SourceRow
from qwenvl_agent.json_input import fault_of_line, read_line, read_list

VERSION = 1
"""Of the rows that a file gives; see `readers.Reader`."""


def read_rows(path: Path) -> Iterator[SourceRow | Reject]:
    """Every step of every conversation in the file, in order; blank lines are skipped."""
    for source, line in _lines(path):
        try:
            if isinstance(line, ValueError):
                raise line
            # A list, not a generator: rows of a conversation that turns out bad must not have been yielded.
            rows = list(read_conversation(line, path.parent, source))
        except Exception as error:
            yield Reject(source, fault_of_line(error))
        else:
            yield from rows


def _lines(path: Path) -> Iterator[tuple[str, bytes | ValueError]]:
    """`file:line` and text of each conversation: of each line, or in a .json file of each item of its list."""
    if path.suffix == ".json":
        for source, value in read_list(path):
            yield source, value if isinstance(value, ValueError) else json.dumps(value).encode()
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", line


def read_conversation(line: bytes, root: Path, source: str) -> Iterator[SourceRow]:
    """The rows of one line; ValueError says what is wrong with it."""
    record = parse_line(line)
    for key in ("videos", "video", "audios", "audio"):
        if record.get(key):
            raise ValueError(f"{key} is given: only text and pictures can be shown; take the row out or give frames")
    check_markers(record)
    messages = normal_messages(record)
    system_prompt, messages = split_system(record, messages)
    tools = build_tools(json.dumps(decoded(record.get("tools") or [], "tools")))
    pictures = Pictures(root, record.get("images") or record.get("image") or [])
    steps = build_steps(messages, tools, pictures)
    pictures.check_all_used()
    name = record.get("id")
    key = str(name) if isinstance(name, str | int) else hashlib.sha256(line.strip()).hexdigest()[:16]
    episode_id = f"{key}#{source.rpartition(':')[2]}"
    has_rejected = any(record.get(key) for key in REJECTED_KEYS)
    for index, (step, weight, notes) in enumerate(steps):
        notes += ("rejected_answer_left_out",) if has_rejected and index == len(steps) - 1 else ()
        yield SourceRow(episode_id, index, key, system_prompt, tools, step, source, weight, notes)


def parse_line(line: bytes) -> dict:
    """The JSON object on one line; ValueError if there is none."""
    record = read_line(line)
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}, not an object: nothing to read; write one {{...}} a line")
    return record
