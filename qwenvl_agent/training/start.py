"""What a run begins with in place of the base's own weights: an earlier run's, by its name (`model.init_from`).

    continue    its adapter, or its weights of method full, are this run's first; the base stays the one they were trained on
    merge       they become this run's base: an ordinary export in RUN/base, under new adapters or for method full

The optimizer begins anew in both. RUN/start.json says what it was, and a resumed run keeps to it: the earlier run may
have gone on, or be gone, by then.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from qwenvl_agent.config import Config
from qwenvl_agent.files import read_json, write_json
from qwenvl_agent.inference.load import START, check_checkpoint, find_run, start_of
from qwenvl_agent.training.subcommand import run_subcommand
from qwenvl_agent.training.turns import in_turns

BASE = "base"
ADAPTER_KEYS = ("lora_rank", "lora_alpha", "lora_targets", "lora_places")
"""Of an adapter that trains further: its shape, its places and the scale that it learned under."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The weights that a run begins with."""

    run: str
    """The folder of the run that they are of."""
    checkpoint: str
    step: int
    mode: str
    """continue or merge."""
    base: str
    """Where all began: the model.path of the first run of the chain."""
    path: str
    """The base that this run trains on."""

    @property
    def weights_dir(self) -> Path | None:
        """Weights to train further; None if they are in the base."""
        return Path(self.checkpoint) / "model" if self.mode == "continue" else None

    def describe(self) -> str:
        how = "trained further" if self.mode == "continue" else f"merged into the base, {self.path}"
        return f"begins with the weights of {self.checkpoint} (step {self.step}), {how}; the optimizer is new"


def find_start(config: Config, *, resume: bool) -> Start | None:
    """What `model.init_from` names, None if it is empty; ValueError if that does not fit this run.

    A resumed run has the start that it had.
    """
    if not config.model.init_from:
        return None
    record = config.run_dir / START
    if resume and record.exists() and any(config.run_dir.glob("checkpoints/step_*")):
        return Start(**read_json(record))
    source = find_run(folder_of(config))
    assert source.run, f"{source.path} is of no run"
    base = (start_of(source.run) or {}).get("base", source.config.model.path)
    check_fits(config, source.config, base)
    return Start(
        run=str(source.run),
        checkpoint=source.path,
        step=read_json(Path(source.path) / "state.json")["step"],
        mode=config.model.init_mode,
        base=base,
        path=source.config.model.path if config.model.init_mode == "continue" else str(config.run_dir / BASE),
    )


def folder_of(config: Config) -> Path:
    """A path, or the name of a run beside this one."""
    given, beside = Path(config.model.init_from), Path(config.runs_dir) / config.model.init_from
    return beside if beside.is_dir() and not given.is_dir() else given


def check_fits(config: Config, before: Config, base: str) -> None:
    """ValueError unless weights of the run `before`, all of which began with `base`, can be this run's first."""
    run = f"model.init_from is {config.model.init_from!r}, a run"
    ours, theirs = config.model, before.model
    if not is_same_base(ours.path, base) and not is_same_base(ours.path, theirs.path):
        raise ValueError(
            f"{run} on the base {base!r}, and model.path is {ours.path!r}: its weights fit no other; set model.path={base}"
        )
    if config.prompt.format != before.prompt.format:
        raise ValueError(
            f"{run} in format {before.prompt.format!r}, and prompt.format is {config.prompt.format!r}: what it has learned "
            f"to write would be unlearned; set prompt.format={before.prompt.format}, or train that run in the other format"
        )
    if ours.init_mode == "merge":
        return
    if ours.method != theirs.method:
        raise ValueError(
            f"{run} of method {theirs.method!r}, and model.method is {ours.method!r}: its weights train further in their own "
            f"method; set model.method={theirs.method}, or model.init_mode=merge, which makes a new base of it"
        )
    for key in ADAPTER_KEYS if ours.method != "full" else ():
        now, was = getattr(ours, key), getattr(theirs, key)
        if now != was:
            raise ValueError(
                f"{run} with model.{key} {json.dumps(was)}, and here it is {json.dumps(now)}: its adapter has another form; "
                f"set model.{key}={json.dumps(was)}, or model.init_mode=merge, which puts a new adapter on it"
            )


def is_same_base(path: str, other: str) -> bool:
    """Hub ids and shipped names by their spelling, folders by where they are."""
    return path == other or (Path(path).is_dir() and Path(other).is_dir() and Path(path).samefile(other))


def started(config: Config, start: Start | None) -> Config:
    """With the base that the run trains on."""
    return replace(config, model=replace(config.model, path=start.path)) if start else config


def prepare_start(config: Config, start: Start | None, checkpoint: Path | None, accelerator: Accelerator) -> None:
    """Look whether the earlier run's weights are whole, merge them if asked, and write down what they were."""
    if not start:
        return
    record = config.run_dir / START
    if accelerator.is_main_process:
        write_json(record, asdict(start))
    accelerator.print(start.describe())
    if checkpoint:
        return

    def prepare() -> None:
        if accelerator.is_main_process:
            check_checkpoint(Path(start.checkpoint))
        if start.mode == "merge" and not Path(start.path).is_dir():
            merge(start, accelerator)

    in_turns(accelerator, "the run to begin with is read", prepare)


def merge(start: Start, accelerator: Accelerator) -> None:
    """An export of the earlier run; under ZeRO-3 this process could not even load it, but in slices."""
    device = ["--device", str(accelerator.device)]
    accelerator.print(
        run_subcommand(["export", start.checkpoint, "--out", start.path, *device], is_shown=False).strip()
    )
