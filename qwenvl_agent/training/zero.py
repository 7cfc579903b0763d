"""The Accelerator of a run: plain, DDP or DeepSpeed ZeRO, from our own JSON, so that no launcher file states it twice."""

import gc
import os
from datetime import timedelta

import torch
from accelerate import Accelerator, DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from torch import nn

from qwenvl_agent.config import TrainConfig
from qwenvl_agent.model.build import family_of
from qwenvl_agent.planning.vram import REDUCE_BUCKET
from qwenvl_agent.training.launcher import check_launcher
from qwenvl_agent.training.trackers import trackers_outside

WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Where torchrun (so Accelerate), MPI and srun say how many processes they have started."""


def build_accelerator(train_cfg: TrainConfig) -> Accelerator:
    """Precision is not Accelerate's business here: the model binds its own autocast.

    ValueError if what came up is not what was asked for: ZeRO of another stage or none, or fewer ranks than processes.
    """
    check_launcher(train_cfg)
    trackers = trackers_outside(train_cfg)
    plugin = build_deepspeed_plugin(train_cfg) if train_cfg.zero_stage else None
    if plugin and "RANK" not in os.environ and num_started()[0] == 1:
        # A process that no launcher made a rank is the only one; DeepSpeed would look for MPI.
        lone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ.update(lone)
    if plugin and not torch.cuda.is_available():
        # On a CPU Accelerate starts no process group for DeepSpeed: every rank would believe to be alone.
        PartialState(cpu=True)
    accelerator = Accelerator(
        mixed_precision="no",
        gradient_accumulation_steps=train_cfg.accumulation,
        deepspeed_plugin=plugin,
        log_with=trackers or None,  # of an empty list it warns
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # The other ranks wait while rank 0 evaluates.
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),
        ],
    )
    check_zero(accelerator, train_cfg.zero_stage)
    check_ranks(accelerator)
    return accelerator


def forget_accelerator() -> None:
    """After a run, before another of this process: the next has a plugin, an engine and a model of its own, and the ranks
    stay as they are."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    gc.collect()  # engines and optimizers hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gather_whole(model: nn.Module, accelerator: Accelerator) -> None:
    """Have `prepare` tell ZeRO-3 which modules to gather as one, because not every rank runs all that is in them."""
    names = family_of(model).gathered_whole
    plugin = accelerator.deepspeed_plugin if accelerator.distributed_type == DistributedType.DEEPSPEED else None
    if plugin and plugin.zero_stage == 3 and names:
        plugin.transformer_moe_cls_names = ",".join(names)


def check_zero(accelerator: Accelerator, asked: int) -> None:
    """Accelerate takes DeepSpeed from the environment too, and leaves it out for several reasons, in silence."""
    kind = accelerator.distributed_type
    if asked and kind != DistributedType.DEEPSPEED:
        cause = "ACCELERATE_USE_CPU is set" if os.environ.get("ACCELERATE_USE_CPU") else "Accelerate left it out"
        raise ValueError(
            f"train.zero_stage is {asked} and DeepSpeed is not active ({cause}): each rank would train the whole model "
            "without ZeRO; start it with `accelerate launch --use_deepspeed --num_processes N train.py ...` and without "
            "--cpu or ACCELERATE_USE_CPU, or set train.zero_stage=0"
        )
    if asked and not torch.distributed.is_initialized():
        raise ValueError(
            f"train.zero_stage is {asked} and this process was not started as a rank of the launcher's: DeepSpeed would "
            "look for MPI; start it with `accelerate launch --use_deepspeed --num_processes N train.py ...`"
        )
    if not asked and kind in (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"train.zero_stage is 0 and the launcher asks for {kind.value}: weights would be sharded otherwise than the "
            "config, its memory plan and its checkpoints say; launch without it (`accelerate config` may have stored "
            "it), or set train.zero_stage"
        )
    active = accelerator.deepspeed_plugin.zero_stage if asked else 0
    assert active == asked, f"ZeRO stage {active} is active, {asked} was asked for"


def check_ranks(accelerator: Accelerator) -> None:
    """Ranks that do not know of each other would each train on all rows and write the same files."""
    started, name = num_started()
    if started > accelerator.num_processes:
        raise ValueError(
            f"{name} is {started} and this process counts {accelerator.num_processes}: each would train alone into the "
            "same folder; start ranks with `accelerate launch`, without a GPU as `ACCELERATE_USE_CPU=true accelerate "
            "launch --multi_gpu --num_processes N train.py ...`, for ZeRO with --use_deepspeed alone"
        )


def num_started() -> tuple[int, str]:
    """The most processes that a launcher says it has started, and the variable that says so."""
    return max((int(os.environ.get(name) or 1), name) for name in WORLD_SIZES)


def build_deepspeed_plugin(train_cfg: TrainConfig) -> DeepSpeedPlugin:
    zero: dict = {
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
