"""The loss: a mean over the weighted supervised tokens of a whole optimizer step, whatever its micro-batches and ranks.

B rows, T tokens, N supervised positions. Labels are not shifted: the logit at position t predicts labels[:, t + 1].
Logits are made at supervised positions only, some at a time; the boolean mask and the targets go through the wrapped
forward to the head (kernels.Head), so that it stays inside DDP and ZeRO-3.

With w the weights, R ranks and A micro-batches a step, each micro-batch is given the loss

    sum(w * ce) * R * A / W        W = the sum of w over all micro-batches of all ranks

because backward divides by A and the gradient average over ranks by R: what remains is the mean over W.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from qwenvl_agent.model.attention import pack_mask
from qwenvl_agent.model.call import model_inputs, supervised_positions


class TokenLosses(NamedTuple):
    """One entry a supervised token, (N,) each; only `losses` carries a gradient."""

    losses: torch.Tensor
    weights: torch.Tensor
    parts: torch.Tensor
    rows: torch.Tensor
    """Index of the token's row in the batch."""

    @property
    def weighted_sum(self) -> torch.Tensor:
        return (self.losses * self.weights).sum()


def token_losses(model: nn.Module, batch: dict) -> TokenLosses:
    """Cross-entropy of every supervised token, in float32 and unweighted."""
    keep = supervised_positions(batch["labels"])  # (B, T)
    inputs = model_inputs(batch)
    if "segments" in batch:
        inputs |= {"attention_mask": pack_mask(batch["segments"]), "pack_sizes": batch["pack_sizes"]}
    if "features" in batch:
        inputs["mm_encoder_outputs"] = {"image": batch["features"]}
    targets = batch["labels"][:, 1:][keep[:, :-1]]
    return TokenLosses(
        losses=model(**inputs, logits_to_keep=keep, targets=targets, use_cache=False).logits,
        weights=batch["loss_weights"][:, 1:][keep[:, :-1]],
        parts=batch["parts"][:, 1:][keep[:, :-1]],
        rows=batch["row_index"][:, 1:][keep[:, :-1]],
    )


def supervised_weight(micro_batches: Sequence[dict]) -> float:
    """Sum of the weights of this rank's supervised tokens, over the micro-batches of one optimizer step."""
    return sum(
        batch["loss_weights"][:, 1:][supervised_positions(batch["labels"])[:, :-1]].double().sum().item()
        for batch in micro_batches
    )
