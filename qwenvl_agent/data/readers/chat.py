"""Reader of chat-style JSONL, the common form of other trainers: one conversation a line, one step an assistant turn.

Both spellings are read, `messages` (role, content) and ShareGPT's `conversations` (from, value). A conversation is
taken whole or rejected whole: a step whose history has a hole would be learned from a prompt that never was.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qwenvl_agent.data.source import Reject, SourceRow
from qwenvl_agent.families.calls import HERMES
from qwenvl_agent.files import confined_path
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.json_input import fault_of_line, read_json, read_line, read_list
from qwenvl_agent.row_markers import WEIGHT_KEYS, check_row_markers
from qwenvl_agent.schema import (
    Observation,
    Picture,
    Step,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    tool_named,
)
from qwenvl_agent.tool_schema import argument_error, check_schema

VERSION = 1
"""Of the rows that a file gives; see `readers.Reader`."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
PLACEHOLDER = re.compile(r" ?<image>")
MIN_WEIGHT, MAX_WEIGHT = 1e-4, 1e4
"""Of a turn's loss: beyond, float32 or all the other rows of a step would be lost."""
SCORE_KEYS = ("score", "reward")
CHOSEN_KEYS = ("chosen", "chosen_response", "preferred_output")
REJECTED_KEYS = ("rejected", "rejected_response", "rejected_messages")
"""Of a row: an answer that is worse than the conversation's own."""
IMAGE_FILE = re.compile(r"<img>[^<>]*</img>")
IMAGE_PART_KEYS = ("image", "image_url", "path", "url")


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
    _check_markers(record)
    messages = _normal_messages(record)
    system_prompt, messages = _split_system(record, messages)
    tools = build_tools(json.dumps(_decoded(record.get("tools") or [], "tools")))
    pictures = _Pictures(root, record.get("images") or record.get("image") or [])
    steps = _build_steps(messages, tools, pictures)
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


def _check_markers(record: dict) -> None:
    """ValueError for a row that other trainers would not learn as a good answer, or not as it stands."""
    check_row_markers(record, "take the row out, or give every assistant message its weight")
    for key in SCORE_KEYS:
        value = record.get(key)
        if isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"{key} of the row is {str(value)[:80]}: a bad answer would be learned; take the row out")
    for key in CHOSEN_KEYS:
        if record.get(key):
            raise ValueError(
                f"{key} is given beside the conversation: the answer to learn is not in it; append it as its last message"
            )
    if record.get("objects"):
        raise ValueError(
            "objects is given: its places would not be filled in for <bbox> and <ref-object>, which would be learned as "
            "they stand; write the places into the text, in thousandths of the picture"
        )


def _normal_messages(record: dict) -> list[dict]:
    """`messages` in one spelling: role (system, user, assistant, tool), content, and the rest as it was."""
    key = "messages" if "messages" in record else "conversations"
    messages = record.get(key)
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{key} is {messages!r}: there is no conversation; give a list of messages")
    return [_normal_message(message, f"{key}[{i}]") for i, message in enumerate(messages)]


def _normal_message(message: object, place: str) -> dict:
    if not isinstance(message, dict):
        raise ValueError(f"{place} is {message!r}: not a message; give an object with role and content")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{place} role is {role!r}: nobody known speaks; use one of {', '.join(ROLES)}")
    if message.get("images"):
        raise ValueError(f"{place} has images of its own: list them in the row's images, with <image> in the content")
    normal = {**message, "place": place, "role": ROLES[role]}
    normal["content"] = message.get("content", message.get("value"))
    if normal["role"] == "tool" and isinstance(normal["content"], dict):
        normal["content"] = json.dumps(normal["content"])
    if role == "function_call":
        normal["tool_calls"] = _decoded(normal["content"], f"{place} value")
        normal["content"] = None
    if normal["content"] is not None and not isinstance(normal["content"], str | list):
        raise ValueError(f"{place} content is {normal['content']!r}: it cannot be read; give text or a list of parts")
    return normal


