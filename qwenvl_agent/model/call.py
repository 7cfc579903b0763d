"""From a batch to what a model is called with. B rows, T tokens."""

import torch
from torch import nn

from qwenvl_agent.data.masks import IGNORE_INDEX
from qwenvl_agent.data.pixels import pixel_values

MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "mm_token_type_ids",
    "image_grid_thw",
)


def supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """(B, T) bool: where the next token is supervised."""
    return nn.functional.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))


def model_inputs(batch: dict) -> dict:
    """What a model is called with, of a batch on its device; pictures become floats only here."""
    inputs = {key: batch[key] for key in MODEL_INPUTS if batch.get(key) is not None}
    return inputs | {"pixel_values": pixel_values(batch)} if "patches" in batch else inputs
