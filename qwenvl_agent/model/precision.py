"""In what a model computes: under bfloat16 autocast where the device multiplies bfloat16 fast, else in float32.

A CPU is asked, not looked up: two small products are timed. Its flags say what a processor has, not what torch makes of
it under this process's settings and libraries (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, a virtual machine, another
maker's units), and the answer is far from any doubt: with bfloat16 units 2 to 10 times float32's speed, without them
0.03 to 0.5.
"""

import functools
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from qwenvl_agent.config import Config, ModelConfig
from qwenvl_agent.files import read_json
from qwenvl_agent.threads import count_cores, describe_threads

MIN_CAPABILITY = (8, 0)
"""Of a CUDA device that multiplies bfloat16 in its tensor cores."""
MIN_SPEEDUP = 1.25
"""Of a bfloat16 product over a float32 one: autocast's own copies cost some of it."""
PRODUCT = (128, 256, 256)
NUM_TRIES = 7
PROBE_S = 0.05
"""After three tries no further one is begun when they took so long."""


@dataclass(frozen=True)
class Precision:
    """A model's settings without an "auto", and the line that says how they came about."""

    model: ModelConfig
    line: str


def bfloat16_is_fast(device: torch.device | str | None) -> tuple[bool, str]:
    """Whether autocast pays on the device (None: where models go by themselves), and why."""
    return _ask("cuda" if torch.cuda.is_available() else "cpu") if device is None else _ask(str(device))


@functools.cache
def _ask(device: str) -> tuple[bool, str]:
    """A probe of some milliseconds, once a process."""
    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(device)
        is_fast = (major, minor) >= MIN_CAPABILITY
        has = "multiplies bfloat16 fast" if is_fast else "has no fast bfloat16, which came with 8.0"
        return is_fast, f"CUDA compute capability {major}.{minor} {has}"
    speedup = product_speedup(device)
    return speedup >= MIN_SPEEDUP, f"bfloat16 products run at {speedup:.2g} times float32's speed on this {device}"


def product_speedup(device: str) -> float:
    """Of a bfloat16 product over a float32 one of the same shape, on one thread.

    Tried in turn, and the best of each: what a busy neighbour takes away is taken from some tries, not from the best.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two of them beside a busy process would measure the neighbour
    try:
        best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
        for dtype in best:
            product_seconds(dtype, device)  # warms up: the libraries choose and make their kernels
        started = time.perf_counter()
        for i in range(NUM_TRIES):
            if i >= 3 and time.perf_counter() - started > PROBE_S:
                break
            for dtype in best:
                best[dtype] = min(best[dtype], product_seconds(dtype, device))
    finally:
        torch.set_num_threads(num_threads)
    return best[torch.float32] / best[torch.bfloat16]


def product_seconds(dtype: torch.dtype, device: str) -> float:
    rows, inputs, outputs = PRODUCT
    x = torch.ones(rows, inputs, dtype=dtype, device=device)  # no random number is drawn
    weight = torch.ones(outputs, inputs, dtype=dtype, device=device)
    started = time.perf_counter()
    torch.nn.functional.linear(x, weight)[0, 0].item()  # read: some devices only queue a product
    return time.perf_counter() - started


def choose(model_cfg: ModelConfig, device, saved: dict | None = None) -> Precision:
    """The settings that "auto" stands for on `device`; those of a checkpoint's config (`saved`, its group "model") hold."""
    if not model_cfg.is_automatic:
        chosen, reason = model_cfg, "as set"
    elif saved:
        chosen, reason = kept(model_cfg, saved), "as in the checkpoint, whose precision a resumed run keeps"
    elif model_cfg.autocast == "auto":
        is_fast, why = bfloat16_is_fast(device)
        chosen, reason = model_cfg.resolved(is_fast), f"auto: {why}"
    else:
        chosen, reason = model_cfg.resolved(model_cfg.autocast), f"model.autocast is {json.dumps(model_cfg.autocast)}"
    return Precision(chosen, f"precision: {chosen.precision} ({reason}){warning(chosen, device)}")


def kept(model_cfg: ModelConfig, saved: dict) -> ModelConfig:
    autocast = saved["autocast"] if model_cfg.autocast == "auto" else model_cfg.autocast
    dtype = saved["dtype"] if model_cfg.dtype == "auto" else model_cfg.dtype
    return replace(model_cfg, autocast=autocast, dtype=dtype)


def warning(model_cfg: ModelConfig, device) -> str:
    """What a setting costs on this device, if it costs much; "" if not."""
    is_fast, why = (True, "") if model_cfg.precision == "float32" else bfloat16_is_fast(device)
    if is_fast:
        return ""
    return f"\n  slow here: {why}; with model.autocast=auto and model.dtype=auto a new run computes in float32"


def fast_autocast(device: torch.device | str) -> torch.autocast:
    """Autocast for what is no `build_model`: on where it pays."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16_is_fast(device)[0])


def announce(line: str) -> None:
    """Beside what a command prints as its result."""
    print(line, file=sys.stderr)


def choose_together(config: Config, accelerator, *, resume: bool) -> Config:
    """The config without an "auto", the same on all ranks: rank 0 chooses, and says so."""
    from accelerate.utils import broadcast_object_list

    answer: list[Precision | None] = [None]
    if accelerator.is_main_process:
        saved = saved_settings(config.run_dir) if resume else None
        answer = [choose(config.model, accelerator.device, saved)]
    precision = broadcast_object_list(answer)[0]
    accelerator.print(precision.line)
    if accelerator.device.type == "cpu":
        num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        accelerator.print(describe_threads(torch.get_num_threads(), num_processes, count_cores()))
    return replace(config, model=precision.model)


def saved_settings(run_dir: Path) -> dict | None:
    """The group "model" of the newest checkpoint's config that can be read; all of a run have the same."""
    for path in sorted(run_dir.glob("checkpoints/step_*/config.json"), reverse=True):
        try:
            return read_json(path)["model"]
        except (OSError, ValueError, KeyError):
            continue  # torn: prepare_run_dir says so, and takes the one before
    return None


def choose_for_evaluation(trained: ModelConfig, device, autocast: bool | Literal["auto"] = "auto") -> Precision:
    """What a trained model is evaluated in: as it was trained, but in float32 where bfloat16 is slow.

    `autocast` true or false: as it says.
    """
    trained = choose(trained, device).model  # a checkpoint has no "auto", settings that somebody wrote may
    asked = replace(trained, autocast=autocast, dtype=trained.dtype if autocast is True else "auto")
    is_fast, why = (True, "") if trained.precision == "float32" else bfloat16_is_fast(device)
    if autocast == trained.autocast or (autocast == "auto" and is_fast):
        return Precision(trained, f"precision: {trained.precision}, as it was trained{warning(trained, device)}")
    chosen = asked.resolved(False)
    reason = f"{why}; model.autocast=true evaluates as trained" if autocast == "auto" else "as set"
    line = (
        f"precision: trained in {trained.precision}, evaluated in {chosen.precision} ({reason}). Logits differ by some "
        "thousandths: a greedy answer can be another where two tokens nearly tie"
    )
    return Precision(chosen, line)
