"""Measure a config on this machine's GPU beside what was planned, and write one JSON that can be attached to an issue.

    python scripts/check_gpu.py --config configs/safari_2b.json --out gpu_check.json
    python scripts/check_gpu.py --config configs/safari_2b.json --set model.path=generated/random_2b     # no download

Twenty optimizer steps of train.py's own `train_step` on the config's data; if a safari config's data are not there, some
episodes are recorded first. Printed and written: planned and measured peak memory, tokens a second, model FLOP
utilisation, milliseconds of the vision tower with its patch embedding as a Conv3d and as the equal matrix product that
models here are built with, the attention backend and the NF4 kernels that really ran; of one step how often the host
waits for the GPU and from which lines, how many kernels it starts, and the share of its time in which one runs.

Status: 0 measured; 2 it could not be, also for want of a GPU: what has checked nothing has not passed.

FLOPs are counted as qwenvl_agent/planning/flops.py says.
"""

import argparse
import importlib.util
import json
import math
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.autograd import DeviceType

from qwenvl_agent.command import bounded, command
from qwenvl_agent.config import Config, load_config, to_json
from qwenvl_agent.data.collator import build_collator
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.pixels import pixel_values
from qwenvl_agent.data.unusable import drop_unusable
from qwenvl_agent.model.build import base_of, build_model, build_processor, describe_parameters, family_of, linear_4bit
from qwenvl_agent.model.call import supervised_positions
from qwenvl_agent.model.precision import choose_together
from qwenvl_agent.planning.flops import batch_flops, picture_patches
from qwenvl_agent.planning.vram import (
    GIB,
    Architecture,
    Plan,
    RowShape,
    plan_memory,
    read_architecture,
)
from qwenvl_agent.training.findings import Findings
from qwenvl_agent.training.finite import FiniteCheck
from qwenvl_agent.training.gradients import GradientCheck
from qwenvl_agent.training.loader import build_loader, build_sampler, to_device
from qwenvl_agent.training.memory import fit_memory
from qwenvl_agent.training.metrics import Means
from qwenvl_agent.training.optim import build_optimizer
from qwenvl_agent.training.profile import kernel_seconds, matmul_flops
from qwenvl_agent.training.zero import build_accelerator

ROOT = Path(__file__).parents[1]
NUM_STEPS = 20
WARMUP_STEPS = 3
"""Not in the throughput: kernels are compiled and chosen, the allocator grows."""
NUM_EPISODES = 40
PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")
PROJECTION_TOLERANCE = 1e-5
"""Of the largest output, in float32 without TF32: two orders of summing 1,536 products."""
ATTENTION_KERNELS = re.compile(r"flash|fmha|efficient_attention|cudnn.*sdp|scaled_dot_product", re.IGNORECASE)
NF4_KERNELS = re.compile(r"4bit|nf4|quantizeblockwise", re.IGNORECASE)

# Dense bfloat16 tensor-core TFLOPS with float32 accumulation, from NVIDIA's data sheets (without sparsity). The first
# name holds that stands in the device's as whole words.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "A100": 311.9,
    "L40S": 362.0,
    "RTX 6000 Ada": 364.2,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


@command("nothing was measured")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a JSON file of configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one setting")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="default: %(default)s")
    parser.add_argument(
        "--steps", type=bounded(int, 1), default=NUM_STEPS, help="optimizer steps (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON, and nothing else on stdout")
    args = parser.parse_args(argv)
    if args.steps <= WARMUP_STEPS:
        raise ValueError(f"--steps {args.steps}: the first {WARMUP_STEPS} are not measured; give more")
    if not torch.cuda.is_available():
        raise ValueError(
            "no CUDA device here: nothing was measured; run it on a machine with an NVIDIA GPU "
            "(scripts/plan_vram.py plans without one)"
        )
    config = with_data(load_config(args.config, args.set))
    report = measure(config, args.steps, torch.device("cuda"))
    text = json.dumps(report, indent=1)
    args.out.write_text(text + "\n", encoding="utf-8")
    if args.json:
        print(text)
    else:
        show(report, Console(highlight=False))
        print(f"written: {args.out}")
    return 0


def with_data(config: Config) -> Config:
    """The config; if it is a safari's and its one source is missing, with recorded episodes in generated/gpu_check."""
    sources = config.data.sources
    if len(sources) != 1 or sources[0].kind != "safari" or Path(sources[0].path).exists():
        return config
    directory = ROOT / "generated" / "gpu_check"
    if not (directory / "dataset.jsonl").exists():
        print(f"{sources[0].path} is not there: recording {NUM_EPISODES} episodes in {directory}", file=sys.stderr)
        options = ["--out", str(directory), "--episodes", str(NUM_EPISODES), "--rules", json.dumps(config.eval.world)]
        command = [sys.executable, "scripts/generate_oracle.py", "--json", *options]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    source = replace(sources[0], path=str(directory))
    return replace(config, data=replace(config.data, sources=(source,)))


