"""A run's state, out of it and into it: all that makes a resumed run go on as if it had never stopped.

`save_run` writes it, `resume_run` reads it: step, best, the sampler's place, weights, optimizer, running means and random
numbers. Where the folders lie and how they stay whole is checkpoint.py's.
"""

import base64
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from qwenvl_agent.config import to_json
from qwenvl_agent.files import read_json, write_json
from qwenvl_agent.model.build import save_weights
from qwenvl_agent.training.checkpoint import save_checkpoint
from qwenvl_agent.training.metrics import Means
from qwenvl_agent.training.run import Run

ENGINE_TYPES = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""What DeepSpeed's engine pickles besides tensors and plain values."""


def save_run(run: Run, *, evaluation_due: bool) -> None:
    """One checkpoint, by all ranks together; `evaluation_due`: whether its step is still to be evaluated."""
    config, accelerator = run.config, run.accelerator
    state = {
        "step": run.step,
        "best": run.best,
        "evaluation_due": evaluation_due,
        "dataset_hash": run.rows.report["dataset_hash"],
        "sampler": run.sampler.state_dict(run.step),
    }
    # Gathered by all ranks.
    weights = accelerator.get_state_dict(run.model) if config.train.zero_stage == 3 else None

    def write(directory: Path) -> None:
        if accelerator.is_main_process:
            write_json(directory / "config.json", to_json(config))
            write_json(directory / "state.json", state)
            save_weights(accelerator.unwrap_model(run.model), directory / "model", weights)
        found = {"means": run.findings.means.read(), "finite": run.findings.finite.state_dict()}
        write_training_state(directory, accelerator, run.model, run.optimizer, found)

    save_checkpoint(config.run_dir / "checkpoints", run.step, write, accelerator, config.train.keep_checkpoints)


def resume_run(run: Run, checkpoint: Path, state: dict, accept_changes: bool = False) -> None:
    """Go on from the checkpoint, whose weights the model was built with; `state` is its `read_state`."""
    run.step = run.first_step = state["step"]
    run.best, run.evaluation_due = state["best"], state["evaluation_due"]
    run.sampler.load_state_dict(state["sampler"], accept_changes)
    found = load_training_state(checkpoint, run.accelerator, run.model, run.optimizer)
    run.findings.means = Means(found.get("means"))
    run.findings.finite.load_state_dict(found.get("finite", {}))


def check_data(state: dict, report: dict, accept_changes: bool) -> None:
    """ValueError if a checkpoint's `state` was learned from other rows than those of `report`."""
    before, now = state.get("dataset_hash"), report["dataset_hash"]
    if before and before != now and not accept_changes:
        raise ValueError(
            f"the data's hash is {now}, {before} in the checkpoint: rows, or only the places of their files, are others, "
            "so some would be repeated or skipped; bring the data back, or go on with it as it is: --resume --accept-changes"
        )


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as one flat dict, `parameter name : state name`."""
    names = parameter_names(model, optimizer)
    state = optimizer.state_dict()["state"]
    return {f"{names[number]}:{key}": value for number, kept in state.items() for key, value in kept.items()}


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """In the optimizer's order, by which its state is numbered."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict) -> None:
    """The inverse of `optimizer_tensors`; the groups' settings stay those of the config."""
    order = parameter_names(model, optimizer)
    state: dict[int, dict] = {index: {} for index in range(len(order))}
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
        # Frozen weights come from the base again: with adapters on 8B they would be 16 GiB of each checkpoint.
        model.save_checkpoint(str(directory / "deepspeed"), exclude_frozen_parameters=True)
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
        check_engine_files(directory / "deepspeed")
        model.load_checkpoint(str(directory / "deepspeed"), load_module_strict=False)
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


def check_engine_files(directory: Path) -> None:
    """ValueError for an engine's file that would do more than hold tensors: DeepSpeed unpickles whatever is in it."""
    for file in sorted(directory.rglob("*.pt")):
        try:
            others = set(get_unsafe_globals_in_checkpoint(file)) - ENGINE_TYPES
        except Exception as error:  # whatever is in a file that is none
            raise ValueError(
                f"{file} is no file of torch's ({error}): it is damaged; resume another checkpoint"
            ) from None
        if others:
            raise ValueError(
                f"{file} names {', '.join(sorted(others))[:200]}, which no engine of DeepSpeed writes: opening it may run any "
                "code; resume only what you trained yourself"
            )


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
