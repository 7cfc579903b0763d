"""Fine-tune Qwen3-VL into an agent: config -> objects -> the loop. One loop for full, LoRA, QLoRA, DDP and ZeRO.

    accelerate launch train.py --config configs/safari_2b.json
    accelerate launch train.py --config configs/safari_2b.json --set train.learning_rate=1e-4 --resume

Outputs go to runs/NAME. `touch runs/NAME/STOP`, SIGTERM, SIGUSR1 or Ctrl-C saves a checkpoint and ends with status 0.
"""

import sys
import time
from collections.abc import Sequence

import qwenvl_agent.threads  # noqa: F401 isort: skip  (before torch, which reads how its threads wait)
from qwenvl_agent.cli.train_options import read_options  # isort: skip

if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before torch is loaded, which takes seconds

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.profiler import record_function

from qwenvl_agent.command import command
from qwenvl_agent.config import Config, load_config, to_json
from qwenvl_agent.data.unusable import name_skipped
from qwenvl_agent.training.best import has_stalled
from qwenvl_agent.training.evaluation import evaluate_run
from qwenvl_agent.training.findings import Findings
from qwenvl_agent.training.finite import GRADIENT_NORM
from qwenvl_agent.training.loader import to_device
from qwenvl_agent.training.lock import locks_released
from qwenvl_agent.training.loss import loss_scale, token_losses
from qwenvl_agent.training.metrics import flatten
from qwenvl_agent.training.optim import learning_rate_at, set_learning_rate
from qwenvl_agent.training.ranks import end_ranks, ranks_ended_together
from qwenvl_agent.training.run import Run
from qwenvl_agent.training.setup import set_up
from qwenvl_agent.training.stages import GateNotMetError, parts_of, record_end
from qwenvl_agent.training.state import save_run
from qwenvl_agent.training.workers import workers_ended


@command("what came after the last checkpoint is lost; --resume goes on from there")
def main(argv: Sequence[str] | None = None) -> int:
    args = read_options(argv)
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    how = {"resume": args.resume, "overwrite": args.overwrite, "accept_changes": args.accept_changes}
    try:
        train_stages(load_config(args.config, args.set), **how)
    except GateNotMetError as error:
        print(error, file=sys.stderr)
        return GateNotMetError.STATUS
    return 0


@locks_released()
@ranks_ended_together()
def train_stages(config: Config, **how: bool) -> dict[str, float]:
    """Every stage in its turn, each from the weights of the one before; without stages, the one run that the config is."""
    metrics = {}
    for stage in parts_of(config, **how):
        metrics = train(**stage)
    end_ranks()
    return metrics


@locks_released()
@ranks_ended_together()
@workers_ended()
def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, accept_changes: bool = False
) -> dict[str, float]:
    """Run the whole training of one run; the metrics of the last evaluation."""
    run = set_up(config, resume=resume, overwrite=overwrite, accept_changes=accept_changes)
    cfg, findings, reporter = run.config.train, run.findings, run.reporter
    metrics, stopped = {}, False
    if run.evaluation_due:  # the run was ended after it had saved this step
        metrics = evaluate_run(run)
    while run.step < run.max_steps and not stopped and not has_stalled(run.best, run.step, cfg):
        started = time.monotonic()
        with run.profiler.step():
            micro_batches = [next(run.batches) for _ in range(cfg.accumulation)]
            waited = time.monotonic() - started
            micro_batches = prepare(run, micro_batches, waited)
            learning_rate = learning_rate_at(run.step, run.schedule_steps, cfg)
            set_learning_rate(run.optimizer, learning_rate)
            run.stop.share()
            train_step(run.accelerator, run.model, run.optimizer, micro_batches, findings, run.step, cfg.max_grad_norm)
        run.step += 1

        is_first, is_last = run.step == run.first_step + 1, run.step == run.max_steps
        stopped = not is_last and run.stop.is_agreed()
        should_log = is_last or run.step % cfg.log_every == 0
        should_evaluate = is_last or (cfg.eval_every > 0 and run.step % cfg.eval_every == 0)
        should_save = is_last or stopped or should_evaluate or run.step % cfg.save_every == 0
        if is_first or should_log or should_save or findings.finite.skips:  # else nothing waits for the device
            findings.read()
        findings.means.add_throughput(micro_batches, waited, time.monotonic() - started)
        reporter.advance(run.step)
        if should_log:
            logged = findings.means.take(gather_object([findings.means.read()]))
            epoch = run.sampler.epoch_of(run.step)
            reporter.log(run.step, logged | {"train/learning_rate": learning_rate, "train/epoch": epoch})
        elif is_first:
            reporter.show(run.step, findings.means.peek())  # a sign of life, long before the first log line
        if should_save:
            save_run(run, evaluation_due=should_evaluate)
        if should_evaluate and not stopped:  # who stops is in a hurry: the resumed run evaluates
            metrics = evaluate_run(run)
    return close(run, metrics, stopped)


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[dict],
    findings: Findings,
    step: int,
    max_grad_norm: float,
) -> None:
    """One optimizer step; its loss is the mean over the weighted supervised tokens of all micro-batches and ranks.

    What it finds stays on the device: the host goes on to the next step while this one is computed.
    """
    # Backward divides by the number of micro-batches, the average of gradients by the number of ranks.
    scale = loss_scale(accelerator, micro_batches)
    findings.begin(scale, step, micro_batches)
    for batch in micro_batches:
        with accelerator.accumulate(model):
            tokens = token_losses(model, batch)
            loss = findings.finite.see_loss(tokens.weighted_sum * scale, tokens.weighted_sum, step, batch)
            with record_function("backward"):
                accelerator.backward(loss)  # under ZeRO the last one also clips and steps
            findings.means.add_losses(tokens, batch)
    findings.gradients(sum(batch["num_pictures"] for batch in micro_batches))
    with record_function("clip and optimizer"):
        gradient_norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
        findings.finite.see(GRADIENT_NORM, gradient_norm, step, micro_batches)
        findings.means.add("train/gradient_norm", gradient_norm, 1.0)
        optimizer.step()  # changes nothing in a bad step (training/finite.py)
        optimizer.zero_grad()


def prepare(run: Run, micro_batches: list[dict], waited_s: float) -> list[dict]:
    """On the device, with kept features where the run keeps them; rows that were left out are named."""
    run.profiler.note(micro_batches, waited_s)
    name_skipped(micro_batches, run.step)
    micro_batches = [to_device(batch, run.accelerator.device) for batch in micro_batches]
    return [run.features.attach(batch) for batch in micro_batches] if run.features else micro_batches


def close(run: Run, metrics: dict[str, float], stopped: bool) -> dict[str, float]:
    """Say how the run has ended, and end its records; `metrics` are those of the last evaluation."""
    say = run.reporter.say
    if untrained := run.findings.gradients.untrained():
        say(untrained)
    if run.step < run.max_steps and not stopped:
        say(f"no better evaluation since step {run.best.get('step')}: ended at step {run.step} of {run.max_steps}")
    is_over = f"done: {run.config.run_dir}"
    say(f"stopped at step {run.step} of {run.max_steps}; --resume goes on" if stopped else is_over)
    run.reporter.close(flatten(to_json(run.config)), metrics)
    if not stopped:
        record_end(run)
    return metrics


if __name__ == "__main__":
    sys.exit(main())
