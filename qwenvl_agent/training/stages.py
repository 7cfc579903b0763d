"""The runs of a config, one after the other: one, or those of a curriculum (`Config.stages`), each an ordinary run.

    runs/NAME/
        config.json             the curriculum as it was asked for
        STAGE/                  a stage's run; of a stage whose data is made, STAGE_1, STAGE_2 ... are its rounds
            done.json           that the run is over: its step, and how many of its steps a gate has asked for
            data/               made for it
        checkpoints -> STAGE/checkpoints        of the newest run that is over: runs/NAME is evaluated and exported as it

Where a curriculum stands is read from these files alone, by rank 0, before each run: whatever ended it, it goes on from
there. Between two runs nothing of the first is left in memory but the ranks.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from qwenvl_agent.config import Config, GateConfig, to_json
from qwenvl_agent.containers import data_files
from qwenvl_agent.files import read_json, write_json
from qwenvl_agent.inference.load import locate_checkpoint
from qwenvl_agent.training.checkpoint import EVALUATION, check_folder, is_run, read_evaluation
from qwenvl_agent.training.curriculum import (
    DATA,
    MAKERS,
    PlannedRun,
    made_sources,
    plan_runs,
    recorder_options,
)
from qwenvl_agent.training.lock import lock_run
from qwenvl_agent.training.made_data import DataRequest
from qwenvl_agent.training.metrics import flatten
from qwenvl_agent.training.run import Run
from qwenvl_agent.training.stop import STOP
from qwenvl_agent.training.subcommand import run_subcommand
from qwenvl_agent.training.turns import in_turns
from qwenvl_agent.training.zero import build_accelerator, forget_accelerator

DONE = "done.json"
DECIDING_KEYS = ("model.", "data.", "prompt.", "vision.", "train.")
FREE_KEYS = (
    *("eval.", "profile.", "train.log_every", "train.save_every", "train.keep_checkpoints", "train.extra_steps"),
    *("data.num_workers", "data.cache_dir", "data.max_rejected", "data.check_pictures", "data.on_unusable_row"),
    *("model.attention", "model.gradient_checkpointing", "model.compile", "vision.feature_cache_gb"),
)
"""What a stage that is over may have had otherwise, and its weights be the same."""


class GateNotMetError(Exception):
    """A curriculum ends before its last stage, as its config says; the message is for the user."""

    STATUS = 3


@dataclass(frozen=True)
class Part:
    """One call of the trainer."""

    config: Config
    resume: bool


def parts_of(
    config: Config, *, resume: bool = False, overwrite: bool = False, accept_changes: bool = False
) -> Iterator[dict]:
    """The arguments of `train`, of each run in its turn; what they have trained is looked up on the disk between them.

    It ends after a run that was stopped. GateNotMetError as the gate says.
    """
    if not config.stages:
        yield {"config": config, "resume": resume, "overwrite": overwrite, "accept_changes": accept_changes}
        return
    runs = plan_runs(config)
    ranks = find_ranks(config)
    from_rank_0(ranks, lambda: open_curriculum(config, runs, resume, overwrite, accept_changes, ranks))
    in_turns(ranks, "the datasets are recorded", lambda: record_datasets(runs, ranks))
    from_rank_0(ranks, lambda: check_sources(runs))
    for number, run in enumerate(runs, 1):
        ranks.print(f"stage {number} of {len(runs)}: {run.config.name}")
        if run.made_by and not from_rank_0(ranks, lambda run=run: is_over(run, 0)):
            make_data(run, ranks)
        while part := from_rank_0(ranks, lambda run=run: next_part(config, run)):
            yield {"config": part.config, "resume": part.resume, "accept_changes": accept_changes and part.resume}
            forget_accelerator()
            if not from_rank_0(ranks, lambda run=run, part=part: is_over(run, part.config.train.extra_steps)):
                return
        if from_rank_0(ranks, lambda run=run: any(path.exists() for path in stop_files(config, run))):
            ranks.print(f"stopped before {run.config.name} was over; --resume goes on")
            return
        from_rank_0(ranks, lambda run=run: point_to(config, run))
        pass_gate(run, ranks)
    from_rank_0(ranks, lambda: write_json(config.run_dir / DONE, {"stages": [run.config.name for run in runs]}))
    ranks.print(f"done: {config.run_dir}")


def find_ranks(config: Config) -> PartialState:
    """The processes of the launcher's, together for all stages."""
    build_accelerator(config.train)
    forget_accelerator()
    return PartialState()


