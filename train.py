"""Fine-tune Qwen3-VL into an agent: config -> objects -> the loop. One loop for full, LoRA, QLoRA, DDP and ZeRO.

    accelerate launch train.py --config configs/safari_2b.json
    accelerate launch train.py --config configs/safari_2b.json --set train.learning_rate=1e-4 --resume

Outputs go to runs/NAME. `touch runs/NAME/STOP`, SIGTERM or Ctrl-C saves a checkpoint and ends with status 0.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import qwenvl_agent.threads  # noqa: F401 isort: skip  (before torch, which reads how its threads wait)

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch import nn
from torch.profiler import record_function
from torch.utils.data import DataLoader

from qwenvl_agent.command import command
from qwenvl_agent.config import Config, TrainConfig, load_config, to_json
from qwenvl_agent.data.collator import Collator, build_collator
from qwenvl_agent.data.dataset import RowDataset, build_rows
from qwenvl_agent.data.sampler import RowSampler
from qwenvl_agent.data.unusable import collate, drop_unusable, name_skipped, usable_rows
from qwenvl_agent.evaluation.suites import check_held_out, check_suite, evaluate, pick_rows
from qwenvl_agent.formats import Format
from qwenvl_agent.inference.policy import ModelPolicy
from qwenvl_agent.model.build import (
    Processor,
    base_of,
    build_model,
    build_processor,
    describe_parameters,
    manifest,
    save_weights,
)
from qwenvl_agent.model.features import build_features
from qwenvl_agent.model.precision import choose_together
from qwenvl_agent.planning.vram import data_row, describe_plan, read_architecture
from qwenvl_agent.records import EpisodeRecord
from qwenvl_agent.schema import Row
from qwenvl_agent.settings_reference import help_of
from qwenvl_agent.training.checkpoint import (
    check_data,
    load_training_state,
    prepare_run_dir,
    preserved_random_state,
    read_state,
    record_evaluation,
    save_checkpoint,
    write_json,
    write_training_state,
)
from qwenvl_agent.training.gradients import GradientCheck
from qwenvl_agent.training.lock import locks_released
from qwenvl_agent.training.loss import supervised_weight, token_losses
from qwenvl_agent.training.metrics import Means, Reporter, flatten
from qwenvl_agent.training.optim import build_optimizer, learning_rate_at, set_learning_rate
from qwenvl_agent.training.profile import StepProfiler
from qwenvl_agent.training.ranks import ranks_ended_together
from qwenvl_agent.training.stop import StopRequest
from qwenvl_agent.training.workers import ignore_signals, workers_ended
from qwenvl_agent.training.zero import build_accelerator

NUM_SHOWN = 4
"""Answers and rollouts that an evaluation writes to TensorBoard."""


@command("what came after the last checkpoint is lost; --resume goes on from there")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = f"settings, for the JSON file and --set (docs/CONFIG.md):\n{help_of(Config)}"
    parser.add_argument("--config", required=True, help="a JSON file of configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one setting")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint, if it has one")
    parser.add_argument(
        "--accept-changes", action="store_true", help="resume although data, prompt or vision settings are others now"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the run of that name first")
    args = parser.parse_args(argv)
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    if args.accept_changes and not args.resume:
        parser.error("--accept-changes without --resume: there is nothing that could have changed; give both")
    how = {"resume": args.resume, "overwrite": args.overwrite, "accept_changes": args.accept_changes}
    train(load_config(args.config, args.set), **how)
    return 0


@locks_released()
@ranks_ended_together()
@workers_ended()
def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, accept_changes: bool = False
) -> dict[str, float]:
    """Run the whole training; the metrics of the last evaluation."""
    check_suite(config)
    accelerator = build_accelerator(config.train)
    config = choose_together(config, accelerator, resume=resume)
    checkpoint = prepare_run_dir(config, accelerator, resume, overwrite, accept_changes)
    state = read_state(checkpoint) if checkpoint else {"step": 0, "best": {}, "evaluation_due": False}
    set_seed(config.train.seed)

    processor = build_processor(config.model, config.vision)
    collator = build_collator(processor, config)
    with accelerator.main_process_first():  # the cache is written once
        rows = drop_unusable(build_rows(config.data, config.prompt), collator)
    check_held_out(config.eval, rows.held_out)
    check_data(state, rows.report, accept_changes)
    sampler = build_sampler(config, rows.train, accelerator, state, accept_changes)
    max_steps = config.train.max_steps or sampler.num_steps(config.train.epochs)
    bare_model = build_model(config.model, accelerator.device, checkpoint and checkpoint / "model").train()
    model, optimizer = accelerator.prepare(bare_model, build_optimizer(bare_model, config.train))

    options = {"is_main": accelerator.is_main_process, "compiles": config.model.compile}
    reporter = Reporter(config.run_dir, state["step"], max_steps, evaluation_due=state["evaluation_due"], **options)
    reporter.say(f"{rows.summary()}\ntrainable parameters: {describe_parameters(bare_model)}")
    reporter.say(plan_of(config, rows.train, bare_model, processor, accelerator.num_processes))
    if accelerator.is_main_process:
        write_json(config.run_dir / "manifest.json", manifest(bare_model))
        write_json(config.run_dir / "data.json", rows.report)
    save = partial(save_run, config, accelerator, model, optimizer, sampler, rows.report["dataset_hash"])
    evaluate_now = partial(evaluate_run, config, accelerator, bare_model, processor, collator, rows.held_out, reporter)
    features = build_features(config, bare_model, processor)
    batches = iter(build_loader(config, rows.train, collator, sampler, features and features.directory))
    set_seed(config.train.seed, device_specific=True)  # ranks draw different dropout masks
    profiler = StepProfiler(config, bare_model, accelerator.device, is_main=accelerator.is_main_process)
    check_gradients = GradientCheck(accelerator, bare_model)
    means = Means()
    if checkpoint:
        means = Means(load_training_state(checkpoint, accelerator, model, optimizer).get("means"))
    stop = StopRequest(config.run_dir)
    stop.install()

    step, best = state["step"], state["best"]
    metrics, stopped = {}, False
    if state["evaluation_due"]:  # the run was ended after it had saved this step
        metrics, best = evaluate_now(step, best)
    while step < max_steps and not stopped and not has_stalled(best, step, config.train):
        started = time.monotonic()
        with profiler.step():
            micro_batches = [move(next(batches), accelerator.device) for _ in range(config.train.accumulation)]
            waited = time.monotonic() - started
            profiler.note(micro_batches, waited)
            name_skipped(micro_batches, step)
            if features:
                micro_batches = [features.attach(batch) for batch in micro_batches]
            learning_rate = learning_rate_at(step, max_steps, config.train)
            set_learning_rate(optimizer, learning_rate)
            clip = config.train.max_grad_norm
            train_step(accelerator, model, optimizer, micro_batches, means, step, clip, check_gradients)
        if step == state["step"] and torch.cuda.is_available():
            reporter.say(f"measured peak: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of tensors")
        step += 1
        means.add_throughput(micro_batches, waited, time.monotonic() - started)

        is_last = step == max_steps
        stopped = not is_last and any_rank(accelerator, stop.is_set())
        should_log = is_last or step % config.train.log_every == 0
        should_evaluate = is_last or (config.train.eval_every > 0 and step % config.train.eval_every == 0)
        should_save = is_last or stopped or should_evaluate or step % config.train.save_every == 0
        reporter.advance(step)
        if should_log:
            logged = means.take(gather_object([means.sums]))
            reporter.log(step, logged | {"train/learning_rate": learning_rate, "train/epoch": sampler.epoch_of(step)})
        elif step == state["step"] + 1:
            reporter.show(step, means.peek())  # a sign of life, long before the first log line
        if should_save:
            save(step, best, means, should_evaluate)
        if should_evaluate and not stopped:  # who stops is in a hurry: the resumed run evaluates
            metrics, best = evaluate_now(step, best)

    if untrained := check_gradients.untrained():
        reporter.say(untrained)
    if step < max_steps and not stopped:
        reporter.say(f"no better evaluation since step {best.get('step')}: ended at step {step} of {max_steps}")
    reporter.say(f"stopped at step {step} of {max_steps}; --resume goes on" if stopped else f"done: {config.run_dir}")
    reporter.close(flatten(to_json(config)), metrics)
    accelerator.end_training()
    return metrics


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[dict],
    means: Means,
    step: int,
    max_grad_norm: float,
    check_gradients: GradientCheck | None = None,
) -> None:
    """One optimizer step; its loss is the mean over the weighted supervised tokens of all micro-batches and ranks."""
    sums = [supervised_weight(micro_batches), sum(batch["num_pictures"] for batch in micro_batches)]
    total_weight, num_pictures = accelerator.reduce(torch.tensor(sums, device=accelerator.device), "sum").tolist()
    if not total_weight > 0:
        raise ValueError(f"step {step + 1} has nothing to learn: every token's weight is 0\n{origin(micro_batches)}")
    # Backward divides by the number of micro-batches, the average of gradients by the number of ranks.
    scale = accelerator.num_processes * len(micro_batches) / total_weight
    for batch in micro_batches:
        with accelerator.accumulate(model):
            tokens = token_losses(model, batch)
            loss = tokens.weighted_sum * scale
            check_finite("loss", loss, step, [batch])
            with record_function("backward"):
                accelerator.backward(loss)  # under ZeRO the last one also clips and steps
            means.add_losses(tokens, batch["tools"])
    if check_gradients:
        check_gradients(num_pictures)
    with record_function("clip and optimizer"):
        gradient_norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
        check_finite("gradient norm", gradient_norm, step, micro_batches)
        means.add("train/gradient_norm", float(gradient_norm), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def plan_of(config: Config, rows: RowDataset, model: nn.Module, processor: Processor, num_gpus: int) -> str:
    """What a step should take of each GPU's memory, from the dataset's own longest rows."""
    arch = read_architecture(base_of(model).config.to_dict())
    gpu_gb = torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None
    row = data_row(rows, rows.lengths, config, arch, processor.count_tokens)
    return describe_plan(config, row, num_gpus, gpu_gb, arch)


def check_finite(what: str, value: torch.Tensor | float, step: int, micro_batches: Sequence[dict]) -> None:
    """ValueError that names the rows, before their step is taken."""
    value = float(torch.as_tensor(value).detach())
    if not math.isfinite(value):
        raise ValueError(
            f"{what} is {value} at step {step + 1}: the step is not taken, and the last checkpoint is as it was; "
            f"look at these rows, or lower train.learning_rate: {origin(micro_batches)}"
        )


def origin(micro_batches: Sequence[dict]) -> str:
    """`id (file:line)` of every row."""
    pairs = [pair for batch in micro_batches for pair in zip(batch["row_ids"], batch["sources"], strict=True)]
    return ", ".join(f"{row_id} ({source})" for row_id, source in pairs)


def build_sampler(
    config: Config, rows: RowDataset, accelerator: Accelerator, state: dict, accept_changes: bool = False
) -> RowSampler:
    sampler = RowSampler(
        len(rows),
        batch_size=config.train.batch_size,
        accumulation=config.train.accumulation,
        seed=config.data.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        weights=rows.sampling_weights,
        lengths=rows.lengths,
    )
    if state["step"]:
        sampler.load_state_dict(state["sampler"], accept_changes)
    return sampler


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


def move(batch: dict, device: torch.device) -> dict:
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item() > 0


def save_run(
    config: Config,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer,
    sampler: RowSampler,
    dataset_hash: str,
    step: int,
    best: dict,
    means: Means,
    evaluation_due: bool,
) -> None:
    """One checkpoint, by all ranks together; `evaluation_due`: whether its step is still to be evaluated."""
    state = {"step": step, "best": best, "evaluation_due": evaluation_due, "dataset_hash": dataset_hash}
    state["sampler"] = sampler.state_dict(step)
    weights = accelerator.get_state_dict(model) if config.train.zero_stage == 3 else None  # gathered by all ranks

    def write(directory: Path) -> None:
        if accelerator.is_main_process:
            write_json(directory / "config.json", to_json(config))
            write_json(directory / "state.json", state)
            save_weights(accelerator.unwrap_model(model), directory / "model", weights)
        write_training_state(directory, accelerator, model, optimizer, {"means": means.sums})

    save_checkpoint(config.run_dir / "checkpoints", step, write, accelerator, config.train.keep_checkpoints)


def evaluate_run(
    config: Config,
    accelerator: Accelerator,
    model: nn.Module,
    processor: Processor,
    collator: Collator,
    held_out: RowDataset,
    reporter: Reporter,
    step: int,
    best: dict,
) -> tuple[dict[str, float], dict]:
    """Held-out rows and rollouts of a saved step by rank 0 while the others wait: metrics, and the best until now.

    Training's random numbers stay as they were.
    """
    metrics = {}
    if config.train.zero_stage == 3:
        reporter.say("no evaluation inside training under ZeRO-3, where no rank has the whole model: use eval.py")
    elif accelerator.is_main_process:
        with preserved_random_state():
            policy = ModelPolicy(model, processor, collator, collator.fmt, config.eval)
            result = evaluate(policy, config.eval, held_out=held_out, history_steps=config.prompt.history_steps)
            show_answers(reporter, step, policy, usable_rows(collator, pick_rows(held_out, NUM_SHOWN)), collator.fmt)
            show_episodes(reporter, step, result.episodes[:NUM_SHOWN])
        metrics = result.scalars
        if result.failure:
            reporter.say(f"step {step}: every episode ended with an error, so this is no `best`: {result.failure}")
    metrics = broadcast_object_list([metrics])[0]
    if metrics:
        reporter.log(step, metrics)
    if is_better(metrics, best):
        best = metrics | {"step": step}
    if accelerator.is_main_process:
        record_evaluation(config.run_dir / "checkpoints", step, best, metrics, config.train.keep_checkpoints)
    return metrics, best


def show_answers(reporter: Reporter, step: int, policy: ModelPolicy, rows: Sequence[Row], fmt: Format) -> None:
    """Held-out pictures with what the model wrote and what it should have written."""
    for i, (row, answer) in enumerate(zip(rows, policy.act([row.request for row in rows]), strict=True)):
        truth = "".join(span.text for span in fmt.render(row.turn))
        reporter.text(step, f"answers/{i}", f"{row.id}\n{answer.text}\n\ntruth:\n{truth}")
        for picture in row.request.observation.pictures[-1:]:
            reporter.image(step, f"answers/{i}", picture.open())


def show_episodes(reporter: Reporter, step: int, episodes: Sequence[EpisodeRecord]) -> None:
    """Transcripts of rollouts: context, answer and results of every step."""
    for episode in episodes:
        steps = [f"{s.context}\n> {s.text}\n{s.results}" for s in episode.steps]
        title = f"{episode.mission}: {episode.end_reason}, reached {episode.reached} of {episode.goals}"
        reporter.text(step, f"rollouts/{episode.seed}", "\n\n".join([title, *steps]))


def has_stalled(best: dict, step: int, cfg: TrainConfig) -> bool:
    """Whether `train.patience` evaluations in a row were no better than the best before them."""
    return cfg.patience > 0 and bool(best) and step - best["step"] >= cfg.patience * cfg.eval_every


def is_better(metrics: dict[str, float], best: dict) -> bool:
    """Whether these become `best`; those of an evaluation in which no episode could be played never do."""
    could_play = metrics.get("rollout/error_rate") != 1.0
    return bool(metrics) and could_play and (not best or goodness(metrics) > goodness(best))


def goodness(metrics: dict[str, float]) -> tuple[float, float]:
    """Orders checkpoints for `best`: success in rollouts or hits on screens, then held-out loss."""
    success = metrics.get("rollout/success_rate", metrics.get("clicks/box_hit_rate", 0.0))
    return success, -metrics.get("eval/token_loss/all", math.inf)


if __name__ == "__main__":
    sys.exit(main())
