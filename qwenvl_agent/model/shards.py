"""Weights of which each rank holds a slice (ZeRO-3): how they are loaded, converted, counted.

Elsewhere these functions do the ordinary thing, so that model and optimizer are built by the same lines. A sliced
parameter is an empty tensor with `ds_tensor`, this rank's slice, and `ds_shape`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def loads_slices() -> bool:
    """Whether `from_pretrained` gives each rank its slices: ZeRO-3 is on in this process."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled()


@contextmanager
def slices_loaded_as(dtype: torch.dtype) -> Iterator[None]:
    """Under ZeRO-3, let `from_pretrained` hold each rank's slices in `dtype`; else nothing.

    zero.Init asks the DeepSpeed config for a dtype, not `from_pretrained`'s argument. transformers has a copy of its own,
    and only that copy gets a `bf16` section: in the engine's it would make masters, gradients and their sums bfloat16.
    """
    from transformers.integrations.deepspeed import deepspeed_config

    if not loads_slices():
        yield
        return
    settings = deepspeed_config()
    settings["bf16"] = {"enabled": dtype == torch.bfloat16}
    try:
        yield
    finally:
        del settings["bf16"]


def convert(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """To `dtype` in place, a rank's slice too; what was pinned for offloading stays pinned."""
    for tensor in (parameter, held(parameter)):
        converted = tensor.data.to(dtype)
        tensor.data = converted.pin_memory() if tensor.is_pinned() else converted


def held(parameter: nn.Parameter) -> torch.Tensor:
    """What this rank holds of it: the slice, or the parameter itself."""
    return getattr(parameter, "ds_tensor", parameter)


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Of a weight that ZeRO-3 may hold in slices: a rank's own tensor is then empty."""
    return getattr(parameter, "ds_shape", parameter.shape)
