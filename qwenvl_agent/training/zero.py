"""The Accelerator of a run: plain, DDP or DeepSpeed ZeRO, from our own JSON, so that no launcher file states it twice."""

from datetime import timedelta

import torch
from accelerate import Accelerator, DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState

from qwenvl_agent.config import TrainConfig
from qwenvl_agent.vram import REDUCE_BUCKET


def build_accelerator(train_cfg: TrainConfig) -> Accelerator:
    """Precision is not Accelerate's business here: the model binds its own autocast."""
    plugin = build_deepspeed_plugin(train_cfg) if train_cfg.zero_stage else None
    if plugin and not torch.cuda.is_available():
        # On a CPU Accelerate starts no process group for DeepSpeed: every rank would believe to be alone.
        PartialState(cpu=True)
    return Accelerator(
        mixed_precision="no",
        gradient_accumulation_steps=train_cfg.accumulation,
        deepspeed_plugin=plugin,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # The other ranks wait while rank 0 evaluates.
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),
        ],
    )


def build_deepspeed_plugin(train_cfg: TrainConfig) -> DeepSpeedPlugin:
    zero = {
        "stage": train_cfg.zero_stage,
        # Overlapping has given NaN losses with ZeRO-2 and adapters (DeepSpeed issue 5347).
        "overlap_comm": False,
        "reduce_bucket_size": REDUCE_BUCKET,
    }
    if train_cfg.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if train_cfg.cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if train_cfg.cpu_offload and train_cfg.zero_stage == 3:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    settings = {
        "train_micro_batch_size_per_gpu": train_cfg.batch_size,
        "gradient_accumulation_steps": train_cfg.accumulation,
        "gradient_clipping": train_cfg.max_grad_norm,
        "zero_optimization": zero,
        "steps_per_print": 1_000_000,
    }
    return DeepSpeedPlugin(hf_ds_config=settings)
