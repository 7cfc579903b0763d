"""Reader of chat-style files, the common form of other trainers: one conversation a record, one step an assistant turn.

A record is brought into one spelling (forms.py: where its messages are; places.py: `objects` written out; messages.py:
who says what; blocks.py, tools.py), and becomes steps (steps.py, calls.py, results.py, pictures.py). What must not be
learned is marked in many ways (markers.py), and under names that nobody knows (unread.py). A conversation is taken whole
or rejected whole: a step whose history has a hole would be learned from a prompt that never was.
"""

import hashlib
from collections.abc import Callable, Iterator

from qwenvl_agent.containers import Record
from qwenvl_agent.data.readers.chat import forms
from qwenvl_agent.data.readers.chat.calls import build_tools
from qwenvl_agent.data.readers.chat.forms import find_conversation
from qwenvl_agent.data.readers.chat.markers import MARKERS, SCORE_KEYS, check_markers, spread_masks
from qwenvl_agent.data.readers.chat.messages import normal_messages, split_system
from qwenvl_agent.data.readers.chat.pictures import Pictures
from qwenvl_agent.data.readers.chat.places import fill_places
from qwenvl_agent.data.readers.chat.steps import build_steps
from qwenvl_agent.data.readers.chat.tools import normal_tools
from qwenvl_agent.data.readers.chat.unread import check_unread_picture, unread_marker
from qwenvl_agent.data.source import Origin, Reject, SourceRow
from qwenvl_agent.json_input import reject_of
from qwenvl_agent.picture_store import PictureFolder

VERSION = 7
"""Of the rows that a file gives; see `readers.Reader`."""
UNSEEN_KEYS = frozenset(("videos", "video", "audios", "audio"))
KNOWN_KEYS = frozenset(
    (
        *forms.READ_KEYS,
        *MARKERS,
        *SCORE_KEYS,
        *("id", "images", "image", "objects", *UNSEEN_KEYS),
        *("tool_choice", "parallel_tool_calls", "metadata", "source", "dataset", "width", "height", "num_images"),
    )
)
"""Of a row: read, or without any bearing on what is learned."""


def open_reader(origin: Origin) -> Callable[[Record], list[SourceRow | Reject]]:
    """What reads a conversation: every step of it, in order, or one reject."""

    def read(record: Record) -> list[SourceRow | Reject]:
        try:
            # A list, not a generator: rows of a conversation that turns out bad must not have been yielded.
            return list(read_conversation(record, origin.folder))
        except Exception as error:
            return [reject_of(record.source, error)]

    return read


def read_conversation(conversation: Record, folder: PictureFolder) -> Iterator[SourceRow]:
    """The rows of one conversation; ValueError says what is wrong with it."""
    record, source = read_object(conversation), conversation.source
    for key in record.keys() & UNSEEN_KEYS:
        if record[key]:
            raise ValueError(f"{key} is given: only text and pictures can be shown; take the row out or give frames")
    found = find_conversation(record)
    record = spread_masks(record, found.messages)
    check_markers(record)
    pictures = Pictures(folder, forms.only_one(record, ("images", "image")) or [])
    placed, place_notes = fill_places(found.messages, record.get("objects"), pictures.screen)
    messages, message_notes = normal_messages(placed)
    system_prompt, messages = split_system(found.system, messages)
    tools = build_tools(normal_tools(found.tools)) if found.tools else ()
    steps = build_steps(messages, tools, pictures)
    pictures.check_all_used()
    if not pictures.num_shown:
        check_unread_picture(record, KNOWN_KEYS)
    notes = (*found.notes, *place_notes, *message_notes)
    if not KNOWN_KEYS.issuperset(record):
        notes += (*unread_marker(record, KNOWN_KEYS, "the row"),)
    name = record.get("id")
    key = str(name) if isinstance(name, str | int) else hashlib.sha256(conversation.identity()).hexdigest()[:16]
    episode_id = f"{key}#{source.rpartition(':')[2]}"
    for index, (step, weight, step_notes) in enumerate(steps):
        step_notes += notes if index == len(steps) - 1 else ()
        yield SourceRow(episode_id, index, key, system_prompt, tools, step, source, weight, step_notes)


def read_object(record: Record) -> dict:
    """The object that a record is; ValueError if it is none."""
    value = record.value()
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object: nothing to read; write one {{...}} a line")
    return value
