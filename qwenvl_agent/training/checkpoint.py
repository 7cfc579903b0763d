"""Checkpoints that are whole or absent, and hold all that a run needs to go on as if it had never stopped.

    runs/NAME/checkpoints/
        step_000500/
            config.json             the resolved config
            state.json              step, best so far, the sampler's place, the data's hash, whether it is to be evaluated
            model/                  the adapter, or for full the whole model (safetensors)
            optimizer.safetensors   AdamW's state by parameter name
            rank_0.json             random states and running means of rank 0, and so on
            deepspeed/              in place of optimizer.safetensors under ZeRO: the engine's own files
            checksums.json          size and SHA-256 of all these files
            evaluation.json         added by the evaluation of this step: its metrics, the best until then, their SHA-256
        last -> step_000500
        best -> step_000250

A checkpoint is written under a temporary name, flushed to the disk and renamed, then `last` points to it; only then the
step is evaluated, and `best` may point to it. Whatever is killed in between, both links point to whole checkpoints, and
a run that resumes does what was still to do. Nothing in a checkpoint is a pickle, except what DeepSpeed's engine writes.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open

from qwenvl_agent.checksums import digest_of_values, find_damage, write_checksums
from qwenvl_agent.config import Config, complete_saved, to_json
from qwenvl_agent.files import flush_to_disk, is_leftover, read_json, write_json
from qwenvl_agent.training.lock import lock_run
from qwenvl_agent.training.metrics import flatten

# What may change between a checkpoint and its resumption without making other weights of it.
FREE_MODEL_KEYS = ("model.attention", "model.gradient_checkpointing")
# What the model was taught to read and write: another value makes other rows, which `--accept-changes` allows.
ROW_KEYS = ("prompt.", "vision.", "data.eval_fraction", "data.max_thought_chars")
FREE_ROW_KEYS = ("vision.feature_cache_gb",)
EVALUATION = "evaluation.json"
LAUNCHER_FILES = {"STOP", "exit_status", "data"}
"""What batch scripts, sweeps and a curriculum's stages put into the folder of a run that has not begun."""


def prepare_run_dir(
    config: Config, accelerator: Accelerator, resume: bool, overwrite: bool, accept_changes: bool = False
) -> Path | None:
    """Lock and make the run's folder; the checkpoint to resume from, or None for a run that starts afresh.

    Rank 0 looks and decides; all ranks get its answer or raise its error.
    """
    found: list = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = open_run(config, resume, overwrite, accept_changes, accelerator.print)
        except (ValueError, OSError) as error:
            found[1] = error
    checkpoint, failure = broadcast_object_list(found)
    if failure:
        raise failure
    return checkpoint


def open_run(
    config: Config, resume: bool, overwrite: bool, accept_changes: bool, say: Callable[[str], None]
) -> Path | None:
    run_dir, checkpoint = config.run_dir, None
    if resume and overwrite:
        raise ValueError("--resume and --overwrite together: one keeps the run, the other deletes it; give one of them")
    lock_run(run_dir, say)
    if resume:
        checkpoint = last_whole(run_dir / "checkpoints", say)
    if checkpoint:
        changes = describe_changes(read_json(checkpoint / "config.json"), config, accept_changes)
        say(f"resuming {checkpoint}{changes}")
        point_links(checkpoint)
    else:
        check_folder(run_dir, overwrite, resume)
        if resume:
            say(f"{run_dir} has no checkpoint yet: starting at step 0")
    if overwrite and run_dir.exists():
        shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "STOP").unlink(missing_ok=True)
    remove_leftovers(run_dir)
    write_json(run_dir / "config.json", to_json(config))
    return checkpoint


def remove_leftovers(run_dir: Path) -> None:
    """Delete what a kill has left of files that were being replaced; whoever holds the run's lock alone writes there."""
    for folder in (run_dir, run_dir / "checkpoints", *run_dir.glob("checkpoints/step_*")):
        for path in folder.glob(".*"):
            if is_leftover(path) and (path.is_symlink() or path.is_file()):
                path.unlink()