def _split_system(record: dict, messages: list[dict]) -> tuple[str, list[dict]]:
    prompts = [record["system"]] if record.get("system") else []
    if messages[0]["role"] == "system":
        prompts.append(_text_only(messages[0]))
        messages = messages[1:]
    if len(prompts) > 1:
        raise ValueError("both 'system' and a system message: which one holds is unknown; keep one")
    for message in messages:
        if message["role"] == "system":
            raise ValueError(f"{message['place']} is a system message after the start: no prompt has a place for it")
    if prompts and not isinstance(prompts[0], str):
        raise ValueError(f"system is {prompts[0]!r}: it cannot be read; give text")
    return (prompts[0] if prompts else ""), messages


def _decoded(value: object, place: str) -> Any:
    """JSON given as a string is decoded; anything else is returned as it is."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError as error:
        raise ValueError(f"{place} is a string but {error}") from None


@lru_cache(maxsize=64)
def build_tools(tools_json: str) -> tuple[Tool, ...]:
    """Tools from OpenAI's or the flat form, as JSON text (so that the many rows with the same tools share them)."""
    entries = json.loads(tools_json)
    if not isinstance(entries, list):
        raise ValueError(f"tools is {entries!r}: no tool can be read; give a list")
    return tuple(_build_tool(entry, f"tools[{i}]") for i, entry in enumerate(entries))


def _build_tool(entry: Any, place: str) -> Tool:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{place} is {entry!r}: a tool without a name cannot be called; give name and parameters")
    tool = Tool.from_json(entry)
    try:
        check_schema(tool.parameters)
    except ValueError as error:
        raise ValueError(f"{place} parameters: {error}") from None
    return tool


class _Pictures:
    """Hands out the pictures of a record: a part's own path, or else the next entry of `images`."""

    def __init__(self, root: Path, listed: object):
        self.root = root
        self.listed = listed if isinstance(listed, list) else [listed]
        self.num_used = 0

    def take(self, own: object, place: str) -> Picture:
        if own is not None:
            return self._open(own, place)
        if self.num_used == len(self.listed):
            raise ValueError(
                f"{place} is placeholder {self.num_used + 1} for {len(self.listed)} images: it has no picture; "
                "give one image for each placeholder"
            )
        self.num_used += 1
        return self._open(self.listed[self.num_used - 1], f"images[{self.num_used - 1}]")

    def check_all_used(self) -> None:
        if self.num_used != len(self.listed):
            raise ValueError(
                f"{len(self.listed)} images for {self.num_used} placeholders: where the rest belong is unknown; "
                "write <image> where each stands"
            )

    def _open(self, value: object, place: str) -> Picture:
        for key in ("path", "url"):
            if isinstance(value, dict) and key in value:
                value = value[key]
        if not isinstance(value, str) or not value:
            raise ValueError(f"{place} is {str(value)[:80]!r}: not a file's path; save the picture and name its file")
        if re.match(r"(https?|data):", value):
            raise ValueError(
                f"{place} is {value[:80]!r}: nothing is downloaded or decoded here; save the picture and name its file"
            )
        path = confined_path(self.root, value.removeprefix("file://"))
        return Picture.from_file(path, f"{place} {str(path)!r}")


def _build_steps(messages: list[dict], tools: tuple[Tool, ...], pictures: _Pictures) -> list[tuple]:
    """(step, weight, notes) of each assistant message."""
    exchanges, tail = _exchanges(messages)
    observations = [_build_observation(before, pictures) for before, _ in exchanges]
    # What follows the last answer teaches nothing, but its placeholders still take their pictures.
    _build_observation(tail, pictures)
    following = [before for before, _ in exchanges[1:]] + [tail]
    steps = []
    for (observation, notes), (_, message), after in zip(observations, exchanges, following, strict=True):
        turn, ids = _build_turn(message, tools)
        results = _build_results([m for m in after if m["role"] == "tool"], turn.tool_calls, ids)
        steps.append((Step(observation, turn, results), _weight(message), notes))
    if any(message["role"] == "user" for message in tail):
        step, weight, notes = steps[-1]
        steps[-1] = (step, weight, (*notes, "user_message_unanswered"))
    return steps


