"""Fused experts: all experts of a layer in parameters of three dimensions (families.ModulePaths.fused_experts).

They are computed by grouped products, which ask the device for nothing, where transformers' own loop would ask which
experts were hit. Autocast does not know these products; so they are cast here, as autocast casts linear layers.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from qwenvl_agent.families.family import ModulePaths


class CastExperts:
    """Experts whose weights are seen in `dtype`; all else is the module's own."""

    def __init__(self, experts: nn.Module, dtype: torch.dtype):
        self.experts, self.dtype = experts, dtype

    def __getattr__(self, name: str):
        value = getattr(self.experts, name)
        return value.to(self.dtype) if isinstance(value, torch.Tensor) else value


def forward_experts(experts: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor):
    """(N, H) of hidden states (N, H); of each token its experts (N, k) and their weights (N, k)."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return grouped_mm_experts_forward(experts, hidden, chosen, weights)
    dtype = torch.get_autocast_dtype(device)
    return grouped_mm_experts_forward(CastExperts(experts, dtype), hidden.to(dtype), chosen, weights)


# Under its own name: layers that are computed again in backward look it up then.
ALL_EXPERTS_FUNCTIONS.register("grouped_mm", forward_experts)


def fused_parameters(model: nn.Module, paths: ModulePaths) -> Iterator[tuple[nn.Module, str]]:
    """Of each parameter that holds a layer's experts the module and its name there."""
    for name, module in model.named_modules():
        for parameter in paths.fused_experts:
            holder, _, last = parameter.rpartition(".")
            if name.endswith(f".{holder}"):
                yield module, last


def pack_experts(model: nn.Module, paths: ModulePaths) -> None:
    """To NF4 with double quantisation, one parameter after the other; each is unpacked whole where it is used.

    `quant_state` is with the packed parameter, as bitsandbytes has it for linear layers.
    """
    for module, name in list(fused_parameters(model, paths)):
        from bitsandbytes.nn.parametrize import replace_parameter_4bit  # slow and loud, so only where it is needed

        replace_parameter_4bit(module, name, compress_statistics=True, quant_type="nf4")
        parametrization = module.parametrizations[name]
        parametrization.original.quant_state = parametrization[0].quant_state


class Widened(nn.Module):
    """What is unpacked, in float32."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.float()


def widen_experts(model: nn.Module, paths: ModulePaths) -> None:
    """Compute with the same numbers in float32."""
    for module, name in list(fused_parameters(model, paths)):
        if parametrize.is_parametrized(module, name):
            parametrize.register_parametrization(module, name, Widened(), unsafe=True)