def check_folder(run_dir: Path, overwrite: bool, resume: bool) -> None:
    """ValueError if a run that starts there would mix with results, or with files that are no run's.

    What a start has left that came to no step, its config say, is in nobody's way.
    """
    names = {path.name for path in run_dir.iterdir() if not is_leftover(path)} if run_dir.exists() else set()
    if names <= LAUNCHER_FILES or (resume and "config.json" not in names):  # a job's log may be there before its run
        return
    if not is_run(run_dir):
        what = "deleted" if overwrite else "written into"
        raise ValueError(f"{run_dir} is no run (it has no config.json of one): it is not {what}; use another name")
    if has_results(run_dir) and not overwrite and not resume:
        raise ValueError(f"{run_dir} exists: its results would be lost; use --resume, --overwrite or another name")


def is_run(run_dir: Path) -> bool:
    """Whether its config.json is one of ours; other programs' files have that name too."""
    try:
        return {"name", "model", "train"} <= read_json(run_dir / "config.json").keys()
    except (OSError, ValueError, AttributeError):
        return False


def curriculum_of(run_dir: Path) -> Path | None:
    """The folder of the curriculum that a run is a stage of, None if it is of none."""
    try:
        return run_dir.parent if read_json(run_dir.parent / "config.json").get("stages") else None
    except (OSError, ValueError):
        return None


def has_results(run_dir: Path) -> bool:
    """Whether a step was logged or saved, or anything evaluated."""
    log = run_dir / "metrics.jsonl"
    has_logged = log.is_file() and log.stat().st_size > 0
    return has_logged or any(run_dir.glob("checkpoints/step_*")) or any(run_dir.glob("eval/*"))


