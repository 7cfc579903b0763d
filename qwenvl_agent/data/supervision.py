"""What of a batch is learned from, counted where the batch is made: on the host, so that no step asks the device.

B rows, T tokens, N supervised tokens, G groups of them, P tokens of pictures.
"""

from collections.abc import Sequence

import numpy as np
import torch

from qwenvl_agent.data.masks import IGNORE_INDEX, PARTS


def supervised_places(labels: torch.Tensor) -> torch.Tensor:
    """(N,) places in the flattened (B * T,) whose next token is supervised; a label at a row's first place has none."""
    rows, columns = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns


def known_pictures(batch: dict) -> dict:
    """Where pictures' tokens stand and how large the pictures are, so that no model has to ask a device.

    picture_places (P,) of the flattened (B * T,), in the pictures' order; picture_grids, (frames, rows, columns) of each
    that comes with pixels. {} for a batch without pictures.
    """
    places = batch["mm_token_type_ids"].flatten().nonzero()[:, 0]
    grids = {"picture_grids": batch["image_grid_thw"].tolist()} if "image_grid_thw" in batch else {}
    return {"picture_places": places} | grids if len(places) else {}


def count_supervised(batch: dict, tools: Sequence[str]) -> dict:
    """What a step has to know of its batch before it has begun, as values of the host.

    loss_weight, the sum of the supervised tokens' weights; num_tokens, without padding; group_names and group_tokens, for
    each group that has any its name and how many; in_group (G, N) bool, for the device. Groups are the parts of a turn
    (`loss_part/call`) and, of the calls, the tools (`loss_tool/move`); `tools[row]` is "" for a row without a call.
    """
    labelled = batch["supervised"] + 1
    weights, parts, rows = (batch[key].flatten()[labelled] for key in ("loss_weights", "parts", "row_index"))
    groups = {f"loss_part/{part}": parts == code for code, part in enumerate(PARTS) if code}
    is_call, tool_of_token = parts == PARTS.index("call"), np.array(tools, dtype=object)[rows.numpy()]
    for tool in sorted({*tools} - {""}):
        groups[f"loss_tool/{tool}"] = is_call & torch.from_numpy(tool_of_token == tool)
    num_tokens = {name: int(is_in.sum()) for name, is_in in groups.items()}
    names = [name for name, num in num_tokens.items() if num]
    return {
        "loss_weight": weights.double().sum().item(),
        "num_tokens": int(batch["attention_mask"].sum()),
        "group_names": names,
        "group_tokens": [num_tokens[name] for name in names],
        "in_group": torch.stack([groups[name] for name in names]) if names else torch.zeros(0, len(rows)).bool(),
    }
