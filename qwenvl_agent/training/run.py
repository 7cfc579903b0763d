"""What a run is made of and where it stands: all that train.py's loop reads, and that setup, checkpoints and evaluation share."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import nn

from qwenvl_agent.config import Config
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.dataset import Rows
from qwenvl_agent.data.sampler import RowSampler
from qwenvl_agent.model.build import Processor
from qwenvl_agent.model.features import FeatureCache
from qwenvl_agent.training.findings import Findings
from qwenvl_agent.training.metrics import Reporter
from qwenvl_agent.training.profile import StepProfiler
from qwenvl_agent.training.stop import StopRequest


@dataclass
class Run:
    """Made by `setup.set_up`. Of the model there are two views: `bare_model` as it was built, `model` as ranks wrap it."""

    config: Config
    accelerator: Accelerator
    processor: Processor
    collator: Collator
    rows: Rows
    sampler: RowSampler
    schedule_steps: int
    max_steps: int
    bare_model: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    features: FeatureCache | None
    reporter: Reporter
    profiler: StepProfiler
    findings: Findings
    stop: StopRequest
    batches: Iterator[dict] = iter(())

    step: int = 0
    """Optimizer steps taken."""
    first_step: int = 0
    """Steps that were taken before this process went on."""
    best: dict = field(default_factory=dict)
    """Metrics and `step` of the best evaluation until now."""
    evaluation_due: bool = False
    """Whether the run was ended after it had saved this step and before it had evaluated it."""
