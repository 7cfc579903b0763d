"""The shapes of a row: where its messages, its system prompt and its tools stand, whatever the trainer that it is of.

A row with a list of messages is read by it; other rows are a question and an answer, each in one of several spellings.
What is no conversation is refused with the name of its form.
"""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qwenvl_agent.json_input import read_json

MESSAGE_KEYS = ("messages", "conversations", "conversation")
QUESTION_KEYS = ("query", "question", "prompt", "instruction", "input")
ANSWER_KEYS = ("response", "answer", "output", "completion")
CALL_KEYS = ("answers",)
"""xLAM's: the calls that answer a query."""
CHOSEN_KEYS = ("chosen", "chosen_messages", "chosen_response", "preferred_output")
REJECTED_KEYS = (
    *("rejected", "rejected_response", "rejected_messages", "non_preferred_output", "rejected_answer"),
    *("rejected_images", "rejected_tools"),
)
"""Of a row: an answer that is worse than the conversation's own."""
SYSTEM_KEYS = ("system", "system_prompt")
_CHOSEN, _REJECTED = frozenset(CHOSEN_KEYS), frozenset(REJECTED_KEYS)
READ_KEYS = frozenset(
    (
        *(*MESSAGE_KEYS, *QUESTION_KEYS, *ANSWER_KEYS, *CALL_KEYS, *CHOSEN_KEYS, *REJECTED_KEYS, *SYSTEM_KEYS),
        *("tools", "functions", "history"),
    )
)
ASKING, ANSWERING = ("human", "user", "query"), ("assistant", "gpt", "bot", "response")
"""Keys of one exchange (ms-swift's `conversation`)."""
ANSWERERS = ("assistant", "gpt", "bot", "model", "chatbot", "ai", "function_call", "tool_call")
"""Roles of messages that are learned."""
FOREIGN = {
    "contents": ("Google's", "write contents as messages: role model as assistant, the text of its parts as content"),
    "segments": ("axolotl's input_output", "write messages: what has label true as assistant, the rest as user"),
    "input_ids": ("tokenised", "give the messages that it was made of"),
    "body": ("OpenAI's batch", "write body.messages, and the answer after them, as messages"),
    "mapping": ("ChatGPT's export", "write the messages of one path through mapping, in order, as messages"),
    "completions": ("several answers", "write the one to learn as completion"),
    "responses": ("several answers", "write the one to learn as response"),
    "parent_id": ("a tree's", "write the messages of one path, in order, as messages"),
    "message_tree_id": ("a tree's", "write the messages of one path, in order, as messages"),
    "chat": ("a transcript", "write messages: who asks as user, who answers as assistant"),
    "text": ("pretraining", "write messages: who asks as user, who answers as assistant"),
    "prompt": ("a prompt without its answer", "write the answer to learn as completion"),
    "query": ("a question without its answer", "write the answer to learn as response"),
    "question": ("a question without its answer", "write the answer to learn as answer"),
    "instruction": ("a question without its answer", "write the answer to learn as output"),
    "chosen": ("a pair without its prompt", "write the prompt and the answer to learn as messages"),
}
"""Key -> (form, conversion) of rows that are none of those read."""


class Placed(NamedTuple):
    """A message as it was written, where it stands in the row, and whether it is shown but not learned."""

    place: str
    message: Any
    is_prompt: bool = False


@dataclass(frozen=True)
class Conversation:
    messages: list[Placed]
    system: Any = ""
    tools: Any = field(default_factory=list)
    notes: tuple[str, ...] = ()


def find_conversation(record: dict) -> Conversation:
    """The row's conversation, not yet in one spelling; ValueError names a form that is not read."""
    has_rejected = not _REJECTED.isdisjoint(record) and any(record.get(key) for key in REJECTED_KEYS)
    notes: tuple[str, ...] = ("rejected_answer_left_out",) if has_rejected else ()
    asked = record.get("input")
    if isinstance(asked, dict) and "messages" in asked:
        # OpenAI's preference pairs keep all but the answers in `input`.
        record = {**{key: value for key, value in record.items() if key != "input"}, **asked}
    if record.get("history") and any(record.get(key) for key in MESSAGE_KEYS):
        notes += ("not_read: history",)
    system = only_one(record, SYSTEM_KEYS)
    return Conversation(_find_messages(record), system or "", only_one(record, ("tools", "functions")) or [], notes)


