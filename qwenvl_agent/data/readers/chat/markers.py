"""How much an assistant message is to be learned, and rows that are not to be learned at all."""

from typing import Any

from qwenvl_agent.row_markers import WEIGHT_KEYS, check_row_markers

MIN_WEIGHT, MAX_WEIGHT = 1e-4, 1e4
"""Of a turn's loss: beyond, float32 or all the other rows of a step would be lost."""
SCORE_KEYS = ("score", "reward")
CHOSEN_KEYS = ("chosen", "chosen_response", "preferred_output")
REJECTED_KEYS = ("rejected", "rejected_response", "rejected_messages")
"""Of a row: an answer that is worse than the conversation's own."""


def check_markers(record: dict) -> None:
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


def weight_of(message: dict) -> float:
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
