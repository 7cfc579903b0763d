"""The loss: a mean over the weighted supervised tokens of a whole optimizer step, whatever its micro-batches and ranks.

B rows, T tokens, N supervised positions. Labels are not shifted: the logit at position t predicts labels[:, t + 1].
Logits are made at supervised positions only, some at a time; places and targets go through the wrapped forward to the
head (kernels.Head), so that it stays inside DDP and ZeRO-3.

With w the weights, R ranks and A micro-batches a step, each micro-batch is given the loss

    sum(w * ce) * R * A / W        W = the sum of w over all micro-batches of all ranks

because backward divides by A and the gradient average over ranks by R: what remains is the mean over W.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from qwenvl_agent.model.call import model_inputs


class TokenLosses(NamedTuple):
    """One entry a supervised token, (N,) each, in the order of the batch's `supervised`; `losses` carries a gradient."""

    losses: torch.Tensor
    weights: torch.Tensor

    @property
    def weighted_sum(self) -> torch.Tensor:
        return (self.losses * self.weights).sum()


def token_losses(model: nn.Module, batch: dict) -> TokenLosses:
    """Cross-entropy of every supervised token, in float32 and unweighted."""
    places = batch["supervised"]  # (N,) of B * T
    inputs = model_inputs(batch) | {key: batch[key] for key in ("picture_grids", "picture_places") if key in batch}
    if "segments" in batch:
        inputs |= {"segments": batch["segments"], "pack_sizes": batch["pack_sizes"]}
    else:
        inputs |= without_padding_mask(inputs)
    if "features" in batch:
        inputs["mm_encoder_outputs"] = {"image": batch["features"]}
    targets, weights = (batch[key].flatten().index_select(0, places + 1) for key in ("labels", "loss_weights"))
    return TokenLosses(model(**inputs, places=places, targets=targets, use_cache=False).logits, weights)


def without_padding_mask(inputs: dict) -> dict:
    """No mask for rows that are filled up on the right: causal attention sees nothing behind a token.

    With a mask sdpa has no flash kernel and repeats the keys for every head. Rotary positions alone, without the text's:
    from those transformers would take filled up rows for packs, and ask the device.
    """
    return {"attention_mask": None, "position_ids": inputs["position_ids"][-3:]}


def loss_scale(accelerator: Accelerator, micro_batches: Sequence[dict]) -> torch.Tensor:
    """R * A / W, () on the device: it is never read there. Infinite if no token of any rank has a weight."""
    weight = sum(batch["loss_weight"] for batch in micro_batches)
    total_weight = accelerator.reduce(torch.full((), weight, device=accelerator.device), "sum")
    return (accelerator.num_processes * len(micro_batches) / total_weight.double()).float()