def measure(config: Config, num_steps: int, device: torch.device) -> dict:
    """The whole report. On a CPU everything but memory and kernels' names is measured the same way."""
    train_py = load_train()
    torch.manual_seed(config.train.seed)
    accelerator = build_accelerator(config.train)
    config = choose_together(config, accelerator, resume=False)
    processor = build_processor(config.model, config.vision)
    collator = build_collator(processor, config)
    rows = drop_unusable(build_rows(config.data, config.prompt), collator)
    sampler = build_sampler(config, rows.train, accelerator)
    config = fit_memory(config, rows.train, processor, accelerator)
    bare_model = build_model(config.model, device).train()
    arch = read_architecture(base_of(bare_model).config.to_dict())
    model, optimizer = accelerator.prepare(bare_model, build_optimizer(bare_model, config.train))
    batches = iter(build_loader(config, rows.train, collator, sampler))
    findings = Findings(Means(), FiniteCheck(accelerator, optimizer), GradientCheck(accelerator, bare_model))
    watch = Watch(device)
    steps: list[Step] = []
    shapes: list[RowShape] = []
    for step in track(range(num_steps), description="training", disable=not sys.stderr.isatty()):
        fetched = [next(batches) for _ in range(config.train.accumulation)]
        shapes.append(largest_row(fetched, arch))
        flops = sum(batch_flops(config.model, arch, batch) for batch in fetched)
        num_tokens = int(sum(batch["attention_mask"].sum() for batch in fetched))
        watch.start()
        on_device = [to_device(batch, device) for batch in fetched]
        train_py.train_step(accelerator, model, optimizer, on_device, findings, step, config.train.max_grad_norm)
        seconds = watch.stop()
        findings.read()
        means = findings.means.take([findings.means.read()])
        steps.append(Step(seconds, num_tokens, flops, means["train/loss"]))
    memory = watch.memory()
    row = largest_of(shapes)
    plan = plan_memory(config, arch, row, accelerator.num_processes)

    def one_step() -> None:
        clip = config.train.max_grad_norm
        train_py.train_step(accelerator, model, optimizer, on_device, findings, num_steps, clip)

    compute = torch.bfloat16 if config.model.autocast else torch.float32
    report = {
        "config": to_json(config),
        "machine": describe_machine(device),
        "parameters": describe_parameters(bare_model),
        "row": asdict(row),
        "memory": compare_memory(plan, memory),
        "speed": speed(steps[min(WARMUP_STEPS, num_steps - 1) :], device, compute),
        "losses": [step.loss for step in steps],
        "step_seconds": [step.seconds for step in steps],
        "vision": check_vision(base_of(bare_model), on_device[0], watch),
        "host": follow_host(one_step, device),
        "kernels": find_kernels(one_step, bare_model, device),
    }
    accelerator.end_training()
    return report


def load_train():
    """train.py, which is a script beside the package."""
    spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    module = importlib.util.module_from_spec(spec)
    # A data worker that is spawned, not forked, looks functions up by their module's name.
    sys.modules.setdefault("train", module)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Step:
    """One optimizer step, its data already at hand."""

    seconds: float
    tokens: int
    flops: float
    loss: float


class Watch:
    """Wall time of what the device has really done, and its memory since the watch was made."""

    def __init__(self, device: torch.device):
        self.device = device
        self.is_cuda = device.type == "cuda"
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(device)

    def start(self) -> None:
        self.wait()
        self.started = time.perf_counter()

    def stop(self) -> float:
        """Seconds since `start`."""
        self.wait()
        return time.perf_counter() - self.started

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object], repeats: int = 10) -> float:
        """The median of several calls, after one that warms up."""
        run()
        taken = []
        for _ in range(repeats):
            self.start()
            run()
            taken.append(self.stop())
        return statistics.median(taken)

    def memory(self) -> dict[str, int | None]:
        """Peak bytes of tensors and of the allocator, and what the whole card has in use now; None on a CPU."""
        if not self.is_cuda:
            return {"allocated": None, "reserved": None, "used": None, "card": None}
        free, card = torch.cuda.mem_get_info(self.device)
        return {
            "allocated": torch.cuda.max_memory_allocated(self.device),
            "reserved": torch.cuda.max_memory_reserved(self.device),
            "used": card - free,
            "card": card,
        }


# what was run


def largest_row(micro_batches: Sequence[dict], arch: Architecture) -> RowShape:
    """What a micro-batch is padded to, as the planner counts: its longest row, its most vision and supervised tokens."""
    return largest_of([batch_shape(batch, arch) for batch in micro_batches])


