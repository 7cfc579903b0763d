"""From a batch to what a model is called with. B rows, T tokens."""

import torch
from torch import nn

from qwenvl_agent.data.masks import IGNORE_INDEX
from qwenvl_agent.data.pixels import pixel_values
from qwenvl_agent.families import FAMILIES

MODEL_INPUTS = frozenset(name for family in FAMILIES.values() for name in family.model_inputs)
"""Of all families: a batch has only those of its own."""


def supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """(B, T) bool: where the next token is supervised."""
    return nn.functional.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))


def model_inputs(batch: dict) -> dict:
    """What a model is called with, of a batch on its device; pictures become floats only here."""
    inputs = {key: value for key, value in batch.items() if key in MODEL_INPUTS and value is not None}
    return inputs | {"pixel_values": pixel_values(batch)} if "patches" in batch else inputs
