"""How much an assistant message is to be learned, and rows that are not to be learned at all."""

from typing import Any

from qwenvl_agent.data.readers.chat.forms import ANSWERERS, Placed, speaker
from qwenvl_agent.json_input import LeftOutError
from qwenvl_agent.row_markers import GOOD_KEYS, HIDING_KEYS, ROW_MARKERS, WEIGHT_KEYS, as_number, check_row_markers

MIN_WEIGHT, MAX_WEIGHT = 1e-4, 1e4
"""Of a turn's loss: beyond, float32 or all the other rows of a step would be lost."""
SCORE_KEYS = ("score", "reward")
SPAN_KEYS = ("train_detail", "training_detail")
"""axolotl's: which characters of a message to learn."""
MARKERS = ROW_MARKERS | frozenset(SPAN_KEYS)


def check_markers(record: dict) -> None:
    """ValueError for a row that other trainers would not learn as a good answer, or not as it stands."""
    check_row_markers(record, "take the row out, or give every assistant message its weight")
    hidden = record.get("mask")
    if isinstance(hidden, str) and hidden.lower() in ANSWERERS:
        raise LeftOutError(f"mask of the row is {hidden[:80]!r}: its answers are not to be learned; take the row out")
    for key in SCORE_KEYS:
        value = record.get(key)
        if value is None:
            continue
        number = as_number(value)
        if number is None and isinstance(value, list | float) or (number is not None and number < 0):
            kind = ValueError if number is None else LeftOutError
            raise kind(f"{key} of the row is {str(value)[:80]}: a bad answer would be learned; take the row out")


def weight_of(message: dict) -> float:
    """Of the turn's loss, under any of the names that trainers have for it; 1 if none is given."""
    if MARKERS.isdisjoint(message):
        return 1.0
    given = {key: message[key] for key in (*WEIGHT_KEYS, *HIDING_KEYS) if message.get(key) is not None}
    if message["role"] == "assistant":
        _check_is_whole(message)
    weights = {_loss_weight(key, value, message["place"]) for key, value in given.items()}
    if len(weights) > 1:
        said = ", ".join(f"{key} {value}" for key, value in given.items())
        raise ValueError(f"{message['place']} has {said}: which holds is unknown; keep one")
    return weights.pop() if weights else 1.0


def _loss_weight(key: str, value: Any, place: str) -> float:
    weight = as_number(value)
    if weight is None or not (weight == 0 or MIN_WEIGHT <= weight <= MAX_WEIGHT):
        raise ValueError(
            f"{place} {key} is {str(value)[:80]}: a loss cannot be scaled by it; give 0, or a number from "
            f"{MIN_WEIGHT} to {MAX_WEIGHT}"
        )
    return float(weight == 0) if key in HIDING_KEYS else weight


def _check_is_whole(message: dict) -> None:
    """ValueError for a message that is marked in part, or marked as a bad one."""
    for key in SPAN_KEYS:
        spans = message.get(key)
        if spans and not (
            isinstance(spans, list) and all(isinstance(s, dict) and s.get("train") is True for s in spans)
        ):
            raise ValueError(
                f"{message['place']} {key} is {str(spans)[:80]}: a turn is learned as a whole or not at all, and what is "
                "marked would be; give the message weight 0, or take the text out"
            )
    for key in GOOD_KEYS:
        number = as_number(message.get(key))
        if number is not None and number <= 0:
            raise ValueError(
                f"{message['place']} {key} is {str(message[key])[:80]}: it is marked as a bad answer; give it weight 0 to "
                "show it and not learn it"
            )


def spread_masks(record: dict, placed: list[Placed]) -> dict:
    """The row without its lists of weights, one a message or one an answer, which its messages have got instead."""
    if MARKERS.isdisjoint(record):
        return record
    lists = {key: record[key] for key in (*WEIGHT_KEYS, *HIDING_KEYS) if isinstance(record.get(key), list)}
    for key, values in lists.items():
        targets = [item.message for item in placed if isinstance(item.message, dict)]
        if len(values) != len(targets):
            targets = [message for message in targets if speaker(message) in ANSWERERS]
        if len(values) != len(targets):
            raise ValueError(
                f"{key} is a list of {len(values)} for {len(placed)} messages, {len(targets)} of them answers: what is meant "
                "by each is unknown; give every message its own"
            )
        for message, value in zip(targets, values, strict=True):
            if message.get(key, value) != value:
                raise ValueError(f"{key} is in the row and in a message, and differs: which holds is unknown; keep one")
            message[key] = value
    return {key: value for key, value in record.items() if key not in lists} if lists else record
