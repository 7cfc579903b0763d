"""Reader of chat-style JSONL, the common form of other trainers: one conversation a line, one step an assistant turn.

Both spellings are read, `messages` (role, content) and ShareGPT's `conversations` (from, value). A conversation is
taken whole or rejected whole: a step whose history has a hole would be learned from a prompt that never was.
"""

import hashlib
import json
from collections.abc import Callable, Iterator

from qwenvl_agent.containers import Record
from qwenvl_agent.data.readers.chat.calls import build_tools, decoded
from qwenvl_agent.data.readers.chat.markers import REJECTED_KEYS, check_markers
from qwenvl_agent.data.readers.chat.messages import normal_messages, split_system
from qwenvl_agent.data.readers.chat.pictures import Pictures
from qwenvl_agent.data.readers.chat.steps import build_steps
from qwenvl_agent.data.source import Origin, Reject, SourceRow
from qwenvl_agent.json_input import fault_of_line
from qwenvl_agent.picture_store import PictureFolder

VERSION = 2
"""Of the rows that a file gives; see `readers.Reader`."""


def open_reader(origin: Origin) -> Callable[[Record], list[SourceRow | Reject]]:
    """What reads a conversation: every step of it, in order, or one reject."""

    def read(record: Record) -> list[SourceRow | Reject]:
        try:
            # A list, not a generator: rows of a conversation that turns out bad must not have been yielded.
            return list(read_conversation(record, origin.folder))
        except Exception as error:
            return [Reject(record.source, fault_of_line(error))]

    return read


def read_conversation(conversation: Record, folder: PictureFolder) -> Iterator[SourceRow]:
    """The rows of one conversation; ValueError says what is wrong with it."""
    record, source = read_object(conversation), conversation.source
    for key in ("videos", "video", "audios", "audio"):
        if record.get(key):
            raise ValueError(f"{key} is given: only text and pictures can be shown; take the row out or give frames")
    check_markers(record)
    messages = normal_messages(record)
    system_prompt, messages = split_system(record, messages)
    tools = build_tools(json.dumps(decoded(record.get("tools") or [], "tools")))
    pictures = Pictures(folder, record.get("images") or record.get("image") or [])
    steps = build_steps(messages, tools, pictures)
    pictures.check_all_used()
    name = record.get("id")
    key = str(name) if isinstance(name, str | int) else hashlib.sha256(conversation.identity()).hexdigest()[:16]
    episode_id = f"{key}#{source.rpartition(':')[2]}"
    has_rejected = any(record.get(key) for key in REJECTED_KEYS)
    for index, (step, weight, notes) in enumerate(steps):
        notes += ("rejected_answer_left_out",) if has_rejected and index == len(steps) - 1 else ()
        yield SourceRow(episode_id, index, key, system_prompt, tools, step, source, weight, notes)


def read_object(record: Record) -> dict:
    """The object that a record is; ValueError if it is none."""
    value = record.value()
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object: nothing to read; write one {{...}} a line")
    return value