def batch_shape(batch: dict, arch: Architecture) -> RowShape:
    """Vision and supervised tokens are spread evenly over the rows, rounded up."""
    num_rows, length = batch["input_ids"].shape
    pictures = picture_patches(batch)
    return RowShape(
        tokens=length,
        image_tokens=math.ceil(sum(pictures) / arch.merge**2 / num_rows),
        supervised=math.ceil(int(supervised_positions(batch["labels"]).sum()) / num_rows),
        num_images=math.ceil(len(pictures) / num_rows),
    )


def largest_of(shapes: Sequence[RowShape]) -> RowShape:
    """The largest of each number: no micro-batch that ran was larger."""
    largest = {
        name: max(getattr(shape, name) for shape in shapes)
        for name in ("tokens", "image_tokens", "supervised", "num_images")
    }
    return RowShape(**largest, source="largest of the micro-batches that ran")


# arithmetic


def peak_tflops(device_name: str) -> float | None:
    """Of the data sheet; None for a card that is not in the table (a laptop's is another one of the same name)."""
    if "Laptop" in device_name:
        return None
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device_name)), None)


def speed(steps: Sequence[Step], device: torch.device, compute: torch.dtype = torch.bfloat16) -> dict:
    """Over all the steps together; utilisation of the data sheet's peak, and of what a large product reaches here."""
    seconds = sum(step.seconds for step in steps)
    tflops = sum(step.flops for step in steps) / seconds / 1e12
    sheet = peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    reached = matmul_flops(device, compute) / 1e12
    return {
        "steps": len(steps),
        "tokens_per_s": sum(step.tokens for step in steps) / seconds,
        "seconds_per_step": seconds / len(steps),
        "model_tflops_per_s": tflops,
        "peak_tflops": sheet,
        "model_flop_utilisation": tflops / sheet if sheet else None,
        "matmul_tflops_per_s": reached,
        "share_of_matmul": tflops / reached,
    }


def compare_memory(plan: Plan, measured: dict) -> dict:
    """Bytes. `planned_tensors` is to be compared with `allocated`, `planned_total` with `used`."""
    ratio = plan.tensor_bytes / measured["allocated"] if measured["allocated"] else None
    return {
        "planned_total": plan.total,
        "planned_tensors": plan.tensor_bytes,
        "planned_parts": plan.parts,
        "planned_moment": plan.moment,
        **measured,
        "planned_tensors_to_allocated": ratio,
    }


# vision tower


def check_vision(base: nn.Module, batch: dict, watch: Watch) -> dict:
    """Milliseconds of the tower on one micro-batch's pictures, with both forms of its patch embedding, and their equality."""
    if "patches" not in batch:
        return {"pictures": 0}
    pixels, grids, paths = pixel_values(batch), batch["image_grid_thw"], family_of(base).paths
    tower, projection = base.get_submodule(paths.vision), base.get_submodule(paths.patch_projection)
    embed = base.get_submodule(paths.patch_projection.rpartition(".")[0])
    taken, product = {}, type(projection)
    with torch.no_grad(), torch.autocast(watch.device.type, torch.bfloat16, enabled=base.computes_in_bfloat16):
        for name, form in (("matrix_product", product), ("conv3d", nn.Conv3d)):
            projection.__class__ = form
            try:
                taken[f"patch_embedding_ms_{name}"] = 1000 * watch.seconds(lambda: embed(pixels))
                taken[f"tower_ms_{name}"] = 1000 * watch.seconds(lambda: tower(pixels, grid_thw=grids))
            finally:
                projection.__class__ = product
    return {
        "pictures": len(grids),
        "patches": len(pixels),
        **taken,
        "conv3d_slowdown": taken["patch_embedding_ms_conv3d"] / taken["patch_embedding_ms_matrix_product"],
        "used": product.__name__,
        **compare_projections(projection, pixels),
    }


def compare_projections(projection: nn.Conv3d, pixels: torch.Tensor) -> dict:
    """The matrix product against the Conv3d that it replaces, both in float32 with full precision."""
    convolution = nn.Conv3d(
        projection.in_channels,
        projection.out_channels,
        projection.kernel_size,
        projection.stride,
        device=projection.weight.device,
        dtype=torch.float32,
    )
    convolution.load_state_dict({name: tensor.float() for name, tensor in projection.state_dict().items()})
    product = type(projection).forward
    patches = pixels.float().view(-1, projection.in_channels, *projection.kernel_size)
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.no_grad():
            expected = convolution(patches).flatten(1)
            difference = (product(convolution, patches) - expected).abs().max() / expected.abs().max()
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
    return {"relative_difference": difference.item(), "equal": difference.item() <= PROJECTION_TOLERANCE}


# kernels


