"""LoRA on a loaded model: which linear layers get an adapter, and what adapters compute differently from peft."""

import re
from pathlib import Path

from torch import nn

from qwenvl_agent.config import ModelConfig
from qwenvl_agent.families.family import PROJECTION, ModulePaths
from qwenvl_agent.model.kernels import Dropout


def attach_adapters(
    model: nn.Module, model_cfg: ModelConfig, paths: ModulePaths, weights_dir: Path | None
) -> nn.Module:
    """LoRA in `lora_places`, float32; from `weights_dir` if given. Fused experts get theirs as parameters."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer

    patterns = adapted_modules(model_cfg, paths)
    experts = paths.fused_experts if "experts" in model_cfg.lora_places else ()
    lora = LoraConfig(
        r=model_cfg.lora_rank,
        lora_alpha=model_cfg.lora_alpha,
        lora_dropout=model_cfg.lora_dropout,
        target_modules="|".join(patterns),
        target_parameters=list(experts) or None,
        task_type="CAUSAL_LM",
    )
    if weights_dir:  # by our settings, not those beside the weights: an earlier run's may have another dropout
        model = PeftModel.from_pretrained(model, weights_dir, is_trainable=True, config=lora)
    else:
        model = get_peft_model(model, lora)
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for pattern in patterns:
        assert any(re.search(f"{pattern}$", name) for name in adapted), f"no layer got an adapter by {pattern}"
    adapted_parameters = {getattr(module, "parameter_name", "") for module in model.modules()}
    for parameter in experts:
        assert parameter.rpartition(".")[2] in adapted_parameters, f"no adapter is on {parameter}"
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # Under autocast a float32 copy of the input would be made only to be rounded again.
            module.cast_input_dtype_enabled = not model_cfg.autocast
        elif type(module) is nn.Dropout:
            module.__class__ = Dropout
    return model


def adapted_modules(model_cfg: ModelConfig, paths: ModulePaths) -> list[str]:
    """Patterns of the full names of the linear layers that get an adapter, each of which finds some."""
    return [
        paths.adapters[place].replace(PROJECTION, target)
        for place in model_cfg.lora_places
        if place in paths.adapters
        for target in (model_cfg.targets_among(paths.projections) if PROJECTION in paths.adapters[place] else ("",))
    ]