def _find_messages(record: dict) -> list[Placed]:
    key = next((key for key in MESSAGE_KEYS if record.get(key) is not None), None)
    if key is not None:
        only_one(record, MESSAGE_KEYS)
        return _with_chosen(_listed(record[key], key), record)
    question = _question(record)
    answer = _answer(record)
    chosen = _chosen(record)
    if chosen and _opens_a_conversation(chosen):
        return _split_prompt(chosen, record)
    if question and (answer or chosen):
        if answer and chosen:
            raise ValueError(
                f"{answer[0].place} and {chosen[0].place} are given: which is to be learned is unknown; keep one"
            )
        return [*question, *(answer or chosen)]
    raise ValueError(_no_conversation(record))


def _no_conversation(record: dict) -> str:
    for key, (form, conversion) in FOREIGN.items():
        if record.get(key) is not None:
            return f"{key} is given and no messages: the form is {form}, which is not read; {conversion}"
    for key, value in record.items():
        if isinstance(value, list) and value and speaker(value[0]) is not None:
            return f"{key[:40]!r} holds messages, and is not read: call it messages"
    return "conversations is None: there is no conversation; give a list of messages"


def _listed(value: Any, key: str, *, is_prompt: bool = False) -> list[Placed]:
    """The messages of a list, of JSON text of one, or of a list of exchanges."""
    if isinstance(value, str):
        value = _from_text(value, key)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key} is {str(value)[:80]!r}: there is no conversation; give a list of messages")
    placed = []
    for i, message in enumerate(value):
        exchange = _exchange(message)
        if exchange is None:
            placed.append(Placed(f"{key}[{i}]", message, is_prompt))
        else:
            placed += [Placed(f"{key}[{i}].{name}", part, is_prompt) for name, part in exchange]
    return placed


def _from_text(value: str, key: str) -> Any:
    try:
        return read_json(value)
    except ValueError:
        raise ValueError(f"{key} is {value[:80]!r}: there is no conversation; give a list of messages") from None


def _exchange(message: Any) -> list[tuple[str, dict]] | None:
    """Both messages of `{"human": ..., "assistant": ...}`, None for what is a message of its own."""
    if not isinstance(message, dict) or "role" in message or "from" in message:
        return None
    asked = [key for key in (*ASKING, "tool") if message.get(key) is not None]
    answered = [key for key in ANSWERING if message.get(key) is not None]
    if len(asked) != 1 or len(answered) != 1:
        return None
    rest = {key: value for key, value in message.items() if key not in (*asked, *answered)}
    role = "tool" if asked == ["tool"] else "user"
    question = {"role": role, "content": message[asked[0]]}
    return [(asked[0], question), (answered[0], {"role": "assistant", "content": message[answered[0]], **rest})]


def _with_chosen(messages: list[Placed], record: dict) -> list[Placed]:
    """The conversation, with the better answer of a preference pair as its last message if it has none."""
    chosen = _chosen(record)
    if not chosen:
        return messages
    given = [placed.message for placed in messages]
    wanted = [placed.message for placed in chosen]
    if given[-len(wanted) :] == wanted:
        return messages
    if speaker(given[-1]) in ANSWERERS:
        raise ValueError(
            f"{chosen[0].place.partition('[')[0]} is given beside a conversation that ends in an answer: which is to be "
            "learned is unknown; keep one"
        )
    return [*(Placed(placed.place, placed.message, True) for placed in messages), *chosen]


def speaker(message: Any) -> Any:
    return message.get("role", message.get("from")) if isinstance(message, dict) else None


