"""How trainers mark a row, or a message, that is not to be learned like the others; a marker that is dropped is learned."""

import re

from qwenvl_agent.json_input import LeftOutError

SCALE_KEYS = ("weight", "loss_scale", "loss_weight")
WEIGHT_KEYS = (*SCALE_KEYS, "loss", "loss_mask", "step_loss_mask", "train", "training", "trainable")
"""They scale a message's loss, or leave it out (0, false)."""
HIDING_KEYS = ("masked",)
"""The other way round: true leaves it out."""
GOOD_KEYS = ("kto_tag", "label", "last_step_correct")
"""Of a row: whether its answer is a good one."""
ROW_MARKERS = frozenset((*WEIGHT_KEYS, *HIDING_KEYS, *GOOD_KEYS))
YES_WORDS = {"true": 1.0, "yes": 1.0, "y": 1.0, "on": 1.0, "good": 1.0, "desirable": 1.0}
NO_WORDS = dict.fromkeys(
    (
        "false",
        "no",
        "n",
        "off",
        "bad",
        "wrong",
        "incorrect",
        "negative",
        "undesirable",
        "rejected",
        "failed",
        "failure",
    ),
    0.0,
)
NUMBER = re.compile(r"[-+]?\d{1,20}(\.\d{0,20})?(e[-+]?\d{1,3})?", re.ASCII)


def check_row_markers(row: dict, remedy: str) -> None:
    """LeftOutError for a row that other trainers would not learn, ValueError for one that they would scale."""
    for key in () if ROW_MARKERS.isdisjoint(row) else (*WEIGHT_KEYS, *HIDING_KEYS, *GOOD_KEYS):
        value = row.get(key)
        if value is not None and _is_marked(key, value):
            is_bad = as_number(value) == (1 if key in HIDING_KEYS else 0)
            raise (LeftOutError if is_bad else ValueError)(
                f"{key} of the row is {str(value)[:80]}: its answers are marked as not to be learned like others; {remedy}"
            )


def as_number(value: object) -> float | None:
    """What a marker says, in whatever type: `false`, "False", "no", 0, "0.0" are 0; None for what is no such thing."""
    if isinstance(value, bool | int | float):
        return float(value) if abs(value) < 1e300 else None
    if not isinstance(value, str):
        return None
    word = value.strip().lower()
    if word in NO_WORDS or word in YES_WORDS:
        return NO_WORDS.get(word, 1.0)
    return float(word) if NUMBER.fullmatch(word) else None


def _is_marked(key: str, value: object) -> bool:
    number = as_number(value)
    if key in SCALE_KEYS:
        return number != 1
    if key in HIDING_KEYS:
        return number != 0
    if key == "loss":  # a row's own may be what a model was measured by
        return number == 0 or isinstance(value, list)
    if key in GOOD_KEYS and isinstance(value, str):  # or the name of a class
        return number is not None and number <= 0
    return number is None or not number > 0
