"""From a config to a run that can take its next step, in phases: each looks for what can go wrong before the next costs time.

the folder      precision, the lock, the checkpoint to go on from or the run to begin with: nothing of another run is touched
the data        rows that fit the budget, and that are the checkpoint's
the model       weights, adapters, optimizer, and the ranks around them
the state       all that a checkpoint holds besides, if there is one
the batches     workers that read ahead of the loop
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from qwenvl_agent.config import Config, settle_prompt
from qwenvl_agent.data.collator import Collator, build_collator
from qwenvl_agent.data.dataset import RowDataset, Rows, build_rows
from qwenvl_agent.data.reject_limit import check_rejected
from qwenvl_agent.data.unusable import drop_unusable
from qwenvl_agent.evaluation.suites import check_held_out, check_suite, rule_differences
from qwenvl_agent.files import write_json
from qwenvl_agent.model.build import Processor, base_of, build_model, build_processor, describe_parameters, manifest
from qwenvl_agent.model.compiler import check_compilers
from qwenvl_agent.model.features import build_features
from qwenvl_agent.model.precision import choose_together
from qwenvl_agent.planning.vram import data_row, describe_plan, read_architecture
from qwenvl_agent.training.checkpoint import prepare_run_dir, read_state
from qwenvl_agent.training.findings import Findings
from qwenvl_agent.training.finite import FiniteCheck
from qwenvl_agent.training.gradients import GradientCheck
from qwenvl_agent.training.loader import build_loader, build_sampler
from qwenvl_agent.training.memory import fit_memory, gpu_gb
from qwenvl_agent.training.metrics import TENSORBOARD, Means, Reporter
from qwenvl_agent.training.optim import build_optimizer
from qwenvl_agent.training.profile import StepProfiler
from qwenvl_agent.training.run import Run
from qwenvl_agent.training.start import find_start, prepare_start, started
from qwenvl_agent.training.state import check_data, resume_run
from qwenvl_agent.training.stop import StopRequest
from qwenvl_agent.training.trackers import start_trackers
from qwenvl_agent.training.turns import in_turns
from qwenvl_agent.training.zero import build_accelerator, gather_whole

SETTLE_S = 0.2
"""After which threads that have just begun, or just answered a collective, are at rest."""


def set_up(config: Config, *, resume: bool = False, overwrite: bool = False, accept_changes: bool = False) -> Run:
    """The run that `config` asks for, at step 0 or where its last checkpoint stopped."""
    check_suite(config)
    config = settle_prompt(config)
    accelerator = build_accelerator(config.train)
    config = choose_together(config, accelerator, resume=resume)
    check_compilers(config, accelerator.device.type)
    start = find_start(config, resume=resume)
    config = started(config, start)
    checkpoint = prepare_run_dir(config, accelerator, resume, overwrite, accept_changes)
    prepare_start(config, start, checkpoint, accelerator)
    state = read_state(checkpoint)

    processor = build_processor(config.model, config.vision)
    collator = build_collator(processor, config)
    rows = read_rows(config, accelerator, collator)
    check_data(state, rows.report, accept_changes)
    sampler = build_sampler(config, rows.train, accelerator)
    schedule_steps = config.train.max_steps or sampler.num_steps(config.train.epochs)
    max_steps = schedule_steps + config.train.extra_steps

    config = fit_memory(config, rows.train, processor, accelerator)
    weights_dir = checkpoint / "model" if checkpoint else start and start.weights_dir
    bare_model, model, optimizer = build_trained(config, accelerator, weights_dir)
    is_main = accelerator.is_main_process
    run = Run(
        config=config,
        accelerator=accelerator,
        processor=processor,
        collator=collator,
        rows=rows,
        sampler=sampler,
        schedule_steps=schedule_steps,
        max_steps=max_steps,
        bare_model=bare_model,
        model=model,
        optimizer=optimizer,
        features=build_features(config, bare_model, processor),
        reporter=Reporter(
            config.run_dir,
            state["step"],
            max_steps,
            is_main=is_main,
            compiles=config.model.compile,
            evaluation_due=state["evaluation_due"],
            has_board=TENSORBOARD in config.train.trackers,
            trackers=start_trackers(config, accelerator, state["step"]),
        ),
        profiler=StepProfiler(config, bare_model, accelerator.device, is_main=is_main),
        findings=Findings(
            Means(), FiniteCheck(accelerator, optimizer, config.train), GradientCheck(accelerator, bare_model)
        ),
        stop=StopRequest(config.run_dir, accelerator),
    )
    describe(run)
    if checkpoint:
        resume_run(run, checkpoint, state, accept_changes)
    run.batches = start_reading(run)
    run.stop.install()
    return run


def read_rows(config: Config, accelerator: Accelerator, collator: Collator) -> Rows:
    """Those that fit the budget, with what the suite needs held out."""

    def read() -> Rows:
        rows = build_rows(config.data, config.prompt)
        check_rejected(rows.report["sources"], config.data)
        return drop_unusable(rows, collator)

    rows = in_turns(accelerator, "the data is indexed", read)  # the cache is written once
    check_held_out(config.eval, rows.held_out)
    return rows


def build_trained(
    config: Config, accelerator: Accelerator, weights_dir: Path | None
) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    """(the bare model, the same wrapped, its optimizer); the trained weights are those in `weights_dir`, if given."""
    set_seed(config.train.seed)  # all ranks make the same adapters
    bare_model = build_model(config.model, accelerator.device, weights_dir).train()
    gather_whole(bare_model, accelerator)
    model, optimizer = accelerator.prepare(bare_model, build_optimizer(bare_model, config.train))
    set_seed(config.train.seed, device_specific=True)  # and draw different dropout masks
    return bare_model, model, optimizer


def describe(run: Run) -> None:
    """On the terminal what will be learned and what it takes; in the folder every parameter and what the data are."""
    rows, bare_model, run_dir = run.rows, run.bare_model, run.config.run_dir
    for difference in rule_differences(run.config.eval, [(s.cfg, s.tool_names()) for s in rows.train.sources]):
        run.reporter.say(f"warning: {difference}")
    run.reporter.say(f"{rows.summary()}\ntrainable parameters: {describe_parameters(bare_model)}")
    run.reporter.say(plan_of(run.config, rows.train, bare_model, run.processor, run.accelerator))
    if run.accelerator.is_main_process:
        write_json(run_dir / "manifest.json", manifest(bare_model))
        write_json(run_dir / "data.json", rows.report)


def plan_of(config: Config, rows: RowDataset, model: nn.Module, processor: Processor, accelerator: Accelerator) -> str:
    """What a step should take of each GPU's memory, from the dataset's own longest rows."""
    arch = read_architecture(base_of(model).config.to_dict())
    row = data_row(rows, rows.lengths, config, arch, processor.count_tokens)
    return describe_plan(config, row, accelerator.num_processes, gpu_gb(accelerator.device), arch)


def start_reading(run: Run) -> Iterator[dict]:
    """Micro-batches from the run's step on, without end; the workers start now."""
    feature_dir = run.features and run.features.directory
    # CPython 3.11 frees a fork's other threads before it makes their lock anew: a worker that is forked while a thread
    # of the process group or of TensorBoard begins or ends its state would wait for that lock for ever.
    time.sleep(SETTLE_S)
    return iter(build_loader(run.config, run.rows.train, run.collator, run.sampler, feature_dir))