def last_whole(checkpoints_dir: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint that `last` points to, or the newest one before it if that one is damaged; None if there is none.

    ValueError if all are damaged: to start afresh would be another run.
    """
    checkpoints_dir = checkpoints_dir.resolve()
    found, last = saved_steps(checkpoints_dir)[::-1], (checkpoints_dir / "last").resolve()
    if last in found:
        found = found[found.index(last) :]
    for unfinished in sorted(checkpoints_dir.glob(".step_*.tmp")):
        say(f"{unfinished} was never finished: skipped")
    for checkpoint in found:
        damage = damage_of(checkpoint, say)
        if not damage:
            return checkpoint
        say(f"{damage}: {checkpoint.name} is skipped for the last whole checkpoint")
    if found:
        raise ValueError(
            f"{checkpoints_dir} has no whole checkpoint ({damage}): there is nothing to go on from; bring the files back, "
            "or start anew with --overwrite"
        )
    return None


def damage_of(checkpoint: Path, say: Callable[[str], None]) -> str | None:
    """The first file that is not as it was written, and why; None for a whole checkpoint."""
    try:
        return find_damage(checkpoint)
    except FileNotFoundError:
        torn = torn_file(checkpoint)
        if torn:
            return f"{torn} is missing or cut off"
        say(f"{checkpoint} was saved without checksums, by an earlier version: its files can be read, no more is known")
        return None


def point_links(checkpoint: Path) -> None:
    """Point `last` to the checkpoint that a run goes on from, and `best` to the best until then.

    A kill may have come before a link was pointed; and what was saved after this checkpoint the run will save again.
    """
    checkpoints_dir, best = checkpoint.parent, read_state(checkpoint)["best"].get("step")
    link(checkpoints_dir / "last", checkpoint)
    if best is not None and step_dir(checkpoints_dir, best).is_dir():
        link(checkpoints_dir / "best", step_dir(checkpoints_dir, best))
    else:
        (checkpoints_dir / "best").unlink(missing_ok=True)


def read_state(checkpoint: Path | None) -> dict:
    """state.json, with what the evaluation of this step has added if there was one; of a run's begin without one."""
    if checkpoint is None:
        return {"step": 0, "best": {}, "evaluation_due": False}
    state = read_json(checkpoint / "state.json")
    try:
        return state | {"best": read_evaluation(checkpoint)["best"], "evaluation_due": False}
    except (OSError, ValueError):
        return state | {"evaluation_due": state.get("evaluation_due", False)}


def torn_file(checkpoint: Path) -> Path | None:
    """The first file that is missing or cannot be read to its end."""
    weights = sorted(checkpoint.rglob("*.safetensors")) or [checkpoint / "model" / "model.safetensors"]
    for path in (*(checkpoint / name for name in ("config.json", "state.json", "rank_0.json")), *weights):
        try:
            if path.suffix == ".json":
                read_json(path)
            else:
                with safe_open(path, "pt"):
                    pass
        except (OSError, ValueError, SafetensorError):
            return path
    return None


def describe_changes(saved: dict, config: Config, accept_changes: bool = False) -> str:
    """The settings that differ from the checkpoint's; ValueError if its weights would not fit the model, or not the rows."""
    before, now = flatten(complete_saved(saved)), flatten(to_json(config))
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    for key in (key for key in changed if key in before and key in now):  # else the setting is of another version
        if key.startswith("model.") and key not in FREE_MODEL_KEYS:
            raise ValueError(
                f"{key} is {now.get(key)!r}, {before.get(key)!r} in the checkpoint: its weights are of that model; "
                "set it back, or start another run"
            )
        if key == "train.optimizer":
            raise ValueError(
                f"{key} is {now[key]!r}, {before[key]!r} in the checkpoint: the averages that it holds are of the other form; "
                "set it back, or begin another run with its weights (model.init_from)"
            )
        if key.startswith(ROW_KEYS) and key not in FREE_ROW_KEYS and not accept_changes:
            raise ValueError(
                f"{key} is {now.get(key)!r}, {before.get(key)!r} in the checkpoint: the rest would be learned from other "
                "prompts or rows; set it back, start another run, or go on all the same: --resume --accept-changes"
            )
    return "".join(f"\n  {key}: {before.get(key)!r} in the checkpoint, {now.get(key)!r} now" for key in changed)


def save_checkpoint(
    checkpoints_dir: Path, step: int, write: Callable[[Path], None], accelerator: Accelerator, keep: int
) -> None:
    """Let every rank `write` into a temporary folder, make it `step_NNNNNN`, point `last` to it, delete what is old."""
    final = step_dir(checkpoints_dir, step)
    temporary = checkpoints_dir / f".{final.name}.tmp"
    if accelerator.is_main_process:
        for leftover in checkpoints_dir.glob(".step_*"):
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    write(temporary)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_checksums(temporary)
        for path in (*temporary.rglob("*"), temporary):
            flush_to_disk(path)
        if final.exists():  # a run that was resumed from an earlier step, where no link points, comes by again
            discard(final)
        temporary.rename(final)
        link(checkpoints_dir / "last", final)
        prune(checkpoints_dir, keep)
    accelerator.wait_for_everyone()


def read_evaluation(checkpoint: Path) -> dict:
    """evaluation.json, {"best", "metrics"}; OSError if the step was not evaluated, ValueError if the file is damaged."""
    path = checkpoint / EVALUATION
    values = read_json(path)
    noted = values.pop("sha256", None)  # an earlier version's has none
    if not {"best", "metrics"} <= values.keys() or noted not in (None, digest_of_values(values)):
        raise ValueError(f"{path} is damaged: what it says was not measured; --resume evaluates the step again")
    return values


def record_evaluation(checkpoints_dir: Path, step: int, best: dict, metrics: dict, keep: int) -> None:
    """Note in the step's checkpoint that it was evaluated, with the best until then, and point `best`."""
    checkpoint = step_dir(checkpoints_dir, step)
    values = {"best": best, "metrics": metrics}
    write_json(checkpoint / EVALUATION, values | {"sha256": digest_of_values(values)}, is_flushed=True)
    flush_to_disk(checkpoint)
    if best.get("step") == step:
        link(checkpoints_dir / "best", checkpoint)
        prune(checkpoints_dir, keep)


def step_dir(checkpoints_dir: Path, step: int) -> Path:
    return checkpoints_dir / f"step_{step:06d}"


def saved_steps(checkpoints_dir: Path) -> list[Path]:
    return sorted(checkpoints_dir.glob("step_*"), key=by_step)


def by_step(checkpoint: Path) -> tuple[int, str]:
    """A key to sort by: step 1,000,000 has a digit more."""
    return len(checkpoint.name), checkpoint.name


def link(path: Path, target: Path) -> None:
    """Point `path` to a sibling, atomically; the run folder can be moved."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(path)
    flush_to_disk(path.parent)


def prune(checkpoints_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and those that `last` and `best` point to.

    What lies after `last`, damaged or given up, does not count: a run that goes on writes it anew.
    """
    last, best = ((checkpoints_dir / name).resolve() for name in ("last", "best"))
    others = [path for path in saved_steps(checkpoints_dir) if by_step(path) < by_step(last) and path.name != best.name]
    for path in others[: max(0, len(others) - keep)]:
        discard(path)


def discard(checkpoint: Path) -> None:
    """Delete it so that a kill leaves no half of it under its name."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)
