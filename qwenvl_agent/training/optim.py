"""AdamW's parameter groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from qwenvl_agent.config import TrainConfig
from qwenvl_agent.model.shards import whole_shape


def build_optimizer(model: nn.Module, train_cfg: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over what is trainable: weight decay for matrices, none for norms, biases and embeddings.

    LoRA's matrices decay too: that pulls their product, the change to the model, towards zero. In 8 bits are averages of
    what may decay; those of an embedding change by few tokens a step, and those of norms and biases are few.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[len(whole_shape(parameter)) >= 2 and id(parameter) not in embeddings].append(parameter)
    kept = {decays: parameters for decays, parameters in groups.items() if parameters}
    settings = [{"params": kept[decays], "weight_decay": train_cfg.weight_decay if decays else 0.0} for decays in kept]
    if train_cfg.optimizer == "paged_adamw_8bit":
        from qwenvl_agent.training.paged_adamw import PagedAdamW8bit  # bitsandbytes is slow and loud

        bits = [{"optim_bits": 8 if decays else 32} for decays in kept]
        by_bits = [group | more for group, more in zip(settings, bits, strict=True)]
        return PagedAdamW8bit(by_bits, train_cfg.learning_rate, train_cfg.betas)
    # Fused is one kernel for all parameters; the default on a CPU is a Python loop.
    return torch.optim.AdamW(settings, lr=train_cfg.learning_rate, betas=train_cfg.betas, fused=True)


def learning_rate_at(step: int, max_steps: int, train_cfg: TrainConfig) -> float:
    """Of optimizer step `step`, from 0: linear warm-up that starts above zero, cosine that ends at its least value."""
    peak, least = train_cfg.learning_rate, train_cfg.learning_rate * train_cfg.min_lr_fraction
    warmup_steps = math.ceil(train_cfg.warmup_fraction * max_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - 1 - warmup_steps)
    return least + (peak - least) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