def _exchanges(messages: list[dict]) -> tuple[list[tuple[list[dict], dict]], list[dict]]:
    """Each assistant message with the messages that it answers, and what is left after the last one."""
    exchanges: list[tuple[list[dict], dict]] = []
    before: list[dict] = []
    for message in messages:
        if message["role"] != "assistant":
            before.append(message)
            continue
        if not before and exchanges:
            raise ValueError(f"{message['place']} follows another assistant message: two turns in one; merge them")
        if not exchanges and not any(m["role"] == "user" for m in before):
            raise ValueError(f"{message['place']} speaks before any user: it answers nothing; remove it")
        exchanges.append((before, message))
        before = []
    if not exchanges:
        raise ValueError("no assistant message: there is nothing to learn; add the answer")
    orphan = next((m for m in exchanges[0][0] if m["role"] == "tool"), None)
    if orphan:
        raise ValueError(f"{orphan['place']} is a tool result without a call: it cannot be placed; add the call")
    return exchanges, before


def _build_observation(messages: list[dict], pictures: _Pictures) -> tuple[Observation, tuple[str, ...]]:
    """Pictures first, then the users' text: a picture that stood after text is moved to the front, and noted."""
    texts: list[str] = []
    shown: list[Picture] = []
    is_moved = False
    for message in messages:
        text, has_moved = "", message["role"] == "tool"
        for kind, value in _parts(message):
            if kind == "image":
                is_moved |= has_moved or bool(text.strip()) or bool(texts)
                shown.append(pictures.take(value, f"{message['place']} image"))
            else:
                text += value
        if message["role"] == "user" and IMAGE_FILE.search(text):
            raise ValueError(
                f"{message['place']} names a picture as <img>file</img>: it would not be seen; write <image>, and images"
            )
        if message["role"] == "user" and text.strip():
            texts.append(text.strip())
    return Observation("\n".join(texts), tuple(shown)), ("image_moved",) if is_moved else ()


def _parts(message: dict) -> Iterator[tuple[str, Any]]:
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


def _text_only(message: dict) -> str:
    """A message's text; ValueError if it holds a picture."""
    text = ""
    for kind, value in _parts(message):
        if kind == "image":
            raise ValueError(f"{message['place']} ({message['role']}) holds a picture: only users show pictures")
        text += value
    return text


def _build_turn(message: dict, tools: tuple[Tool, ...]) -> tuple[Turn, list[str | None]]:
    """The turn of an assistant message, and the id of each of its calls."""
    place = message["place"]
    # An assistant's words are supervised as they stand: `<image>` in them is text, not a placeholder.
    content = message["content"]
    text = content if isinstance(content, str) else _text_only(message)
    listed = message.get("tool_calls") or message.get("function_call") or []
    calls = [_build_call(call, f"{place} tool_calls[{i}]") for i, call in enumerate(_as_list(listed))]
    (text, *after), written = _split_calls(text)
    if written and calls:
        raise ValueError(f"{place} has both tool_calls and {HERMES.open} text: the calls would double; keep one")
    if any(piece.strip() for piece in after):
        raise ValueError(f"{place} has text after a call: no format writes it there; move it to the front")
    where = f"{place} {HERMES.open}"
    calls += [_build_call(_decoded(call, where), where) for call in written]
    for call, _ in calls:
        _check_call(call, tools, place)
    reasoning = message.get("reasoning_content") or ""
    if not isinstance(reasoning, str):
        raise ValueError(f"{place} reasoning_content is {str(reasoning)[:80]}: it cannot be read; give text")
    thought = "\n".join(part.strip() for part in (reasoning, text) if part.strip())
    if calls:
        return Turn(thought=thought, tool_calls=tuple(call for call, _ in calls)), [call_id for _, call_id in calls]
    if not text.strip():
        raise ValueError(f"{place} says nothing: there is nothing to learn; remove the message or write the answer")
    if reasoning:
        raise ValueError(f"{place} has reasoning_content without a call: no format writes it; put it into content")
    _check_is_no_call(text, tools, place)
    return Turn(text=text), []


def _split_calls(text: str) -> tuple[list[str], list[str]]:
    """What stands around the blocks of calls, and what in them; an open one is text."""
    around, inside, at = [], [], 0
    while (start := text.find(HERMES.open, at)) >= 0 and (end := text.find(HERMES.close, start)) >= 0:
        around.append(text[at:start])
        inside.append(text[start + len(HERMES.open) : end].strip())
        at = end + len(HERMES.close)
    return [*around, text[at:]], inside


