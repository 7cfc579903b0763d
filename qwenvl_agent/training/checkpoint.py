"""Checkpoints that are whole or absent, and hold all that a run needs to go on as if it had never stopped.

    runs/NAME/checkpoints/
        step_000500/
            config.json             the resolved config
            state.json              step, best so far, the sampler's place
            model/                  the adapter, or for full the whole model (safetensors)
            optimizer.safetensors   AdamW's state by parameter name
            rank_0.json             random states and running means of rank 0, and so on
            deepspeed/              in place of optimizer.safetensors under ZeRO: the engine's own files
        last -> step_000500
        best -> step_000250

A checkpoint is written under a temporary name, flushed to the disk and renamed. Nothing in it is a pickle, except what
DeepSpeed's engine writes.
"""

import base64
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from qwenvl_agent.config import Config, to_json
from qwenvl_agent.training.metrics import flatten

# What may change between a checkpoint and its resumption without making other weights of it.
FREE_MODEL_KEYS = ("model.attention", "model.gradient_checkpointing")


def prepare_run_dir(config: Config, accelerator: Accelerator, resume: bool, overwrite: bool) -> Path | None:
    """Make the run's folder; the checkpoint to resume from, or None for a run that starts afresh."""
    run_dir, checkpoint = config.run_dir, None
    if resume and overwrite:
        raise ValueError("--resume and --overwrite together: one keeps the run, the other deletes it; give one of them")
    if resume:
        checkpoint = last_whole(run_dir / "checkpoints", accelerator.print)
    if checkpoint:
        accelerator.print(f"resuming {checkpoint}{describe_changes(read_json(checkpoint / 'config.json'), config)}")
    elif resume:
        accelerator.print(f"{run_dir} has no checkpoint yet: starting at step 0")
    elif run_dir.exists() and any(run_dir.iterdir()):
        if not overwrite:
            raise ValueError(f"{run_dir} exists: its results would be lost; use --resume, --overwrite or another name")
        if not (run_dir / "config.json").exists():
            raise ValueError(f"{run_dir} is no run (it has no config.json): it is not deleted; use another name")
    accelerator.wait_for_everyone()  # every rank has looked before rank 0 changes anything
    if accelerator.is_main_process:
        if overwrite:
            shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "STOP").unlink(missing_ok=True)
        write_json(run_dir / "config.json", to_json(config))
    accelerator.wait_for_everyone()
    return checkpoint


