"""What a GPU's memory leaves to choose: how many layers keep what they computed (model.gradient_checkpointing "auto")."""

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from qwenvl_agent.config import Config
from qwenvl_agent.data.dataset import RowDataset
from qwenvl_agent.model.build import Processor, checkpoint_path, load_model_config
from qwenvl_agent.planning.vram import GIB, choose_checkpointing, data_row, read_architecture


def fit_memory(config: Config, rows: RowDataset, processor: Processor, accelerator: Accelerator) -> Config:
    """The config for this machine's GPUs, the same on all ranks; the choice is said on the terminal."""
    if config.model.gradient_checkpointing != "auto":
        return config
    arch = read_architecture(load_model_config(checkpoint_path(config.model.path)).to_dict())
    row = data_row(rows, rows.lengths, config, arch, processor.count_tokens)
    smallest = min(gather_object([gpu_gb(accelerator.device) or 0.0]))
    chosen, line = choose_checkpointing(config, arch, row, accelerator.num_processes, smallest or None)
    accelerator.print(line)
    return chosen


def gpu_gb(device: torch.device) -> float | None:
    """GiB of the device's memory; None of a CPU."""
    return torch.cuda.get_device_properties(device).total_memory / GIB if device.type == "cuda" else None