def from_rank_0(ranks: PartialState, look):
    """What `look` gives on rank 0, on all ranks; or its ValueError or OSError."""
    answer: list = [None, None]
    if ranks.is_main_process:
        try:
            answer[0] = look()
        except (ValueError, OSError) as error:
            answer[1] = error
    found, failure = broadcast_object_list(answer)
    if failure:
        raise failure
    return found


def open_curriculum(
    config: Config, runs: list[PlannedRun], resume: bool, overwrite: bool, accept_changes: bool, ranks: PartialState
) -> None:
    """Lock the folder; nothing in it is lost unasked, and what is over has the settings that the config says."""
    folder = config.run_dir
    if resume and overwrite:
        raise ValueError("--resume and --overwrite together: one keeps the run, the other deletes it; give one of them")
    lock_run(folder, ranks.print)
    if overwrite and folder.exists():
        check_folder(folder, overwrite, resume)
        shutil.rmtree(folder)
    if folder.exists() and not (folder / "checkpoints").is_symlink():
        check_folder(folder, overwrite=False, resume=False)  # a run of that name is none of these stages
    for run in runs:
        if not resume and is_run(run.config.run_dir):
            check_folder(run.config.run_dir, overwrite=False, resume=False)
        elif is_over(run, 0) and not accept_changes:
            check_unchanged(run)
    folder.mkdir(parents=True, exist_ok=True)
    for path in {path for run in runs for path in stop_files(config, run)}:
        path.unlink(missing_ok=True)
    (folder / DONE).unlink(missing_ok=True)
    write_json(folder / "config.json", to_json(config))


def stop_files(config: Config, run: PlannedRun) -> tuple[Path, Path]:
    """Of the curriculum, and of a run that may have got it when it was over."""
    return config.run_dir / STOP, run.config.run_dir / STOP


def check_unchanged(run: PlannedRun) -> None:
    """ValueError if a stage that is over was trained otherwise than the config says: what follows it would not be its."""
    before, now = flatten(read_json(run.config.run_dir / "config.json")), flatten(to_json(run.config))
    # A merged base has a path of its own.
    settled = {"model.path"} if run.config.model.init_from else set()
    for key in sorted((before.keys() & now.keys()) - settled):
        if before[key] != now[key] != "auto" and key.startswith(DECIDING_KEYS) and not key.startswith(FREE_KEYS):
            raise ValueError(
                f"{run.config.run_dir} is over and had {key} {before[key]!r}, which is {now[key]!r} now: what follows would go "
                "on from another stage than the config's; set it back, begin anew with --overwrite or another name, or go "
                "on all the same: --resume --accept-changes"
            )


# parts


def record_end(run: Run) -> None:
    """That the run is over, for whoever follows it."""
    if run.accelerator.is_main_process:
        end = {"step": run.step, "extra_steps": run.config.train.extra_steps}
        write_json(run.config.run_dir / DONE, end, is_flushed=True)


def is_over(run: PlannedRun, extra_steps: int) -> bool:
    """Whether it has been trained to its end, with so many steps more."""
    path = run.config.run_dir / DONE
    return path.exists() and read_json(path)["extra_steps"] >= extra_steps


def next_part(config: Config, run: PlannedRun) -> Part | None:
    """What is to be trained next of the run; None if there is nothing, or a stop was asked for."""
    if any(path.exists() for path in stop_files(config, run)):
        return None
    run_dir, gate = run.config.run_dir, run.stage.gate
    has_begun = is_run(run_dir)  # perhaps without a checkpoint, but with lines in its log
    if not is_over(run, 0):
        return Part(run.config, has_begun)
    taken = read_json(run_dir / DONE)["extra_steps"]
    if not gate or not run.is_last or is_met(gate, run_dir) or taken >= gate.more_steps * gate.times:
        return None
    print(f"{verdict(gate, run_dir)}: {gate.more_steps} steps more, at the schedule's last learning rate")
    longer = replace(run.config.train, extra_steps=taken + gate.more_steps, patience=0)
    return Part(replace(run.config, train=longer), has_begun)