def last_whole(checkpoints_dir: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint that `last` points to, or the newest one before it if a kill or a full disk has torn that one."""
    checkpoints_dir = checkpoints_dir.resolve()
    found, last = sorted(checkpoints_dir.glob("step_*"), reverse=True), (checkpoints_dir / "last").resolve()
    if last in found:
        found = found[found.index(last) :]
    for unfinished in sorted(checkpoints_dir.glob(".step_*.tmp")):
        say(f"{unfinished} was never finished: skipped")
    for checkpoint in found:
        torn = torn_file(checkpoint)
        if not torn:
            return checkpoint
        say(f"{torn} is missing or cut off: {checkpoint.name} is skipped for the last whole checkpoint")
    return None


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


def describe_changes(saved: dict, config: Config) -> str:
    """The settings that differ from the checkpoint's; ValueError if its weights would not fit the model."""
    before, now = flatten(saved), flatten(to_json(config))
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    for key in changed:
        if key.startswith("model.") and key not in FREE_MODEL_KEYS:
            raise ValueError(
                f"{key} is {now.get(key)!r}, {before.get(key)!r} in the checkpoint: its weights are of that model; "
                "set it back, or start another run"
            )
    return "".join(f"\n  {key}: {before.get(key)!r} in the checkpoint, {now.get(key)!r} now" for key in changed)


def save_checkpoint(
    checkpoints_dir: Path,
    step: int,
    write: Callable[[Path], None],
    accelerator: Accelerator,
    is_best: bool,
    keep: int,
) -> None:
    """Let every rank `write` into a temporary folder, make it `step_NNNNNN`, point the links, delete what is old."""
    final = checkpoints_dir / f"step_{step:06d}"
    temporary = checkpoints_dir / f".{final.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    write(temporary)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in (*temporary.rglob("*"), temporary):
            flush_to_disk(path)
        if final.exists():  # a run that was resumed from an earlier step comes by again
            shutil.rmtree(final)
        temporary.rename(final)
        link(checkpoints_dir / "last", final)
        if is_best:
            link(checkpoints_dir / "best", final)
        prune(checkpoints_dir, keep)
    accelerator.wait_for_everyone()


def flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def link(path: Path, target: Path) -> None:
    """Point `path` to a sibling, atomically; the run folder can be moved."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(path)
    flush_to_disk(path.parent)


def prune(checkpoints_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and those that `last` and `best` point to."""
    linked = {path.resolve().name for path in (checkpoints_dir / "last", checkpoints_dir / "best") if path.exists()}
    others = sorted(path for path in checkpoints_dir.glob("step_*") if path.name not in linked)
    for path in others[: max(0, len(others) - keep)]:
        shutil.rmtree(path)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state as one flat dict, `parameter name : state name`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}:{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict) -> None:
    """The inverse of `optimizer_tensors`; the groups' settings stay those of the config."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: {} for index in range(len(order))}
    index_of = {name: index for index, name in enumerate(order)}
    for key, value in tensors.items():
        name, _, part = key.rpartition(":")
        state[index_of[name]][part] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_training_state(
    directory: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, rank_state: dict
) -> None:
    """The optimizer, and for each rank its random state and `rank_state` (JSON values)."""
    path = directory / f"rank_{accelerator.process_index}.json"
    write_json(path, rank_state | {"ranks": describe_ranks(accelerator), "random": random_state()})
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        model.save_checkpoint(str(directory / "deepspeed"))
    elif accelerator.is_main_process:
        save_file(optimizer_tensors(accelerator.unwrap_model(model), optimizer), directory / "optimizer.safetensors")


def describe_ranks(accelerator: Accelerator) -> dict:
    """What must be the same for an exact resume, and the proof of what a run really was."""
    is_distributed = torch.distributed.is_initialized()
    is_zero = accelerator.distributed_type == DistributedType.DEEPSPEED
    return {
        "zero_stage": accelerator.state.deepspeed_plugin.zero_stage if is_zero else 0,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "backend": torch.distributed.get_backend() if is_distributed else "",
    }


def load_training_state(
    directory: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict:
    """The inverse of `write_training_state`; this rank's `rank_state`. Under ZeRO the engine reads its weights too.

    On another number of ranks the weights go on, which the model was built with; what starts afresh is printed.
    """
    saved, now = read_json(directory / "rank_0.json")["ranks"], describe_ranks(accelerator)
    is_same_layout = all(saved[key] == now[key] for key in ("world_size", "zero_stage"))
    if now["zero_stage"] and is_same_layout:
        model.load_checkpoint(str(directory / "deepspeed"))
    elif saved["zero_stage"] == now["zero_stage"] == 0:
        tensors = load_file(directory / "optimizer.safetensors")
        load_optimizer_tensors(accelerator.unwrap_model(model), optimizer, tensors)
    else:
        accelerator.print(
            "the optimizer's state is sharded otherwise: AdamW's averages start afresh, the weights go on"
        )
    if not is_same_layout:
        accelerator.print(
            f"saved by {saved['world_size']} ranks at ZeRO stage {saved['zero_stage']}, now {now['world_size']} at "
            f"{now['zero_stage']}: random numbers and the log's running means start afresh, so this is not bit for bit "
            "the run that an uninterrupted one would have been"
        )
        return {}
    state = read_json(directory / f"rank_{accelerator.process_index}.json")
    set_random_state(state.pop("random"))  # last, because loading may draw
    return state


def random_state() -> dict:
    """The states of Python's, numpy's and torch's generators, as JSON values."""
    kind, keys, *rest = np.random.get_state()
    devices = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
        "torch": [base64.b64encode(s.numpy().tobytes()).decode() for s in (torch.get_rng_state(), *devices)],
    }


def set_random_state(state: dict) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    cpu, *devices = [torch.frombuffer(bytearray(base64.b64decode(s)), dtype=torch.uint8) for s in state["torch"]]
    torch.set_rng_state(cpu)
    for device in devices:
        torch.cuda.set_rng_state(device)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """What runs inside, an evaluation say, leaves no trace in the training's random numbers."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