def follow_host(run: Callable[[], None], device: torch.device) -> dict:
    """Of one step: waits of the host and their lines, kernels, and the share of its time in which one ran; None on a CPU.

    Not counted are waits that a library asks for outright, as bitsandbytes' optimizer does.
    """
    if device.type != "cuda":
        return {"waits": None, "waits_from": {}, "kernels": None, "busy": None}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize(device)
    # Of kernels alone: to follow the operators too would make the step longer.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        started = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    events = profile.events()
    kernels = [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    places = waits_from(caught)
    return {
        "waits": sum(places.values()),
        "waits_from": places,
        "kernels": len(kernels),
        "busy": kernel_seconds(events) / seconds,
    }


def waits_from(caught: Sequence[warnings.WarningMessage]) -> dict[str, int]:
    """`training/finite.py:151` and how often, of torch's warnings that an operation makes the host wait; the most first."""
    places = Counter(
        f"{Path(one.filename).parent.name}/{Path(one.filename).name}:{one.lineno}"
        for one in caught
        if "synchronizing CUDA operation" in str(one.message)
    )
    return dict(places.most_common())


def find_kernels(run: Callable[[], None], model: nn.Module, device: torch.device) -> dict:
    """What attention and the 4-bit layers really run, by the profiler's names of one optimizer step."""
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, *([activity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profile:
        run()
    names = sorted({event.key for event in profile.key_averages()})
    config = base_of(model).config
    quantised = linear_4bit(model)
    kinds = sorted({layer.weight.quant_state.quant_type for layer in quantised.values()})
    return {
        "attention": config.text_config._attn_implementation,
        "attention_of_tower": config.vision_config._attn_implementation,
        "attention_kernels": [name for name in names if ATTENTION_KERNELS.search(name)],
        "layers_in_4_bit": len(quantised),
        "quantisation": kinds,
        "nf4_kernels": [name for name in names if NF4_KERNELS.search(name)],
    }


# for people


def describe_machine(device: torch.device) -> dict:
    """Card, driver's CUDA, and versions; no host name."""
    card = {}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card = {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "processors": properties.multi_processor_count,
        }
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"card": card, "cuda": torch.version.cuda, "system": platform.system(), "versions": versions}


def show(report: dict, console: Console) -> None:
    memory, rate, vision, kernels = (report[key] for key in ("memory", "speed", "vision", "kernels"))
    table = Table(
        title=f"{report['config']['name']} on {report['machine']['card'].get('name', 'a CPU')}", show_header=False
    )
    table.add_row(
        "peak memory, tensors", f"planned {gib(memory['planned_tensors'])}, measured {gib(memory['allocated'])}"
    )
    table.add_row("peak memory, card", f"planned {gib(memory['planned_total'])}, in use {gib(memory['used'])}")
    table.add_row("tokens/s", f"{rate['tokens_per_s']:,.0f}")
    table.add_row("seconds a step", f"{rate['seconds_per_step']:.3f}")
    table.add_row("model TFLOP/s", f"{rate['model_tflops_per_s']:.1f}")
    utilisation = rate["model_flop_utilisation"]
    sheet = "unknown card" if utilisation is None else f"{utilisation:.1%} of {rate['peak_tflops']:.0f} TFLOPS"
    table.add_row("model FLOP utilisation", f"{sheet}; {rate['share_of_matmul']:.1%} of a large product")
    if vision["pictures"]:
        table.add_row("vision tower, ms", f"{vision['tower_ms_matrix_product']:.2f} ({vision['pictures']} pictures)")
        table.add_row("the same with Conv3d, ms", f"{vision['tower_ms_conv3d']:.2f}")
        verdict = "equal" if vision["equal"] else "NOT EQUAL"
        difference = f"{verdict}, relative difference {vision['relative_difference']:.1e}"
        table.add_row(
            "patch embedding", f"Conv3d {vision['conv3d_slowdown']:.1f} x the matrix product's time; {difference}"
        )
    host = report["host"]
    if host["waits"] is not None:
        where = ", ".join(f"{place} {count}" for place, count in list(host["waits_from"].items())[:4])
        table.add_row("the host waits, a step", f"{host['waits']}{f' ({where})' if where else ''}")
        table.add_row("kernels a step", f"{host['kernels']:,}; one runs in {host['busy']:.0%} of the time")
    table.add_row(
        "attention", f"{kernels['attention']}: {', '.join(kernels['attention_kernels']) or 'no kernel known by name'}"
    )
    table.add_row("4 bit", f"{kernels['layers_in_4_bit']} layers: {', '.join(kernels['nf4_kernels']) or 'no kernel'}")
    table.add_row("loss", f"{report['losses'][0]:.3f} to {report['losses'][-1]:.3f}")
    console.print(table)


def gib(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / GIB:.2f} GiB"


if __name__ == "__main__":
    sys.exit(main())
