"""Micro-batches from the rows: which ones a rank takes, the workers that make them, and their way to the device."""

from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from qwenvl_agent.config import Config
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.dataset import RowDataset
from qwenvl_agent.data.sampler import RowSampler
from qwenvl_agent.data.unusable import collate
from qwenvl_agent.training.workers import ignore_signals


def build_sampler(config: Config, rows: RowDataset, accelerator: Accelerator) -> RowSampler:
    return RowSampler(
        len(rows),
        batch_size=config.train.batch_size,
        accumulation=config.train.accumulation,
        seed=config.data.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        weights=rows.sampling_weights,
        lengths=rows.lengths,
        deals=config.train.pack_tokens > 0,
    )


def build_loader(
    config: Config, rows: RowDataset, collator: Collator, sampler: RowSampler, feature_dir: Path | None = None
) -> DataLoader:
    return DataLoader(
        range(len(rows)),
        batch_sampler=sampler,
        collate_fn=partial(
            collate,
            rows,
            collator,
            on_unusable_row=config.data.on_unusable_row,
            pack_tokens=config.train.pack_tokens,
            feature_dir=feature_dir,
            # Ranks wait for each other there, and a step is the same on one rank as on several.
            always_runs_tower=sampler.world_size > 1 or config.model.vision_has_gradient,
        ),
        num_workers=config.data.num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
        # Of its own, or starting the workers would draw from the generator that dropout uses.
        generator=torch.Generator(),
    )


def to_device(batch: dict, device: torch.device) -> dict:
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
