"""The steps of a conversation: each assistant message with what it answers and what answers it."""

import re

from qwenvl_agent.data.readers.chat.calls import build_turn
from qwenvl_agent.data.readers.chat.content import parts
from qwenvl_agent.data.readers.chat.markers import weight_of
from qwenvl_agent.data.readers.chat.pictures import Pictures
from qwenvl_agent.data.readers.chat.results import build_results, observed
from qwenvl_agent.schema import Observation, Picture, Step, Tool

UNSEEN = re.compile(r"<(video|audio)>(?![^<]*</\1>)")
"""Placeholders of other trainers; a pair of tags is text about a page."""


def build_steps(messages: list[dict], tools: tuple[Tool, ...], pictures: Pictures) -> list[tuple]:
    """(step, weight, notes) of each assistant message."""
    exchanges, tail = _exchanges(messages)
    turns = [build_turn(message, tools) for _, message in exchanges]
    following = [before for before, _ in exchanges[1:]] + [tail]
    answered = [observed(after, turn.tool_calls) for (turn, _, _), after in zip(turns, following, strict=True)]
    seen = [exchanges[0][0], *answered[:-1]]
    observations = [_build_observation(before, pictures) for before in seen]
    # What follows the last answer teaches nothing, but its placeholders still take their pictures.
    _build_observation(answered[-1], pictures)
    tail = answered[-1]
    steps = []
    for (observation, moved), (_, message), (turn, ids, read), after in zip(
        observations, exchanges, turns, answered, strict=True
    ):
        results = build_results([m for m in after if m["role"] == "tool"], turn.tool_calls, ids)
        steps.append((Step(observation, turn, results), weight_of(message), (*moved, *read)))
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


def _build_observation(messages: list[dict], pictures: Pictures) -> tuple[Observation, tuple[str, ...]]:
    """Pictures first, then the users' text: a picture that stood after text is moved to the front, and noted."""
    texts: list[str] = []
    shown: list[Picture] = []
    is_moved = False
    for message in messages:
        text, has_moved = "", message["role"] == "tool"
        for kind, value in parts(message):
            if kind == "image":
                is_moved |= has_moved or bool(text.strip()) or bool(texts)
                shown.append(pictures.take(value, f"{message['place']} image"))
            else:
                text += value
        if message["role"] == "user" and (found := UNSEEN.search(text)):
            raise ValueError(
                f"{message['place']} has {found.group()}, which stands for what cannot be shown: only text and pictures can; "
                "take the row out or give frames"
            )
        if message["role"] == "user" and text.strip():
            texts.append(text.strip())
    return Observation("\n".join(texts), tuple(shown)), ("image_moved",) if is_moved else ()
