"""How trainers mark a row, or a message, that is not to be learned like the others; a marker that is dropped is learned."""

SCALE_KEYS = ("weight", "loss_scale", "loss_weight")
WEIGHT_KEYS = (*SCALE_KEYS, "loss", "loss_mask", "train", "training")
"""They scale a message's loss, or leave it out (0, false)."""
NOT_TO_LEARN = ("0", "0.0", "false")
GOOD_KEYS = ("kto_tag", "label")
"""Of a row: whether its answer is a good one."""


def check_row_markers(row: dict, remedy: str) -> None:
    """ValueError for a row that other trainers would not learn, or would scale."""
    for key in (*WEIGHT_KEYS, *GOOD_KEYS):
        value = row.get(key)
        if value is None:
            continue
        if str(value).lower() in NOT_TO_LEARN or (key in SCALE_KEYS and value != 1):
            raise ValueError(
                f"{key} of the row is {str(value)[:80]}: its answers are marked as not to be learned like others; {remedy}"
            )