# gates


def pass_gate(run: PlannedRun, ranks: PartialState) -> None:
    """GateNotMetError if the stage's gate is not met and says so; a line if it says to go on."""
    gate, run_dir = run.stage.gate, run.config.run_dir
    if not gate or not run.is_last:
        return
    is_good, said = from_rank_0(ranks, lambda: (is_met(gate, run_dir), verdict(gate, run_dir)))
    if is_good or gate.otherwise == "go_on":
        ranks.print(said if is_good else f"{said}: the next stage begins all the same (otherwise: go_on)")
        return
    raise GateNotMetError(
        f"{said}: the curriculum ends before its next stage; train {run.config.name} better (its train.max_steps, data, "
        "gate.more_steps), or lower the gate and go on with --resume"
    )


def is_met(gate: GateConfig, run_dir: Path) -> bool:
    return gate.least <= measured(gate, run_dir) <= gate.most


def measured(gate: GateConfig, run_dir: Path) -> float:
    """Of the checkpoint with which the next run begins: the best, else the last."""
    checkpoint = locate_checkpoint(run_dir)
    metrics = read_evaluation(checkpoint)["metrics"] if (checkpoint / EVALUATION).exists() else {}
    if gate.metric not in metrics:
        raise ValueError(
            f"gate.metric {gate.metric!r} was not measured of {run_dir}: the gate cannot be asked; measured: "
            f"{', '.join(sorted(metrics)) or 'nothing'}; name one of these, and go on with --resume"
        )
    return metrics[gate.metric]


def verdict(gate: GateConfig, run_dir: Path) -> str:
    bounds = [f"at least {gate.least:g}"] * (gate.least > -1e9) + [f"at most {gate.most:g}"] * (gate.most < 1e9)
    met = "met" if is_met(gate, run_dir) else "not met"
    return f"{run_dir.name}: {gate.metric} is {measured(gate, run_dir):.4g}, {' and '.join(bounds)} is asked: {met}"


# before the runs, and between them


def record_datasets(runs: list[PlannedRun], ranks: PartialState) -> None:
    """Those of all stages, before any is trained, so that a mistake in the last costs no training of the first."""
    recorded: list[list[str]] = []
    for run in runs if ranks.is_local_main_process else ():
        for entry in run.stage.record:
            options = recorder_options(entry)
            if options not in recorded:
                recorded.append(options)
                record_dataset(run.config, options)


def record_dataset(config: Config, options: list[str]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(to_json(config), file)
        file.flush()
        run_subcommand(["record", "--reuse", "--config", file.name, *options])


def check_sources(runs: list[PlannedRun]) -> None:
    """ValueError if a source is not there that nothing will make."""
    for run in runs:
        for source in run.config.data.sources:
            if source not in made_sources(run):
                try:
                    data_files(source.path)
                except ValueError as error:
                    raise ValueError(f"stage {run.config.name}: {error}, or let the stage `record` it") from None


def make_data(run: PlannedRun, ranks: PartialState) -> None:
    """The dataset of a round, by its maker, unless it is there."""
    folder = run.config.run_dir / DATA
    if from_rank_0(ranks, lambda: (folder / "manifest.json").exists()):
        return
    weights = from_rank_0(ranks, lambda: locate_checkpoint(Path(run.config.model.init_from)).resolve())
    if ranks.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    ranks.wait_for_everyone()
    settings = getattr(run.stage, run.made_by)
    MAKERS[run.made_by].make(
        DataRequest(config=run.config, settings=settings, round=run.round, weights=weights, folder=folder, ranks=ranks)
    )
    ranks.wait_for_everyone()


def point_to(config: Config, run: PlannedRun) -> None:
    """Let runs/NAME/checkpoints be the run's."""
    temporary = config.run_dir / ".checkpoints.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path(run.config.name) / "checkpoints")
    temporary.replace(config.run_dir / "checkpoints")
