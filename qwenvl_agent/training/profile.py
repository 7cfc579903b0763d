"""Where the time of a training step goes: PyTorch's trace of some steps, and one page that sums it up.

On a GPU a phase's time is that of the kernels it started; the backward pass, which autograd starts from a thread of its
own, is what the other phases leave. The floor is the time that the steps' FLOPs (flops.py) would take at the rate that
this machine reaches in one large matrix product.
"""

import re
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.hooks import RemovableHandle

from qwenvl_agent.config import Config
from qwenvl_agent.model.build import base_of, family_of
from qwenvl_agent.planning.flops import batch_flops
from qwenvl_agent.planning.vram import Architecture, read_architecture

WARMUP_STEPS = 3
"""Before the first profiled one: the allocator grows, kernels are chosen and compiled."""
PHASES = ("vision forward", "language forward", "head forward", "backward", "clip and optimizer")
COMMUNICATION = re.compile(r"nccl|gloo|c10d", re.IGNORECASE)
NUM_OPERATORS = 12


class StepProfiler:
    """Profiles `config.profile.steps` optimizer steps after some to warm up; without such steps it does nothing."""

    def __init__(self, config: Config, model: nn.Module, device: torch.device, *, is_main: bool):
        self.config, self.device = config, device
        self.num_steps = config.profile.steps if is_main else 0
        self.directory = config.run_dir / "profile"
        self.num_seen, self.wall, self.waited, self.flops = 0, 0.0, 0.0, 0.0
        self.handles: list[RemovableHandle] = []
        if self.num_steps:
            base = base_of(model)
            self.arch: Architecture = read_architecture(base.config.to_dict())
            paths = family_of(model).paths
            parts = [base.get_submodule(path) for path in (paths.vision, paths.language, paths.head)]
            self.forwards = zip(PHASES[:3], parts, strict=True)
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
            self.profile = profile(activities=activities)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one optimizer step, the fetching of its data included."""
        self.num_seen += 1
        is_first = self.num_seen == WARMUP_STEPS + 1
        if not self.num_steps or not WARMUP_STEPS < self.num_seen <= WARMUP_STEPS + self.num_steps:
            yield
            return
        if is_first:
            self.handles = [handle for name, module in self.forwards for handle in label(module, name)]
            self.profile.start()
        started = self._now()
        yield
        self.wall += self._now() - started
        if self.num_seen == WARMUP_STEPS + self.num_steps:
            self._finish()

    def note(self, micro_batches: list[dict], waited_s: float) -> None:
        """What a step is made of, and how long it waited for it."""
        if self.num_steps and WARMUP_STEPS < self.num_seen <= WARMUP_STEPS + self.num_steps:
            self.waited += waited_s
            self.flops += sum(batch_flops(self.config.model, self.arch, batch) for batch in micro_batches)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _finish(self) -> None:
        self.profile.stop()
        for handle in self.handles:
            handle.remove()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.profile.export_chrome_trace(str(self.directory / "trace.json.gz"))
        (self.directory / "summary.md").write_text(self.summary(), encoding="utf-8")

    def summary(self) -> str:
        """The page, in Markdown."""
        events = self.profile.events()
        seconds = {"data wait": self.waited, **phase_seconds(events, self.device.type)}
        communication = communication_seconds(events, self.device.type)
        seconds["everything else"] = self.wall - sum(seconds.values())
        rate = matmul_flops(self.device, torch.bfloat16 if self.config.model.autocast else torch.float32)
        floor = self.flops / rate
        lines = [
            f"# {self.config.name}: {self.num_steps} steps of {self.wall / self.num_steps:.3f} s",
            "",
            "| phase | ms a step | share |",
            "|---|---|---|",
            *(f"| {name} | {1e3 * s / self.num_steps:.1f} | {s / self.wall:.1%} |" for name, s in seconds.items()),
            "",
            f"Communication, inside the phases above: {1e3 * communication / self.num_steps:.1f} ms a step.",
            "",
            f"{self.flops / self.num_steps / 1e12:.4g} TFLOP a step; one large matrix product reaches "
            f"{rate / 1e12:.3g} TFLOP/s here, so the floor is {1e3 * floor / self.num_steps:.1f} ms: "
            f"the step runs at {floor / self.wall:.1%} of the matmul-bound rate.",
            "",
            "| operator | ms a step | calls a step |",
            "|---|---|---|",
            *self._operators(),
            "",
            "The trace beside this page opens in chrome://tracing or ui.perfetto.dev.",
        ]
        return "\n".join(lines) + "\n"

    def _operators(self) -> Iterator[str]:
        kind = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        # Operators alone: on a GPU their kernels are listed beside them, with the same time once more.
        averages = self.profile.key_averages()
        events = [e for e in averages if e.key not in PHASES and e.device_type == DeviceType.CPU]
        for event in sorted(events, key=lambda e: -getattr(e, kind))[:NUM_OPERATORS]:
            yield f"| {event.key} | {getattr(event, kind) / 1e3 / self.num_steps:.1f} | {event.count / self.num_steps:g} |"


def label(module: nn.Module, name: str) -> list:
    """Hooks that record the module's forward under a name; their handles."""
    ranges = []

    def enter(*_) -> None:
        ranges.append(record_function(name))
        ranges[-1].__enter__()

    def leave(*_) -> None:
        ranges.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def phase_seconds(events: Iterable[FunctionEvent], device_type: str) -> dict[str, float]:
    """Of all phases, each moment once: a phase inside another, or inside itself, is taken out of the outer one.

    A trace of a GPU holds everything twice: a kernel as what its operator started and as an event of its own, a phase on
    the host and once more as a range on the device. Operators on the host's side are read; their `device_time_total` is
    that of the kernels below them.
    """
    kind = "device_time_total" if device_type == "cuda" else "cpu_time_total"
    seconds = dict.fromkeys(PHASES, 0.0)
    for event in events:
        if event.key in PHASES and event.device_type == DeviceType.CPU:
            seconds[event.key] += getattr(event, kind) / 1e6
            outer = enclosing_phase(event)
            if outer:
                seconds[outer] -= getattr(event, kind) / 1e6
    if device_type == "cuda":
        # Autograd starts the kernels of the backward pass from a thread of its own, outside of what is labelled.
        seconds["backward"] = 0.0
        seconds["backward"] = kernel_seconds(events) - sum(seconds.values())
    return seconds


def enclosing_phase(event: FunctionEvent) -> str:
    """The phase in which a phase was recorded, or ''."""
    while event.cpu_parent is not None:
        event = event.cpu_parent
        if event.key in PHASES:
            return event.key
    return ""


def communication_seconds(events: Iterable[FunctionEvent], device_type: str) -> float:
    """Of NCCL's kernels, or of gloo's operators; inside the phases."""
    if device_type == "cuda":
        return kernel_seconds(event for event in events if COMMUNICATION.search(event.key))
    return sum(event.self_cpu_time_total for event in events if COMMUNICATION.search(event.key)) / 1e6


def kernel_seconds(events: Iterable[FunctionEvent]) -> float:
    """Of all kernels and copies on the device; ranges that people label are no work of its own."""
    on_device = (e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation)
    return sum(event.device_time_total for event in on_device) / 1e6


def matmul_flops(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """FLOP/s of a large square product, by the median time."""
    side = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)  # of its own: the training's random state stays as it is
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))

    def seconds() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    seconds()  # warms up
    return 2 * side**3 / statistics.median(seconds() for _ in range(repeats))
