"""One optimizer step's gradient, on as many ranks as the launcher starts: run by test_ranks.py.

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 tests/rank_worker.py CONFIG OUT

Each rank writes OUT/rank_R.json (world size, backend, rank, its supervised tokens) and OUT/rank_R.safetensors (the
gradient that the optimizer was given, by parameter name).
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from qwenvl_agent.config import load_config
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.unusable import collate
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.model.call import supervised_positions
from qwenvl_agent.training.findings import Findings
from qwenvl_agent.training.finite import FiniteCheck
from qwenvl_agent.training.gradients import GradientCheck
from qwenvl_agent.training.loader import build_sampler
from qwenvl_agent.training.metrics import Means
from qwenvl_agent.training.zero import build_accelerator
from train import train_step


class GradientRecorder(torch.optim.Optimizer):
    """Takes no step; keeps what it was given."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.gradients = []

    def step(self, closure=None):
        self.gradients = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def main(config_path: str, out: str) -> None:
    config, out = load_config(config_path), Path(out)
    accelerator = build_accelerator(config.train)
    processor = build_processor(config.model, config.vision)
    rows = build_rows(config.data, config.prompt).train
    collator = Collator(processor, FORMATS["native"], config.prompt, config.vision, config.train)
    torch.manual_seed(0)
    model = build_model(config.model).train()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:  # LoRA's B starts at zero, and then the gradient of its A is zero too
        torch.nn.init.normal_(parameter, std=0.02)
    optimizer = GradientRecorder(trainable)
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    sampler = iter(build_sampler(config, rows, accelerator))
    indices = [next(sampler) for _ in range(config.train.accumulation)]
    micro_batches = [collate(rows, collator, batch) for batch in indices]
    means = Means()
    findings = Findings(means, FiniteCheck(accelerator, prepared_optimizer), GradientCheck(accelerator, model))
    train_step(accelerator, prepared, prepared_optimizer, micro_batches, findings, 2, 1e9)
    findings.read()

    rank, is_distributed = accelerator.process_index, torch.distributed.is_initialized()
    seen = {
        "world_size": torch.distributed.get_world_size() if is_distributed else 1,
        "backend": torch.distributed.get_backend() if is_distributed else "",
        "rank": torch.distributed.get_rank() if is_distributed else 0,
        "rows": [row_id for batch in micro_batches for row_id in batch["row_ids"]],
        "num_tokens": sum(int(supervised_positions(batch["labels"]).sum()) for batch in micro_batches),
        "loss": means.read()["train/loss"],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"rank_{rank}.json").write_text(json.dumps(seen))
    gradients = {names[id(p)]: g for p, g in zip(trainable, optimizer.gradients, strict=True)}
    save_file(gradients, out / f"rank_{rank}.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
