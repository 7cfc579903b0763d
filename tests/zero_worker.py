"""What each rank of ZeRO-3 holds of a model: run by test_zero.py.

    DS_ACCELERATOR=cpu accelerate launch --num_processes 2 --use_deepspeed tests/zero_worker.py CONFIG... OUT

For every config, each rank writes OUT/NAME_R.json: bytes of weights, of adapters and of what is gathered beside them,
and the parameters that are not in the dtype that was asked for, all read off DeepSpeed's own tensors; and those whose
weights decay.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).parent.parent))

from qwenvl_agent.config import Config, load_config
from qwenvl_agent.model.build import build_model
from qwenvl_agent.training.optim import build_optimizer
from qwenvl_agent.training.zero import build_accelerator


def main(*arguments: str) -> None:
    *config_paths, out = arguments
    for path in config_paths:
        config = load_config(path)
        accelerator = build_accelerator(config.train)
        seen = look(config, accelerator)
        (Path(out) / f"{config.name}_{accelerator.process_index}.json").write_text(json.dumps(seen))
        AcceleratorState._reset_state()  # the next config has a plugin of its own
    accelerator.end_training()


def look(config: Config, accelerator) -> dict:
    model = build_model(config.model).train()
    optimizer = build_optimizer(model, config.train)
    decayed = decayed_names(model, optimizer)
    accelerator.prepare(model, optimizer)
    slices = {name: parameter.ds_tensor for name, parameter in model.named_parameters()}
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wanted = {name: torch.float32 if name in trains else getattr(torch, config.model.dtype) for name in slices}
    return {
        "decayed": decayed,
        "weights": sum(tensor.nbytes for name, tensor in slices.items() if ".lora_" not in name),
        "adapters": sum(tensor.nbytes for name, tensor in slices.items() if ".lora_" in name),
        "gathered": sum(parameter.data.nbytes for parameter in model.parameters()),
        "wrong_dtype": [name for name, tensor in slices.items() if tensor.dtype != wanted[name]],
        "buffers": sorted({str(buffer.dtype) for buffer in model.buffers()}),
    }


def decayed_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    return [name for name, parameter in model.named_parameters() if id(parameter) in decayed]


if __name__ == "__main__":
    main(*sys.argv[1:])