def _as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _build_call(value: Any, place: str) -> tuple[ToolCall, str | None]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{place} is {str(value)[:80]!r}: a call without a name; give name and arguments")
    arguments = function.get("arguments")
    # Servers write "" for a call without arguments.
    is_empty = arguments is None or (isinstance(arguments, str) and not arguments.strip())
    arguments = {} if is_empty else _decoded(arguments, f"{place} arguments")
    return ToolCall(function["name"], arguments), value.get("id")


def _check_call(call: ToolCall, tools: tuple[Tool, ...], place: str) -> None:
    """ValueError if the row's own tools do not allow the call; a row without tools describes them in its prompt."""
    if not tools:
        return
    tool = tool_named(tools, call.name)
    if tool is None:
        names = ", ".join(tool.name for tool in tools)
        raise ValueError(f"{place} calls {call.name!r}, which is not one of the row's tools: use one of {names}")
    error = argument_error(tool.parameters, call.arguments)
    if error:
        raise ValueError(
            f"{place} arguments of {call.name} do not fit its schema ({error}): the agent would learn calls "
            "that fail; correct them"
        )


def _check_is_no_call(text: str, tools: tuple[Tool, ...], place: str) -> None:
    """ValueError for words that a parser reads as a call of the row's tools: in a fence, ReAct's lines, bare JSON."""
    for name in ("native", "plain") if tools else ():
        for call in FORMATS[name].parse(text, tools).turn.tool_calls:
            if tool_named(tools, call.name):
                raise ValueError(
                    f"{place} has a call of {call.name!r} among its words: it would be learned as words, in none of the "
                    "formats; write it as tool_calls"
                )


def _build_results(
    messages: Sequence[dict], calls: Sequence[ToolCall], ids: Sequence[str | None]
) -> tuple[ToolResult, ...]:
    """One result a call, in the order of the calls: placed by tool_call_id, or else in the order given."""
    results: dict[int, ToolResult] = {}
    for message in messages:
        call_id = message.get("tool_call_id")
        index = ids.index(call_id) if call_id is not None and call_id in ids else len(results)
        has_stray_id = call_id is not None and call_id not in ids and any(ids)
        if has_stray_id or index >= len(calls) or index in results:
            raise ValueError(f"{message['place']} is a tool result without a call: it cannot be placed; add the call")
        name = message.get("name") or calls[index].name
        if name != calls[index].name:
            raise ValueError(f"{message['place']} is a result of {name!r}, but the call was {calls[index].name!r}")
        results[index] = ToolResult(name, _result_content(message))
    if sorted(results) != list(range(len(results))):
        raise ValueError(f"{messages[0]['place']}: an earlier call has no result though a later one has; add it")
    return tuple(results[index] for index in range(len(results)))


def _result_content(message: dict) -> dict:
    """A JSON object as it is, anything else as {"result": value}."""
    text = "".join(value for kind, value in _parts(message) if kind == "text").strip()
    try:
        value = read_json(text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"result": value}


def _weight(message: dict) -> float:
    """Of the turn's loss, under any of the names that trainers have for it; 1 if none is given."""
    given = {key: message[key] for key in WEIGHT_KEYS if message.get(key) is not None}
    weights = {_loss_weight(value, f"{message['place']} {key}") for key, value in given.items()}
    if len(weights) > 1:
        said = ", ".join(f"{key} {value}" for key, value in given.items())
        raise ValueError(f"{message['place']} has {said}: which holds is unknown; keep one")
    return weights.pop() if weights else 1.0


def _loss_weight(weight: Any, place: str) -> float:
    is_number = isinstance(weight, bool | int | float) and (weight == 0 or MIN_WEIGHT <= weight <= MAX_WEIGHT)
    if not is_number:
        raise ValueError(
            f"{place} is {str(weight)[:80]}: a loss cannot be scaled by it; give 0, or a number from "
            f"{MIN_WEIGHT} to {MAX_WEIGHT}"
        )
    return float(weight)
