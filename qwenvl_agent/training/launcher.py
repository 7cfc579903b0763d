"""What a launcher says of things that this project's config states: a file of DeepSpeed's, a YAML or flags of Accelerate's.

Accelerate hands them on as environment variables, and takes some over what the program asks for, in silence. Here the
config alone decides: what says the same is accepted, and anything else refused with the setting that means it.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from qwenvl_agent.config import TrainConfig

DEEPSPEED_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
OFF = ("", "no", "none", "false", "auto")


class Stated(NamedTuple):
    """A setting that a launcher can state too."""

    flag: str
    """In Accelerate's YAML and on its command line."""
    setting: str
    ours: Callable[[TrainConfig], object]
    """As the variable would have it."""
    remedy: Callable[[str], str]
    """Its value -> the override that means it."""


def offload(cfg: TrainConfig) -> str:
    return "cpu" if cfg.cpu_offload else "none"


def offload_remedy(value: str) -> str:
    return f"train.cpu_offload={'true' if value == 'cpu' else 'false'}"


STATED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": Stated(
        "gradient_accumulation_steps",
        "train.accumulation",
        lambda cfg: cfg.accumulation,
        "train.accumulation={}".format,
    ),
    "ACCELERATE_GRADIENT_CLIPPING": Stated(
        "gradient_clipping", "train.max_grad_norm", lambda cfg: cfg.max_grad_norm, "train.max_grad_norm={}".format
    ),
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": Stated(
        "zero_stage", "train.zero_stage", lambda cfg: cfg.zero_stage, "train.zero_stage={}".format
    ),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": Stated(
        "offload_optimizer_device", "train.cpu_offload", offload, offload_remedy
    ),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": Stated(
        "offload_param_device",
        "train.cpu_offload",
        lambda cfg: offload(cfg) if cfg.zero_stage == 3 else "none",
        offload_remedy,
    ),
}
WITHOUT_A_PART = {
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend", ("no",), "layers are compiled by model.compile=true"),
    "ACCELERATE_MIXED_PRECISION": ("mixed_precision", ("no", "bf16"), "precision is model.autocast (true is bfloat16)"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("use_parallelism_config", (), "ranks are DDP's or ZeRO's (train.zero_stage)"),
}
"""Variable -> its flag, the values that change nothing here, and what decides in its place."""


def check_launcher(cfg: TrainConfig, environment: Mapping[str, str] = os.environ) -> None:
    """ValueError for the first thing that the launcher says otherwise than the config."""
    if environment.get(DEEPSPEED_FILE, "none") != "none":
        refuse_file(Path(environment[DEEPSPEED_FILE]))
    for variable, stated in STATED.items():
        said = environment.get(variable, "").lower()
        if said not in ("", "auto") and not is_same(said, stated.ours(cfg)):
            raise ValueError(
                f"the launcher says {stated.flag} {said} and {stated.setting} means {stated.ours(cfg)}: one of them would not "
                f"hold; launch without it, or --set {stated.remedy(said)}"
            )
    for variable, (flag, harmless, ours) in WITHOUT_A_PART.items():
        said = environment.get(variable, "").lower()
        if said not in (*OFF, *harmless):
            raise ValueError(f"the launcher says {flag} {said}, which would not hold here: {ours}; launch without it")


def is_same(said: str, ours: object) -> bool:
    try:
        return float(said) == float(str(ours))
    except ValueError:
        return said == str(ours)


def refuse_file(path: Path) -> None:
    """ValueError with the settings that mean what a DeepSpeed JSON says, and with what has none."""
    try:
        values = as_object(json.loads(path.read_text(encoding="utf-8")))
        sets = dict.fromkeys(settings_of(values))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: DeepSpeed's settings cannot be read ({error}); launch with --use_deepspeed alone"
        ) from None
    others = [key for key in values if key not in KNOWN]
    rest = f"; without a counterpart here: {', '.join(others)}" if others else ""
    raise ValueError(
        f"{path} would not be used: DeepSpeed's settings are made of this project's config; launch with --use_deepspeed alone "
        f"and {' '.join(f'--set {setting}' for setting in sets)}{rest}"
    )


KNOWN = (
    "zero_optimization",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "train_micro_batch_size_per_gpu",
    "train_batch_size",
    "bf16",
    "steps_per_print",
    "wall_clock_breakdown",
)


def as_object(value: object) -> dict:
    """ValueError for what is none; null is an empty one."""
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{str(value)[:40]!r} stands where an object belongs")
    return value or {}


def settings_of(values: dict) -> Iterator[str]:
    """Overrides that mean what a DeepSpeed JSON says; "auto" is what the config says anyhow."""
    zero = as_object(values.get("zero_optimization"))
    yield f"train.zero_stage={zero.get('stage', 0)}"
    devices = [as_object(zero.get(part)).get("device", "none") for part in ("offload_optimizer", "offload_param")]
    if "cpu" in devices:
        yield "train.cpu_offload=true"
    names = {
        "gradient_accumulation_steps": "train.accumulation",
        "gradient_clipping": "train.max_grad_norm",
        "train_micro_batch_size_per_gpu": "train.batch_size",
    }
    yield from (f"{ours}={values[key]}" for key, ours in names.items() if values.get(key, "auto") != "auto")