def _chosen(record: dict) -> list[Placed]:
    key = None if _CHOSEN.isdisjoint(record) else next((key for key in CHOSEN_KEYS if record.get(key)), None)
    if key is None:
        return []
    value = record[key]
    if isinstance(value, dict):
        return [Placed(key, value)]
    return [Placed(key, {"role": "assistant", "content": value})] if isinstance(value, str) else _listed(value, key)


def _opens_a_conversation(chosen: list[Placed]) -> bool:
    return speaker(chosen[0].message) in ("system", "developer", "user", "human")


def _split_prompt(chosen: list[Placed], record: dict) -> list[Placed]:
    """A whole conversation as the better one: what it shares with the worse one is prompt."""
    prompt = record.get("prompt")
    first = next((p.message for p in chosen if speaker(p.message) in ("user", "human")), None)
    if isinstance(prompt, str) and isinstance(first, dict) and prompt != first.get("content", first.get("value")):
        raise ValueError("prompt is not what chosen begins with: which was asked is unknown; keep one")
    other = next((record[key] for key in REJECTED_KEYS if record.get(key)), None)
    shared = 0
    if isinstance(other, list):
        while shared < min(len(other), len(chosen)) and other[shared] == chosen[shared].message:
            shared += 1
    if shared == len(chosen):
        raise ValueError("chosen and rejected are the same: there is nothing to prefer; take the row out")
    return [Placed(placed.place, placed.message, i < shared) for i, placed in enumerate(chosen)]


def _question(record: dict) -> list[Placed]:
    """What was asked, with the exchanges before it."""
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        return _listed(prompt, "prompt", is_prompt=True)
    instruction, more = record.get("instruction"), record.get("input")
    if instruction is not None and more is not None:
        words = [_text(value, key) for key, value in (("instruction", instruction), ("input", more)) if value]
        asked, key = "\n".join(words), "instruction"
    else:
        key = next((key for key in QUESTION_KEYS if record.get(key)), "")
        asked = only_one(record, QUESTION_KEYS)
    if not asked:
        return []
    return [*_history(record.get("history") or []), Placed(key, {"role": "user", "content": _text(asked, key)})]


def _history(history: Any) -> list[Placed]:
    if isinstance(history, str):
        history = _from_text(history, "history")
    if not isinstance(history, list):
        raise ValueError(
            f"history is {str(history)[:80]!r}: the turns before cannot be read; give pairs [question, answer]"
        )
    placed = []
    for i, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"history[{i}] is {str(pair)[:80]!r}: not a pair; give [question, answer]")
        for j, role in enumerate(("user", "assistant")):
            place = f"history[{i}][{j}]"
            placed.append(Placed(place, {"role": role, "content": _text(pair[j], place)}))
    return placed


def _answer(record: dict) -> list[Placed]:
    calls = record.get("answers")
    if calls is not None and only_one(record, ANSWER_KEYS) is None:
        return [Placed("answers", {"role": "function_call", "content": _calls_text(calls)})]
    answer = only_one(record, ANSWER_KEYS)
    key = next((key for key in ANSWER_KEYS if record.get(key)), "")
    if not answer:
        return []
    if isinstance(answer, list) and key == "completion":
        return _listed(answer, key)
    return [Placed(key, {"role": "assistant", "content": _text(answer, key)})]


def _calls_text(calls: Any) -> Any:
    if isinstance(calls, list) and not all(isinstance(call, dict) for call in calls):
        raise ValueError(
            f"answers is {str(calls)[:80]!r}: several answers, and which is to be learned is unknown; write one as answer"
        )
    return calls if isinstance(calls, str) else json.dumps(calls)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(
            f"{key} is {str(value)[:80]!r}: it cannot be read; give text, or a list of messages as messages"
        )
    return value


def only_one(record: dict, keys: tuple[str, ...]) -> Any:
    """The value of the one key that is given; ValueError if two are, and differ."""
    given = [key for key in keys if key in record and record[key]]
    if len(given) > 1 and any(record[key] != record[given[0]] for key in given):
        raise ValueError(f"{' and '.join(given)} are given, and differ: which holds is unknown; keep one")
    return record[given[0]] if given else None
